"""Selections: queries, edits, refinement, errors; one class for each group of methods."""

import re
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import DictKey, GetAttrKey, SequenceKey
from pz_core_trees import (
    Box,
    Empty,
    KeylessNode,
    LoudKey,
    Net,
    OwnLayout,
    Point,
    WithInit,
    WithKeys,
)

import pz_core
from pz_core import Parameter, Selection, StateVariable, Struct, pytree_dataclass, select
from pz_core.selectors import (
    MissingReplacementError,
    PathPatternError,
    SelectionCountError,
    SelectionHole,
    SelectionPredicateError,
    SelectionQuote,
)

pytestmark = pytest.mark.smoke

PARTS = GetAttrKey("parts")


def net():
    return Net([Box(1.0), Box(2), (Box(3), {"b": 4, "a": [5, None]})], head=None)


def by_hand(selection):
    """The same selection as one that was put together from its fields."""
    return Selection(OrderedDict(selection.selected_by_path), selection.remainder)


def through_jax(selection):
    return jax.tree.map(lambda x: x, selection)


class TestLayout:
    def test_select_does_not_look_at_the_tree(self):
        unsortable = {"a": 1, 2: 3}
        assert select(unsortable).get() is unsortable
        assert select(unsortable).get_keypaths() == ((),)
        assert select(unsortable).remainder == SelectionHole(())

    def test_fields(self):
        selection = select(net()).at_instances_of(Box)
        keys = [
            (PARTS, SequenceKey(0)),
            (PARTS, SequenceKey(1)),
            (PARTS, SequenceKey(2), SequenceKey(0)),
        ]
        assert list(selection.selected_by_path) == keys
        assert selection.remainder == Net(
            [
                SelectionHole(keys[0]),
                SelectionHole(keys[1]),
                (SelectionHole(keys[2]), {"b": 4, "a": [5, None]}),
            ]
        )
        assert jax.tree.leaves(selection) == [1.0, 2, 3, 5, 4]
        paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(selection)]
        assert paths[-1] == ".remainder.parts[2][1]['b']"
        assert paths[0].startswith(".selected_by_path[")

    @pytest.mark.parametrize("version", [by_hand, through_jax])
    def test_equal_and_same_behaviour_when_put_together(self, version):
        made = select(net()).at_instances_of(Box)
        other = version(made)
        assert other == made
        assert other.deselect() == net()
        assert other.get_sequence() == made.get_sequence()
        assert other.get_keypaths() == made.get_keypaths()
        assert other.set(0) == made.set(0)
        assert other.at(lambda b: b.w).get_keypaths() == made.at(lambda b: b.w).get_keypaths()
        assert other.invert() == made.invert()
        assert len(other) == 3
        assert other.apply(lambda b: 1, keep_selected=True).get_sequence() == (1, 1, 1)
        with pytest.raises(SelectionCountError, match="it selects 3"):
            other.get()
        assert other.required() is other

    def test_holes_and_keys_by_hand(self):
        a, b = (DictKey("a"),), (DictKey("b"),)
        selection = Selection(OrderedDict({a: 1, b: 2}), [SelectionHole(a), SelectionHole(a)])
        assert selection.deselect() == [1, 1]
        with pytest.raises(ValueError, match=r"hole for \['b'\].*only \['a'\]"):
            Selection(OrderedDict({a: 1}), [SelectionHole(b)]).deselect()
        quoted = Selection(OrderedDict({a: 1}), [SelectionQuote(SelectionHole(b))])  # the repair
        assert quoted.deselect() == [SelectionHole(b)]

    def test_selections_of_selections(self):
        inner = select(net()).at_instances_of(Box)
        outer = select(inner).at(lambda s: s.remainder.parts[0])
        assert by_hand(outer).deselect() == inner
        assert outer.remainder.remainder.parts[1] == SelectionQuote(
            SelectionHole((PARTS, SequenceKey(1)))
        )
        third = select(by_hand(outer)).at_instances_of(SelectionQuote).pick_nth_selected(0)
        assert by_hand(third).deselect() == outer
        assert by_hand(by_hand(third).deselect()).deselect() == inner
        assert outer.deselect().deselect() == net()

    def test_travels_through_transforms(self):
        tree = {"a": jnp.arange(3.0), "b": "static text"}
        chosen = select(tree).at(lambda t: t["a"])

        @jax.jit
        def double(by_path):
            return jax.tree.map(lambda x: 2 * x, by_path)

        doubled = Selection(double(chosen.selected_by_path), chosen.remainder).deselect()
        np.testing.assert_allclose(doubled["a"], 2 * tree["a"])
        assert doubled["b"] == "static text"
        grads = jax.grad(
            lambda values: (
                chosen.select_and_set_by_path({(): 1}) and values[(DictKey("a"),)] ** 2
            ).sum()
        )(chosen.get_by_path())
        np.testing.assert_allclose(grads[(DictKey("a"),)], 2 * tree["a"])

    def test_not_a_sequence_and_falsy_when_empty(self):
        selection = select([1]).at_instances_of(str)
        assert not selection
        assert selection.is_empty()
        with pytest.raises(TypeError):
            iter(selection)
        with pytest.raises(TypeError):
            selection[0]
        with pytest.raises(AttributeError, match="no attribute 'selected'"):
            selection.selected

    def test_repr_shows_the_fields(self):
        by_path = OrderedDict({(): 1})  # its own repr depends on the version of Python
        hole = "SelectionHole(path=())"
        assert repr(select(1)) == f"Selection(selected_by_path={by_path}, remainder={hole})"

    def test_colliding_keys_are_an_error(self):
        @pytree_dataclass
        class Colliding(Struct):
            a: Any
            b: Any

            def key_for_field(self, field_name):
                return GetAttrKey("same")

        selection = select(Colliding(1, 2)).at_children()
        assert selection.set(0) == Colliding(0, 0)  # places do not depend on keys
        with pytest.raises(ValueError, match=r"the key path \.same.*key_for_field.*Colliding"):
            selection.get_keypaths()


