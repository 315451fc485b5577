"""Registration, precedence, aliases, and what importing brings along."""

import subprocess
import sys
import types

import pytest
import treescope
from treescope import canonical_aliases, type_registries
from viz_samples import Empty, Span

import pz_viz
from pz_core import display_hook
from pz_viz import _install, aliases


@pytest.mark.smoke
def test_installing_again_changes_nothing():
    registry = type_registries.TREESCOPE_HANDLER_REGISTRY
    before = dict(registry)
    display = display_hook.selection_display()
    pz_viz.install()
    assert registry == before
    assert display_hook.selection_display() is display
    assert set(_install.HANDLERS) <= set(registry)


def test_a_nearer_handler_of_the_user_wins():
    def handler(node, path, subtree_renderer):
        return treescope.rendering_parts.text("mine")

    type_registries.TREESCOPE_HANDLER_REGISTRY[Empty] = handler
    try:
        assert (
            treescope.render_to_text([Empty(), Span(1, 2)]) == "[mine, Span(lo=1, hi=2, unit='m')]"
        )
    finally:
        del type_registries.TREESCOPE_HANDLER_REGISTRY[Empty]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


ABSENT = "found = {names!r} & set(sys.modules); assert not found, found"


def test_the_bottom_wheels_stay_blind_to_treescope():
    check = ABSENT.format(names={"treescope"})
    done = run(f"import sys, pz_core, pz_named; repr(pz_core.select([1])); {check}")
    assert done.returncode == 0, done.stderr
    assert run(f"import sys, treescope; {check}").returncode == 1  # it can fail


def test_importing_brings_no_layers_and_no_heavy_extras():
    heavy = {"pz_nn", "torch", "transformers", "tokenizers", "rich", "matplotlib"}
    done = run(f"import sys, pz_viz; {ABSENT.format(names=heavy)}")
    assert done.returncode == 0, done.stderr
    assert run(f"import sys, json; {ABSENT.format(names={'json'})}").returncode == 1  # it can fail


def test_public_names_print_under_their_namespace():
    module = types.ModuleType("viz_alias_sample")

    class Shown:
        pass

    Shown.__module__ = "somewhere._deep"
    Shown.__qualname__ = "Shown"
    module.Shown, module._Hidden, module.number = Shown, Shown, 3
    sys.modules["viz_alias_sample"] = module
    with canonical_aliases._alias_environment.set_scoped(
        canonical_aliases.CanonicalAliasEnvironment({})
    ):
        assert pz_viz.add_public_names(module, "short") == 1
        assert pz_viz.add_public_names(module, "short") == 0
        assert treescope.render_to_text(Shown) == "short.Shown"
    del sys.modules["viz_alias_sample"]


def test_the_umbrella_is_found_when_it_is_loaded(monkeypatch):
    umbrella, layers = types.ModuleType("penzai.pz"), types.ModuleType("penzai.pz.nn")
    umbrella.__spec__ = types.SimpleNamespace(_initializing=False)
    layers.Span, umbrella.nn, umbrella.Empty = Span, layers, Empty
    monkeypatch.setitem(sys.modules, "penzai.pz", umbrella)
    monkeypatch.setitem(sys.modules, "penzai.pz.nn", layers)
    with canonical_aliases._alias_environment.set_scoped(
        canonical_aliases.CanonicalAliasEnvironment({})
    ):
        text = treescope.render_to_text(Span(Empty(), 2), roundtrip_mode=True)
    aliases._add_umbrella_names_once.cache_clear()
    assert text == "pz.nn.Span(lo=pz.Empty(), hi=2, unit='m')"
