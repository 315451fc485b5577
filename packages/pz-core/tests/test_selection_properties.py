"""Selections of random trees: round trips and agreement with a plain recursive model."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pz_core_trees import Box, Net, Point, all_paths, array_trees, same_objects, trees

import pz_core
from pz_core import Selection, combine, select
from pz_core.selectors import SelectionHole


@st.composite
def trees_and_selections(draw):
    """A tree and a selection in it, of one of several kinds."""
    tree = draw(trees)
    nodes = all_paths(tree)
    chosen = draw(st.sets(st.sampled_from(sorted(range(len(nodes)))), max_size=4))
    paths = [path for i, path in enumerate(nodes) if i in chosen]
    start = select(tree)
    selection = draw(
        st.sampled_from(
            [
                start,
                start.at_keypaths(paths),
                start.at_keypaths(paths).at_children(),
                start.at_instances_of((int, Box, dict)),
                start.at_instances_of((list, Point, Net), innermost=True),
                start.at_pytree_leaves(),
                start.at_childless(),
                start.at_keypaths(paths).invert(),
                start.at_subtrees_where(lambda x: isinstance(x, str | tuple)),
            ]
        )
    )
    return tree, selection


@given(trees_and_selections())
def test_deselect_is_the_identity(tree_and_selection):
    tree, selection = tree_and_selection
    assert selection.deselect() is tree
    by_hand = Selection(selection.selected_by_path, selection.remainder)
    assert same_objects(by_hand.deselect(), tree)
    through_jax = jax.tree.map(lambda x: x, selection)
    assert same_objects(through_jax.deselect(), tree)


@given(trees_and_selections())
def test_paths_and_nodes_agree_with_the_model(tree_and_selection):
    tree, selection = tree_and_selection
    nodes = all_paths(tree)
    order = list(nodes)
    assert [nodes[p] for p in selection.get_keypaths()] == list(selection.get_sequence())
    positions = [order.index(path) for path in selection.get_keypaths()]
    assert positions == sorted(positions)
    holes = select(selection.remainder).at_instances_of(SelectionHole)
    assert [hole.path for hole in holes.get_sequence()] == list(selection.get_keypaths())


@given(trees_and_selections())
def test_set_then_get(tree_and_selection):
    _, selection = tree_and_selection
    new = [object() for _ in range(len(selection))]
    edited = selection.set_sequence(new)
    assert list(select(edited).at_keypaths(selection.get_keypaths()).get_sequence()) == new
    kept = selection.apply_with_selected_index(lambda i, _: new[i], keep_selected=True)
    assert list(kept.get_sequence()) == new
    assert same_objects(kept.deselect(), edited)
    assert selection.invert().get_keypaths() == kept.invert().get_keypaths()


@given(trees_and_selections())
def test_what_is_not_selected_is_shared(tree_and_selection):
    _, selection = tree_and_selection
    rest = selection.invert()
    edited = selection.set(None)
    after = select(edited).at_keypaths(rest.get_keypaths()).get_sequence()
    assert all(a is b for a, b in zip(rest.get_sequence(), after, strict=True))


@given(trees_and_selections())
def test_invert_twice_covers_the_selection(tree_and_selection):
    tree, selection = tree_and_selection
    inverse = selection.invert()
    covered = sorted((*inverse.get_keypaths(), *selection.get_keypaths()), key=repr)
    assert len(set(covered)) == len(covered)
    assert selection.invert().invert().invert() == inverse or not len(selection)
    assert combine(*selection.partition()) == combine(*inverse.partition()) or _has_objects(tree)
    twice = inverse.invert()
    for path in selection.get_keypaths():
        assert any(path[: len(outer)] == outer for outer in twice.get_keypaths())


def _has_objects(tree):
    return any(type(leaf) is object for leaf in jax.tree.leaves(tree))


@pytest.mark.smoke
@given(trees_and_selections(), st.booleans())
def test_partition_and_combine(tree_and_selection, at_leaves):
    tree, selection = tree_and_selection
    parts = selection.partition(at_leaves=at_leaves)
    assert same_objects(combine(*parts), tree)
    assert same_objects(combine(*reversed(parts)), tree)
    again = select(parts[0]).at_instances_of(int).partition()
    assert same_objects(combine(parts[1], *again), tree)


@given(trees_and_selections())
def test_refine_equals_chaining(tree_and_selection):
    _, selection = tree_and_selection
    assert selection.refine(lambda x: select(x).at_children()).get_keypaths() == (
        selection.at_children().get_keypaths()
    )


@given(trees_and_selections())
def test_parents_hold_the_selected_nodes(tree_and_selection):
    _, selection = tree_and_selection
    parents = {path[:-1] for path in selection.get_keypaths() if path}
    found = selection.at_parents(nested="outermost").get_keypaths()
    assert set(found) <= parents
    for parent in parents:
        assert any(parent[: len(outer)] == outer for outer in found)


@given(trees, st.data())
def test_accessors_find_every_node(tree, data):
    paths = list(all_paths(tree))
    path = data.draw(st.sampled_from(paths))

    def accessor(node):
        for key in path:
            node = dict(pz_core.tree_util.tree_flatten_exactly_one_level(node)[0])[key]
        return node

    for multiple in (False, True):
        selection = select(tree).at(
            (lambda t: [accessor(t)]) if multiple else accessor, multiple=multiple
        )
        assert selection.get_keypaths() == (path,)


@given(trees_and_selections(), trees_and_selections())
def test_selections_of_selections(outer, inner):
    _, selection = inner
    _, template = outer
    nested = select(selection).at_keypaths(template.get_keypaths())
    by_hand = Selection(nested.selected_by_path, nested.remainder)
    assert same_objects(by_hand.deselect().deselect(), selection.deselect())
    deeper = select(by_hand).at_instances_of(SelectionHole)
    again = Selection(deeper.selected_by_path, deeper.remainder).deselect()
    assert same_objects(again.deselect().deselect(), selection.deselect())


@given(array_trees())
def test_jit_of_a_selection(tree):
    selection = select(tree).at_instances_of((dict, tuple))
    traced = jax.jit(lambda s: s)(selection)
    assert traced.get_keypaths() == selection.get_keypaths()
    assert jax.tree.structure(traced) == jax.tree.structure(selection)