class TestQueries:
    def test_all(self):
        selection = select({"b": 1, "a": [2, 3]}).at_children()
        assert selection.count() == len(selection) == 2
        assert selection.get_sequence() == ([2, 3], 1)  # flatten order
        assert selection.get_keypaths() == ((DictKey("a"),), (DictKey("b"),))
        by_path = selection.get_by_path()
        assert isinstance(by_path, OrderedDict)
        by_path.clear()  # the caller's own
        assert selection.count() == 2
        assert select(3).get() == 3

    def test_assert_count_is(self):
        selection = select([1, 2]).at_children()
        assert selection.assert_count_is(2) is selection
        with pytest.raises(
            AssertionError, match=r"select\(list\).at_children\(\) must select exactly 3"
        ):
            selection.assert_count_is(3)

    @pytest.mark.parametrize(
        "fails, parts",
        [
            (
                lambda s: s.required(),
                ["at least one node, it selects 0", "1 Net, the first at root"],
            ),
            (lambda s: s.exactly(2), ["exactly 2 nodes, it selects 0"]),
            (lambda s: s.get(), ["exactly one node, it selects 0"]),
            (lambda s: s.at(lambda b: b.w).required(), [".at_instances_of(Boxx).at(<lambda>)"]),
        ],
    )
    def test_required_tells_chain_and_near_misses(self, fails, parts):
        class Boxx(Box):
            pass

        Boxx.__qualname__ = "Boxx"
        with pytest.raises(SelectionCountError) as info:
            fails(select(net()).at_instances_of(Boxx))
        for part in [
            *parts,
            "select(Net).at_instances_of(Boxx)",
            "Nearest there: instances of Box (3)",
        ]:
            assert part in str(info.value)

    def test_near_paths_and_labels(self):
        with pytest.raises(SelectionCountError, match=r"Nearest there: .*\.parts\[0\]\.w"):
            select(net()).at_path_pattern("partz[0].w").required()
        with pytest.raises(SelectionCountError, match=r"Nearest there: .*\.head"):
            select(net()).at_keypaths([(GetAttrKey("heed"),)]).required()
        model = [Parameter(label="decoder.query", value=1.0)]
        with pytest.raises(SelectionCountError, match=r"labels decoder\.query"):
            select(model).at_label_pattern("decoder.qery").required()
        assert select(model).at_label_pattern("decoder.query").required().count() == 1  # the repair

    def test_reads_well_in_a_chain(self):
        edited = select(net()).at_instances_of(Box).exactly(3).at(lambda b: b.w).required().set(0)
        assert edited.parts[0] == Box(0)

    def test_count_errors_show_where_the_nodes_are(self):
        with pytest.raises(
            SelectionCountError, match=r"They are at \.parts\[0\], .*parts\[2\]\[0\]\."
        ):
            select(net()).at_instances_of(Box).get()


