"""Display functions in a terminal, in an IPython shell, and the debugger patch."""

import subprocess
import sys
import textwrap

import pytest
from viz_samples import Span

import pz_viz
from pz_viz import compatibility, patch_ipdb


class Old:
    """Defines the hook of the library that treescope grew out of."""

    def __penzai_repr__(self, path, subtree_renderer):
        import treescope

        del path, subtree_renderer
        return treescope.rendering_parts.text("drawn by the old hook")


@pytest.mark.smoke
def test_show_and_display_print_text_in_a_terminal(capsys):
    pz_viz.show("a span:", Span(1, 2))
    assert capsys.readouterr().out == "a span: Span(lo=1, hi=2, unit='m')\n"
    pz_viz.show("a", "b", space_separated=False)
    assert capsys.readouterr().out == "ab\n"
    pz_viz.display(Span(1, 2), roundtrip_mode=True)
    assert capsys.readouterr().out == "viz_samples.Span(lo=1, hi=2, unit='m')\n"
    pz_viz.display(Old())
    pz_viz.show([Old()])
    assert capsys.readouterr().out == "drawn by the old hook\n[drawn by the old hook]\n"
    pz_viz.show(pz_viz.effect_view([[1.0]]))
    assert capsys.readouterr().out.startswith("Effects {axis0: 1, axis1: 1}")


def test_set_up_outside_of_a_shell_is_an_error():
    with pytest.raises(RuntimeError, match="register_as_default: no IPython shell is running"):
        compatibility.register_as_default()
    with pytest.raises(RuntimeError, match=r"basic_interactive_setup.*pz_viz\.to_html"):
        compatibility.basic_interactive_setup()
    with pytest.raises(RuntimeError, match="cannot be undone; restart the kernel"):
        compatibility.disable_interactive_context()
    assert compatibility.enable_interactive_context() is None


SESSION = textwrap.dedent(
    """
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    import jax.numpy as jnp
    import treescope
    import pz_viz
    from pz_viz import compatibility
    from viz_samples import Span

    before = len(treescope.active_renderer.get().handlers)
    for _ in range(3):
        compatibility.register_as_default(streaming=False, compress_html=False)
    assert len(treescope.active_renderer.get().handlers) == before + 1
    data, _ = shell.display_formatter.format(Span(1, 2))
    assert "treescope" in data["text/html"], data
    assert "Span(lo=1" in data["text/plain"]
    data, _ = shell.display_formatter.format(jnp.zeros(300))
    assert len(data["text/plain"]) < 500
    data, _ = shell.display_formatter.format(pz_viz.effect_view([[1.0]]))
    assert data["text/html"].startswith("<iframe")
    shell.run_line_magic("load_ext", "pz_viz")
    compatibility.basic_interactive_setup(autovisualize_arrays=True)
    assert treescope.active_autovisualizer.get() is not None

    from IPython.utils.capture import capture_output
    import pz_core
    with capture_output() as captured:
        pz_viz.show("words", Span(1, 2))
        pz_core.select([1]).show_selection()
        pz_viz.display(Span(1, 2), streaming=False)
    assert "words" in captured.outputs[0].data["text/html"] or captured.outputs
    assert len(captured.outputs) >= 3
    print("session ok")
    """
)


def test_everything_works_in_an_ipython_shell():
    pytest.importorskip("IPython")
    import pathlib

    helpers = str(pathlib.Path(__file__).parent / "_helpers")
    code = f"import sys; sys.path.insert(0, {helpers!r})\n{SESSION}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "session ok" in done.stdout, done.stderr


def test_the_debugger_is_patched_once_and_restored():
    debugger = pytest.importorskip("IPython.core.debugger")
    original = debugger.Pdb.displayhook
    with pytest.raises(AssertionError, match="is not patched"):
        patch_ipdb.unpatch_ipdb()
    patch_ipdb.patch_ipdb()
    assert debugger.Pdb.displayhook is patch_ipdb.displayhook_with_ipython
    with pytest.raises(ValueError, match=r"patched already.*force=True"):
        patch_ipdb.patch_ipdb()
    patch_ipdb.patch_ipdb(force=True)  # as the error advises; the original is kept
    patch_ipdb.unpatch_ipdb()
    assert debugger.Pdb.displayhook is original


def test_a_hook_of_somebody_else_is_not_overwritten():
    debugger = pytest.importorskip("IPython.core.debugger")
    original = debugger.Pdb.displayhook
    patch_ipdb.patch_ipdb()
    try:
        debugger.Pdb.displayhook = lambda self, obj: None
        with pytest.raises(AssertionError, match="somebody replaced the hook"):
            patch_ipdb.unpatch_ipdb()
    finally:
        debugger.Pdb.displayhook = patch_ipdb.displayhook_with_ipython
        patch_ipdb.unpatch_ipdb()
    assert debugger.Pdb.displayhook is original


def test_the_patched_hook_displays_values(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    patch_ipdb.displayhook_with_ipython(None, 3)
    patch_ipdb.displayhook_with_ipython(None, None)
    assert shown == [3]
