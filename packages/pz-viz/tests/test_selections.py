"""Selections drawn in their tree, exactly as a reader sees them."""

import concurrent.futures
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import treescope
from viz_samples import Chain, Linear, Span, chain

import pz_named as nx
import pz_viz
from pz_core import selectors
from pz_core.selectors import Selection
from pz_viz.selections import render_selection

RULE = "┄" * 40

EXAMPLE = {"cfg": 3, "spans": [Span(1, 2), Span(5, 9, "s")]}


def example():
    return selectors.select(EXAMPLE).at(lambda t: (t["spans"][0], t["spans"][1].hi), multiple=True)


@pytest.mark.smoke
def test_selected_nodes_are_boxed_and_their_ancestors_open():
    assert (
        pz_viz.selection_to_text(example())
        == f"""\
pz_core.select(
  {{
    'cfg': 3,
    'spans': [
      #╭{RULE}╮
      # Selected:
      Span(lo=1, hi=2, unit='m')
      #╰{RULE}╯
      ,
      Span(
        lo=5,
        hi=
        #╭{RULE}╮
        # Selected:
        9
        #╰{RULE}╯
        ,
        unit='s',
      ),
    ],
  }}
).at_keypaths(<2 subtrees, highlighted above>)"""
    )


def test_the_value_alone_is_opened_down_to_the_selected_nodes():
    assert (
        pz_viz.selection_to_text(example(), visible_selection=False)
        == """\
{
  'cfg': 3,
  'spans': [
    Span(lo=1, hi=2, unit='m'),
    Span(
      lo=5,
      hi=9,
      unit='s',
    ),
  ],
}"""
    )


def test_treescope_draws_a_root_selection_in_the_same_way():
    assert treescope.render_to_text(example()) == pz_viz.selection_to_text(example())
    assert "# Selected:" in treescope.render_to_html(example(), compressed=False)


def test_the_umbrella_gives_its_own_name_and_one_is_singular(monkeypatch):
    monkeypatch.setitem(sys.modules, "penzai.pz", types.ModuleType("penzai.pz"))
    text = pz_viz.selection_to_text(selectors.select(Span(1, 2)))
    assert text.splitlines()[0] == "pz.select("
    assert text.splitlines()[-1] == ").at_keypaths(<1 subtree, highlighted above>)"


def test_selected_data_shows_although_arrays_are_pictured():
    model = {"a": nx.wrap(jnp.arange(6.0)).tag("x"), "b": nx.wrap(jnp.arange(6.0)).tag("x")}
    picked = selectors.select(model).at(lambda t: t["a"].data_array)
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        text = pz_viz.selection_to_text(picked)
    first, second = text.split("'b': ")
    assert "# Selected:" in first
    assert "Arrayviz" not in first.split("# Selected:")[0]
    assert "Arrayviz" not in second  # closed
    with treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()):
        assert "arrayviz_container" in pz_viz.selection_to_html(picked, compressed=False)


def test_nested_selections_are_ordinary_structs():
    text = treescope.render_to_text([example()])
    assert "pz_core.select(" not in text
    assert "Selection(" in text
    twice = treescope.render_to_text(selectors.select(example()))
    assert twice.count("pz_core.select(") == 1


def test_key_paths_can_be_unfolded():
    part = render_selection(example())
    [*_, listing] = part.foldables_in_this_part()
    listing.set_expand_state(treescope.rendering_parts.ExpandState.EXPANDED)
    text = treescope.lowering.render_to_text_as_root(part)
    assert "# 2 subtrees, highlighted above" in text
    assert "(DictKey(key='spans'), SequenceKey(idx=1), GetAttrKey(name='hi'))," in text
    qualified = treescope.lowering.render_to_text_as_root(part, roundtrip=True)
    assert "(jax.tree_util.DictKey(key='spans'), jax.tree_util.SequenceKey(idx=0))," in qualified


def test_nothing_and_everything_selected():
    nothing = selectors.select(EXAMPLE).at_instances_of(bytes)
    assert pz_viz.selection_to_text(nothing).splitlines() == [
        "pz_core.select(",
        "  {'cfg': 3, 'spans': [Span(lo=1, hi=2, unit='m'), Span(lo=5, hi=9, unit='s')]}",
        ").at_keypaths(<0 subtrees, highlighted above>)",
    ]
    root = pz_viz.selection_to_text(selectors.select(Span(1, 2)))
    assert root.splitlines()[1:5] == [
        f"  #╭{RULE}╮",
        "  # Selected:",
        "  Span(lo=1, hi=2, unit='m')",
        f"  #╰{RULE}╯",
    ]


class Keyless:
    """Registered without keys: JAX numbers its children, treescope names them."""

    def __init__(self, x):
        self.x = x

    def __treescope_repr__(self, path, subtree_renderer):
        return treescope.repr_lib.render_object_constructor(
            Keyless, {"x": self.x}, path, subtree_renderer
        )


jax.tree_util.register_pytree_node(Keyless, lambda k: ((k.x,), None), lambda _, c: Keyless(*c))


def test_paths_that_treescope_names_otherwise_are_reported():
    selection = selectors.select({"k": Keyless(1)}).at_instances_of(int)
    text = pz_viz.selection_to_text(selection)
    assert text.startswith("# Warning: some selected subtrees are not drawn")
    assert "never drawn: \"['k'][<flat index 0>]\"" in text


def test_selected_siblings_show_although_they_repeat():
    model = chain(300)
    picked = selectors.select(model).at_instances_of(Linear).pick_nth_selected(150)
    text = pz_viz.selection_to_text(picked)
    assert text.count("# Selected:") == 1
    assert "# … 148 more Linear: [2] … [149]" in text
    assert "# … 148 more Linear: [151] … [298]" in text
    assert "Warning" not in text


def test_many_selected_siblings_are_counted():
    model = Chain([Span(i, i) for i in range(300)])
    selection = selectors.select(model).at_instances_of(Span)
    text = pz_viz.selection_to_text(selection)
    assert text.count("# Selected:") == 23  # three ends, twenty of the run
    assert "with selected parts" in text
    assert "Warning" not in text
    assert "<300 subtrees, highlighted above>" in text
    with pz_viz.folding(None):
        assert pz_viz.selection_to_text(selection).count("# Selected:") == 300


def test_show_methods_print_outside_of_a_notebook(capsys):
    example().show_selection()
    assert capsys.readouterr().out == pz_viz.selection_to_text(example()) + "\n"
    example().show_value()
    assert "pz_core.select(" not in capsys.readouterr().out


def test_threads_do_not_mix_their_selections():
    model = Chain([Span(i, i) for i in range(5)])

    def draw(i):
        return pz_viz.selection_to_text(selectors.select(model).at(lambda m: m.sublayers[i]))

    expected = [draw(i) for i in range(5)]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        assert list(pool.map(draw, list(range(5)) * 8)) == expected * 8


def test_an_edited_model_reads_well_on_a_page(tmp_path):
    path = tmp_path / "selection.html"
    pz_viz.to_html(example(), path, title="Edit")
    page = path.read_text("utf-8")
    assert page.count("# Selected:") == 2
    assert isinstance(example(), Selection)