class TestEdits:
    def test_set_and_apply(self):
        selection = select([1, (2, "x")]).at_instances_of(int)
        assert selection.set(0) == [0, (0, "x")]
        assert selection.apply(lambda x: -x) == [-1, (-2, "x")]
        assert selection.apply(lambda path, x: jax.tree_util.keystr(path), with_keypath=True) == [
            "[0]",
            ("[1][0]", "x"),
        ]
        assert selection.apply_with_selected_index(lambda i, x: (i, x)) == [(0, 1), ((1, 2), "x")]

    def test_keep_selected(self):
        selection = select([1, (2, "x")]).at_instances_of(int)
        kept = selection.apply(lambda x: [x, x], keep_selected=True)
        assert kept.get_keypaths() == selection.get_keypaths()
        assert kept.remainder == selection.remainder
        assert kept.at_children().set(0) == [[0, 0], ([0, 0], "x")]
        indexed = selection.apply_with_selected_index(lambda i, x: i, keep_selected=True)
        assert indexed.get_sequence() == (0, 1)

    def test_untouched_parts_are_shared(self):
        tree = net()
        edited = select(tree).at(lambda t: t.parts[0].w).set(9)
        assert edited.parts[0] == Box(9)
        assert edited.parts[1] is tree.parts[1]
        assert edited.parts[2] is tree.parts[2]
        assert tree == net()
        assert select(tree).at_instances_of(str).set(0) is tree  # an edit of nothing

    def test_dictionaries_keep_their_order(self):
        edited = select({"b": 1, "a": 2}).at(lambda t: t["a"]).set(3)
        assert list(edited.items()) == [("b", 1), ("a", 3)]

    def test_replacements_are_not_interpreted(self):
        hole = SelectionHole((SequenceKey(0),))
        assert select([1, 2]).at(lambda t: t[1]).set(hole) == [1, hole]
        assert by_hand(select([1, 2]).at(lambda t: t[1])).set(hole) == [1, hole]

    def test_exceptions_of_the_function_propagate(self):
        with pytest.raises(ZeroDivisionError):
            select([1, 0]).at_children().apply(lambda x: 1 / x)

    def test_set_by_path(self):
        selection = select([1, 2]).at_children()
        first, second = selection.get_keypaths()
        assert selection.set_by_path({first: "a", second: "b"}) == ["a", "b"]
        assert selection.set_by_path(lambda path: path[0].idx) == [0, 1]

        class CallableMapping(dict):
            def __call__(self, path):
                raise AssertionError("a mapping is a mapping")

        assert selection.set_by_path(CallableMapping({first: 3, second: 4})) == [3, 4]

    @pytest.mark.parametrize("error", [KeyError, ValueError, MissingReplacementError])
    def test_set_by_path_errors(self, error):
        selection = select([1, 2]).at_children()
        first, second = selection.get_keypaths()
        with pytest.raises(error, match=r"no replacement for \[1\].*each of: \[0\], \[1\]\."):
            selection.set_by_path({first: 1})
        with pytest.raises(error, match=r"replacement for \['x'\], which is not selected"):
            selection.set_by_path({first: 1, second: 2, (DictKey("x"),): 3})

    def test_set_sequence(self):
        selection = select([1, 2]).at_children()
        assert selection.set_sequence(iter("ab")) == ["a", "b"]
        with pytest.raises(MissingReplacementError, match=r"2 nodes .* 1 replacements; .*\[1\]"):
            selection.set_sequence([1])
        import itertools

        with pytest.raises(MissingReplacementError, match="there are more replacements"):
            selection.set_sequence(itertools.count())
        assert selection.set_sequence(itertools.islice(itertools.count(), 2)) == [
            0,
            1,
        ]  # the repair

    def test_select_and_set_by_path(self):
        tree = {"a": [1, {"x": 2}], "b": [3, {"x": 4}]}
        replacements = {
            (SequenceKey(1),): "one",
            (SequenceKey(1), DictKey("x")): "below a replaced node",
            (DictKey("nowhere"),): "absent",
        }
        edited = select(tree).at_children().select_and_set_by_path(replacements)
        assert edited == {"a": [1, "one"], "b": [3, "one"]}

    def test_apply_and_inline(self):
        tree = Net([1, (2, 3), "x"], Point([4], 5))
        selection = select(tree).at(
            lambda t: (t.parts[0], t.parts[1][1], t.head.x[0]), multiple=True
        )
        assert selection.apply_and_inline(lambda x: [x] * 2) == Net(
            [1, 1, (2, 3, 3), "x"], Point([4, 4], 5)
        )
        assert selection.remove_from_parent() == Net([(2,), "x"], Point([], 5))
        assert select(["a"]).at_children().apply_and_inline(lambda x: "bc") == ["b", "c"]
        paths = []
        select([1, 2]).at_children().apply_and_inline(
            lambda path, x: paths.append(path[0].idx) or [x, x], with_keypath=True
        )
        assert paths == [0, 1]

    @pytest.mark.parametrize(
        "selection, parent",
        [
            (select([1]), "root is nothing, it is the root"),
            (select(Box(1)).at(lambda b: b.w), r"\.w is pz_core_trees.Box"),
            (select(Point(1, 2)).at(lambda p: p.x), r"\.x is pz_core_trees.Point"),
            (select({"a": 1}).at_children(), r"\['a'\] is dict"),
        ],
    )
    def test_not_in_a_sequence(self, selection, parent):
        for method in (
            lambda: selection.apply_and_inline(lambda x: []),
            selection.remove_from_parent,
            lambda: selection.insert_after(0),
            lambda: selection.insert_before(0),
        ):
            with pytest.raises(
                ValueError, match=rf"item of a list or tuple, but the parent of {parent}"
            ):
                method()
        grouped = selection.insert_after("new", group=tuple)  # the repair that insertion advises
        assert "new" in jax.tree.leaves(grouped)

    def test_inline_result_must_be_iterable(self):
        with pytest.raises(TypeError, match="not iterable"):
            select([1]).at_children().apply_and_inline(lambda x: x)

    def test_list_subclasses_are_leaves(self):
        class MyList(list):
            pass

        tree = [MyList([1]), 2]
        assert select(tree).at_instances_of(int).remove_from_parent() == [MyList([1])]

    def test_insert(self):
        tree = [1, [2, 3], (4,)]
        selection = select(tree).at(lambda t: (t[0], t[1][1], t[2][0]), multiple=True)
        assert selection.insert_after("n") == [1, "n", [2, 3, "n"], (4, "n")]
        assert selection.insert_before("n") == ["n", 1, [2, "n", 3], ("n", 4)]
        for inserted in (
            selection.insert_after("n", and_select=True),
            selection.insert_before("n", and_select=True),
        ):
            assert inserted.get_sequence() == ("n", "n", "n")
            assert inserted.remove_from_parent() == tree

    def test_insert_with_group(self):
        tree = Net([Box(1)], head=Box(2))
        selection = select(tree).at_instances_of(Box)
        inserted = selection.insert_after("n", and_select=True, group=lambda nodes: Net(nodes))
        assert inserted.deselect() == Net([Box(1), "n"], head=Net([Box(2), "n"]))
        assert inserted.get_sequence() == ("n", "n")
        assert select(1).insert_before(1, and_select=True, group=list).get_keypaths() == (
            (SequenceKey(0),),
        )
        assert select(1).insert_after(1, and_select=True, group=list).get_keypaths() == (
            (SequenceKey(1),),
        )

    def test_group_must_hold_the_value(self):
        selection = select(Box(1)).at(lambda b: b.w)
        with pytest.raises(ValueError, match="`group` returned a str that does not contain"):
            selection.insert_after("n", and_select=True, group=str)
        assert selection.insert_after("n", group=str) == Box("[1, 'n']")


class TestAt:
    def test_leaves_and_nodes(self):
        tree = net()
        cases = {
            "[0]": lambda t: t.parts[0],
            "[0].w": lambda t: t.parts[0].w,
            "": lambda t: t.parts,
            "[2][1]['a']": lambda t: t.parts[2][1]["a"],
            "[2][1]['a'][1]": lambda t: t.parts[2][1]["a"][1],
        }
        for text, accessor in cases.items():
            selection = select(tree).at(accessor)
            assert jax.tree_util.keystr(selection.get_keypaths()[0]) == f".parts{text}"
            assert (
                selection.get()
                is jax.tree_util.tree_leaves([accessor(tree)], is_leaf=lambda x: True)[0][0]
            )
        assert select(tree).at(lambda t: t).get() is tree
        assert select(tree).at(lambda t: t.head).get() is None

    def test_childless_and_shared_objects_are_told_apart(self):
        shared = [1]
        tree = {"a": None, "b": None, "c": (), "d": (), "e": [shared, shared], "f": Empty()}
        for key in "abcdf":
            assert select(tree).at(lambda t, key=key: t[key]).get_keypaths() == ((DictKey(key),),)
        assert select(tree).at(lambda t: t["e"][1]).set(0)["e"] == [shared, 0]

    def test_static_fields_methods_and_isinstance(self):
        def accessor(t):
            assert t.name == "net"
            assert isinstance(t, Net)
            assert t.__class__ is Net
            assert t.attributes_dict().keys() == {"parts", "head", "name"}
            return next(part for part in t.parts if isinstance(part, tuple))[0]

        assert select(net()).at(accessor).get() == Box(3)

    @pytest.mark.parametrize(
        "accessor, path",
        [
            (lambda t: jax.tree.leaves(t)[1], ".parts[1].w"),
            (lambda t: next(p for p in t.parts if type(p) is Box), ".parts[0]"),
            (lambda t: t.select().at_instances_of(Box).pick_nth_selected(-1).get(), ".parts[2][0]"),
            (lambda t: jax.tree.map(lambda x: x, t.parts)[0].w, ".parts[0].w"),
        ],
    )
    def test_accessors_that_need_the_whole_tree(self, accessor, path):
        assert jax.tree_util.keystr(select(net()).at(accessor).get_keypaths()[0]) == path

    @pytest.mark.parametrize(
        "tree",
        [OwnLayout(1, [2]), KeylessNode(1, [2]), Point(1, [2]), WithKeys(1, [2]), WithInit(1)],
    )
    def test_every_kind_of_node(self, tree):
        for child in jax.tree.leaves(tree):
            assert (
                select(tree).at(lambda t, child=child: jax.tree.leaves(t)[-1]).get()
                == (jax.tree.leaves(tree)[-1])
            )
        if hasattr(tree, "a"):
            assert select(tree).at(lambda t: t.a).set(7).a == 7

    def test_multiple(self):
        selection = select([1, 2, 3]).at(lambda t: (t[2], t[0], t[2]), multiple=True)
        assert selection.get_sequence() == (1, 3)
        assert select([1, 2]).at(lambda t: iter(t), multiple=True).count() == 2
        assert select([1]).at(lambda t: [], multiple=True).is_empty()

    def test_multiple_none_warns(self):
        with pytest.warns(UserWarning, match="multiple=True"):
            selection = select([1, 2]).at(lambda t: {"x": t[0]}.values())
        assert selection.get() == 1
        assert select([1, 2]).at(lambda t: [t[0]], multiple=True).get() == 1  # the repair

    @pytest.mark.parametrize(
        "accessor, multiple, text",
        [
            (lambda t: 5, None, "at root: the accessor must return one node .* 5 is none"),
            (lambda t: [t[0]], False, "must return one node"),
            (lambda t: [t[0], 7], None, "must return one node"),
            (lambda t: [t[0], 7], True, "an iterable of nodes.* 7 is none"),
            (lambda t: t[0], True, "must return an iterable of nodes, it returned <leaf"),
            (lambda t: [t, t[0]], True, r"\[0\] lies inside root"),
        ],
    )
    def test_errors(self, accessor, multiple, text):
        with pytest.raises(ValueError, match=text):
            select([1, 2]).at(accessor, multiple=multiple)

    def test_accessor_exceptions_propagate(self):
        with pytest.raises(AttributeError, match="wieght"):
            select(net()).at(lambda t: t.wieght)
        with pytest.raises(AttributeError):
            select(net()).at(lambda t: t.parts[0].w.shape)
        with pytest.raises(IndexError):
            select(net()).at(lambda t: t.parts[7])

    def test_a_node_that_validates_its_children(self):
        partial = jax.tree_util.Partial(max, 1)
        with pytest.raises(ValueError, match=r"_nodes|validates its children|Select that node"):
            select([_Validating(1)]).at(lambda t: t[0].child)
        assert select([_Validating(1)]).at_instances_of(_Validating).count() == 1  # the repair
        with pytest.raises(ValueError, match="Partial cannot be selected") as info:
            select(partial).at_children().remainder
        assert info.value.__cause__ is not None


@pytree_dataclass
class _Validating:
    child: Any

    def tree_flatten_with_keys(self):
        return [(GetAttrKey("child"), self.child)], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        (child,) = children
        if not isinstance(child, int):
            raise TypeError("not an int")
        return cls(child)


class TestRefinement:
    def test_leaves_children_childless(self):
        tree = [1, None, [], (2, Empty())]
        assert select(tree).at_pytree_leaves().get_sequence() == (1, 2)
        assert select(tree).at_childless().get_sequence() == (1, None, [], 2, Empty())
        assert select(tree).at_children().get_sequence() == tuple(tree)
        assert select(tree).at_children().at_children().get_sequence() == (2, Empty())
        assert select(None).at_childless().count() == 1
        assert select(None).at_pytree_leaves().count() == 0
        assert select(3).at_children().is_empty()

    def test_where(self):
        selection = select([1, [2], 3]).at_instances_of(int)
        assert selection.where(lambda x: x - 1).get_sequence() == (2, 3)
        assert selection.where(lambda path, x: len(path) == 2, with_keypath=True).get() == 2

    def test_predicate_errors_propagate_with_the_place(self):
        selection = select([1, [0]]).at_instances_of(int)
        for refine in (selection.where, select([1, [0]]).at_subtrees_where):
            with pytest.raises(ZeroDivisionError) as info:
                refine(lambda x: False if x == [0] or isinstance(x, list) else bool(1 / x))
            assert any("[1][0]" in note for note in info.value.__notes__)

    def test_subtrees_where(self):
        tree = [1, [2, [3]], None]
        assert select(tree).at_subtrees_where(lambda x: x == [2, [3]]).get() == [2, [3]]
        assert select(tree).at_subtrees_where(lambda x: x is None).count() == 1
        assert select(tree).at_subtrees_where(lambda x: True).get() is tree
        innermost = select(tree).at_subtrees_where(lambda x: isinstance(x, list), innermost=True)
        assert innermost.get() == [3]

    def test_predicates_are_called_once_in_pre_order(self):
        seen = []
        tree = [1, [2, "hit"], (3,)]
        for innermost, expected in ((False, [tree, 1, [2, "hit"], (3,), 3]), (True, None)):
            seen.clear()
            select(tree).at_subtrees_where(
                lambda x: bool(seen.append(x)) or x == [2, "hit"], innermost=innermost
            )
            assert seen == (expected or [tree, 1, [2, "hit"], 2, "hit", (3,), 3])

    def test_key_paths_for_predicates(self):
        seen = []
        selection = select({"a": [1]}).at(lambda t: t["a"])
        for absolute in (False, True):
            selection.at_subtrees_where(
                lambda path, x: bool(seen.append(jax.tree_util.keystr(path))),
                with_keypath=True,
                absolute_keypath=absolute,
            )
        assert seen == ["", "[0]", "['a']", "['a'][0]"]

    @pytest.mark.parametrize("error", [TypeError, ValueError, SelectionPredicateError])
    @pytest.mark.parametrize("result", [1, None, np.bool_(True), jnp.ones(2)], ids=str)
    def test_predicate_must_return_a_bool(self, error, result):
        with pytest.raises(error, match=r"must return True or False, at root it returned .*bool\("):
            select([1]).at_subtrees_where(lambda x: result)
        assert (
            select([1]).at_subtrees_where(lambda x: bool(np.all(result))) is not None
        )  # the repair

    def test_instances_of(self):
        tree = [1, "a", None, 2.0, Box([3])]
        assert select(tree).at_instances_of(int).get_sequence() == (1, 3)
        assert select(tree).at_instances_of((str, float)).get_sequence() == ("a", 2.0)
        assert select(tree).at_instances_of(str | float).count() == 2
        assert select(tree).at_instances_of(type(None)).count() == 1
        assert select(tree).at_instances_of(Struct).get() == Box([3])
        assert select([1]).at_instances_of(int, innermost=True).get() == 1
        nested = Net([Net([])])
        assert select(nested).at_instances_of(Net, innermost=True).get() == Net([])

    def test_equal_to(self):
        tree = [1, 1.0, True, (1,), np.ones(1), jnp.ones(1), {"x": jnp.ones(2)}]
        assert select(tree).at_equal_to(1).count() == 4
        assert select(tree).at_equal_to((1,)).count() == 1
        assert select(tree).at_equal_to({"x": 3}).is_empty()  # ambiguous comparisons are skipped
        for array in (np.ones(2), jnp.ones(2)):
            with pytest.raises(
                ValueError, match=r"template must not be an array.*at_subtrees_where"
            ):
                select(tree).at_equal_to(array)
        assert select([np.ones(2)]).at_subtrees_where(
            lambda x: isinstance(x, np.ndarray) and bool((x == np.ones(2)).all())
        )  # the repair

    def test_keypaths(self):
        tree = {"a": [1, 2], "b": [3, 4]}
        paths = [
            (SequenceKey(0),),
            (SequenceKey(9),),
            (DictKey("a"),),
            (SequenceKey(0), DictKey("z")),
        ]
        assert select(tree).at_children().at_keypaths(iter(paths)).get_sequence() == (1, 3)
        assert select(tree).at_keypaths({()}).get() is tree
        assert select(tree).at_keypaths([]).is_empty()
        assert select(WithKeys(1, 2)).at_keypaths([(LoudKey("a"),)]).get() == 1

    @pytest.mark.parametrize(
        "n, picked",
        [
            (0, "a"),
            (-1, "d"),
            (np.int64(1), "b"),
            (np.array(2), "c"),
            ([3, 0, 0, -4], "ad"),
            (np.array([1, 2]), "bc"),
            (slice(1, None), "bcd"),
            (slice(None, None, -2), "bd"),
            (slice(9, 12), ""),
            ((), ""),
            (True, "b"),
            (range(2), "ab"),
        ],
        ids=str,
    )
    def test_pick_nth(self, n, picked):
        assert select(list("abcd")).at_children().pick_nth_selected(n).get_sequence() == tuple(
            picked
        )

    def test_pick_nth_errors(self):
        selection = select(list("abcd")).at_children()
        with pytest.raises(
            IndexError, match=r"number 4 is out of range, since 4 nodes .*from -4 to 3"
        ):
            selection.pick_nth_selected([0, 4])
        assert selection.pick_nth_selected(slice(0, 5)).count() == 4  # the repair
        with pytest.raises(TypeError, match="float"):
            selection.pick_nth_selected(1.0)

    def test_invert(self):
        tree = {"p": [1, 2], "q": 3, "r": None}
        assert select(tree).at(lambda t: t["p"][0]).invert().get_sequence() == (2, 3, None)
        assert select(tree).invert().is_empty()
        assert select(tree).at_instances_of(str).invert().get() is tree
        both = select({"p": [1, 2], "q": 3}).at(lambda t: t["p"]).at_children()
        assert both.invert().invert().get_sequence() == ([1, 2],)

    def test_refine(self):
        selection = select([Box([1, 2]), Box([3])]).at_instances_of(Box)
        assert selection.refine(lambda b: select(b).at_instances_of(int)).set(0) == [
            Box([0, 0]),
            Box([0]),
        ]
        changed = selection.refine(lambda b: select(Net(b.w)).at(lambda n: n.parts))
        assert changed.deselect() == [Net([1, 2]), Net([3])]
        assert changed.get_keypaths()[0] == (SequenceKey(0), PARTS)
        with pytest.raises(ValueError, match=r"must be a Selection, at \[0\] there is a int"):
            selection.refine(lambda b: 1)
        with pytest.raises(RuntimeError, match="mine"):
            selection.refine(lambda b: (_ for _ in ()).throw(RuntimeError("mine")))

    def test_flatten_selected_selections(self):
        tree = [select([1, 2]).at_children(), select(3)]
        merged = select(tree).at_children().flatten_selected_selections()
        assert merged.get_sequence() == (1, 2, 3)
        assert merged.deselect() == [[1, 2], 3]
        with pytest.raises(ValueError, match="must be a Selection"):
            select([1]).flatten_selected_selections()

    def test_invalid_pytrees(self):
        with pytest.raises(ValueError, match="dict cannot be taken apart") as info:
            select([{"a": 1, 2: 3}]).at_instances_of(int)
        assert info.value.__cause__ is not None
        assert select([{"a": 1, "2": 3}]).at_instances_of(int).count() == 2  # the repair


class TestAncestors:
    tree = Net([Box([1, 2]), Box(3)], head=4)

    def test_parents(self):
        ints = select(self.tree).at_instances_of(int)
        assert ints.pick_nth_selected([0, 1]).at_parents().get() == [1, 2]
        with pytest.raises(ValueError, match=r"at_parents: .* lies inside root.*nested="):
            ints.at_parents()
        assert ints.at_parents(nested="outermost").get() is self.tree
        assert ints.at_parents(nested="innermost").get_sequence() == ([1, 2], Box(3))
        assert select(1).at_parents().is_empty()

    def test_ancestors(self):
        ints = select(self.tree).at_instances_of(int)
        boxes = ints.at_ancestors_where(lambda x: isinstance(x, Box))
        assert boxes.get_sequence() == (Box([1, 2]), Box(3))
        assert boxes.get_keypaths()[0] == (PARTS, SequenceKey(0))
        with pytest.raises(ValueError, match=r"at_ancestors_where: .* lies inside"):
            ints.at_ancestors_where(lambda x: isinstance(x, Struct))


class TestAlgebra:
    def test_operators(self):
        tree = [1, "a", 2.0, 3]
        ints, numbers = (select(tree).at_instances_of(c) for c in (int, (int, float)))
        strings = select(tree).at_instances_of(str)
        assert (strings | ints).get_sequence() == (1, "a", 3)
        assert (numbers & ints).get_sequence() == (1, 3)
        assert (numbers - ints).get() == 2.0
        assert (ints | ints) == ints
        assert by_hand(ints) & numbers == ints  # equal structure, identical leaves

    def test_overlap(self):
        whole = select([1, [2]])
        for operator, symbol in (("__or__", "|"), ("__and__", "&"), ("__sub__", "-")):
            with pytest.raises(
                ValueError, match=rf"selection {re.escape(symbol)} .*\[0\] lies inside root"
            ):
                getattr(whole, operator)(whole.at_children())

    def test_other_trees(self):
        with pytest.raises(ValueError, match="must select in the same tree"):
            select([1.5]) | select([object()])
        with pytest.raises(TypeError, match="must be selections, got a list"):
            select([1]) | [1]


class TestPatterns:
    tree = Net(
        [Box({"q": 1, "k": 2}), [Box({"q": 3})], Box({"q": (4, 5)})], head=WithKeys(6, {7: 8})
    )

    @pytest.mark.parametrize(
        "pattern, found",
        [
            ("parts[0].w['q']", [1]),
            (".parts[*].w['q']", [1, (4, 5)]),
            ("parts.**['q']", [1, 3, (4, 5)]),
            ("**['q']", [1, 3, (4, 5)]),
            ("**.w['?']", [2, 1, 3, (4, 5)]),
            ("parts[-1].w['q'][1]", [5]),
            ("parts[1:].**['q']", [3, (4, 5)]),
            ("parts[::2].w[*]", [2, 1, (4, 5)]),
            ("head.a", [6]),
            ("h*.?[7]", [8]),
            ("head.*", [6, {7: 8}]),
            ("nothing", []),
            ("parts[7]", []),
            ("head.b['7']", []),
        ],
    )
    def test_paths(self, pattern, found):
        assert list(select(self.tree).at_path_pattern(pattern).get_sequence()) == found

    def test_the_empty_pattern_and_any_steps_select_the_root(self):
        for pattern in ("", "**"):
            assert select(self.tree).at_path_pattern(pattern).get() is self.tree

    def test_relative_to_the_selection(self):
        boxes = select(self.tree).at_instances_of(Box)
        assert boxes.at_path_pattern("w['q']").get_sequence() == (1, 3, (4, 5))

    def test_keyless_nodes(self):
        assert select(KeylessNode(1, 2)).at_path_pattern("[1]").get() == 2

    @pytest.mark.parametrize(
        "pattern, rest",
        [("a..b", "'..b'"), ("a b", "' b'"), ("a[", r"'\['"), ("[0]a", "'a'"), ("[1", r"'\[1'")],
    )
    def test_errors(self, pattern, rest):
        with pytest.raises(
            PathPatternError, match=r"cannot read .*at position .*body.sublayers"
        ) as info:
            select(self.tree).at_path_pattern(pattern)
        assert re.search(rest, str(info.value))

    def test_labels(self):
        model = {
            "a": Parameter(label="block_0.query", value=1.0),
            "b": [
                Parameter(label="block_1.query", value=2.0),
                StateVariable(0, label=("cache", 1)),
            ],
            "c": Parameter(label="block_1.key", value=2.0).freeze(),
            "d": Parameter(label="head.query", value=2.0).get_slot(),
        }
        by_label = select(model).at_label_pattern
        assert by_label("*.query").count() == 3
        assert by_label("block_?.key").get() is model["c"]
        assert by_label(re.compile("^block_1")).count() == 2
        assert by_label("*cache*").get() is model["b"][1]
        assert by_label("query").is_empty()

    def test_brackets_in_labels_are_ordinary_characters(self):
        model = [Parameter(label="blocks[0].w", value=1.0), Parameter(label="blocks0.w", value=1.0)]
        assert select(model).at_label_pattern("blocks[0].*").get() is model[0]


class TestDisplay:
    @pytest.mark.parametrize("method", ["show_selection", "show_value"])
    def test_needs_a_front_end(self, method, monkeypatch):
        monkeypatch.setattr(pz_core.display_hook, "_registered", [])
        with pytest.raises(ImportError, match="pz-viz"):
            getattr(select(1), method)()

    def test_calls_the_front_end(self):
        calls = []

        class FrontEnd:
            def show_selection(self, selection, *, ignore_exceptions):
                calls.append(("selection", selection, ignore_exceptions))

            def show_value(self, selection, *, ignore_exceptions):
                calls.append(("value", selection, ignore_exceptions))

        unregister = pz_core.display_hook.register_selection_display(FrontEnd())
        try:
            selection = select(1)
            selection.show_selection()
            selection.show_value(ignore_exceptions=True)
        finally:
            unregister()
        assert calls == [("selection", selection, False), ("value", selection, True)]
