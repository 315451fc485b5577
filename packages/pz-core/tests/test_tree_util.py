"""One-level flattening, pretty key paths, ordering across types."""

import dataclasses
import operator
import random
from collections import OrderedDict, defaultdict

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey
from pz_core_trees import Box, Empty, KeylessNode, LoudKey, Net, Point, WithKeys, trees

from pz_core import AutoOrderedAcrossTypes, AutoStateVarLabel, ScopedStateVarLabel
from pz_core.tree_util import CustomGetAttrKey, pretty_keystr, tree_flatten_exactly_one_level

pytestmark = pytest.mark.smoke


class TestOneLevel:
    @pytest.mark.parametrize("leaf", [1, "a", object(), jax.ShapeDtypeStruct((), float)])
    def test_leaves(self, leaf):
        assert tree_flatten_exactly_one_level(leaf) is None

    @pytest.mark.parametrize("node", [None, (), [], {}, Empty(), OrderedDict()], ids=repr)
    def test_childless_nodes(self, node):
        pairs, treedef = tree_flatten_exactly_one_level(node)
        assert pairs == []
        assert treedef.unflatten([]) == node

    @pytest.mark.parametrize(
        "node, keys",
        [
            ([1, None], [SequenceKey(0), SequenceKey(1)]),
            ({"b": 1, "a": [2]}, [DictKey("a"), DictKey("b")]),
            (defaultdict(list, {"b": 1}), [DictKey("b")]),
            (Point(1, 2), [GetAttrKey("x"), GetAttrKey("y")]),
            (Net([1]), [GetAttrKey("parts"), GetAttrKey("head")]),
            (KeylessNode(1, 2), [FlattenedIndexKey(0), FlattenedIndexKey(1)]),
            (WithKeys(1, 2), [LoudKey("a"), LoudKey("b")]),
        ],
        ids=lambda x: type(x).__name__,
    )
    def test_keys_and_round_trip(self, node, keys):
        pairs, treedef = tree_flatten_exactly_one_level(node)
        assert [key for key, _ in pairs] == keys
        rebuilt = treedef.unflatten([child for _, child in pairs])
        assert rebuilt == node
        assert type(rebuilt) is type(node)

    def test_children_by_identity(self):
        child = [1]
        assert tree_flatten_exactly_one_level((child, None))[0][0][1] is child

    def test_unsortable_dictionary(self):
        with pytest.raises(ValueError, match=r"[Cc]omparator"):
            tree_flatten_exactly_one_level({"a": 1, 2: 3})


class TestPrettyKeystr:
    @pytest.mark.parametrize(
        "tree, text",
        [
            (Net([Box(1)]), "Net.parts[0]/Box.w"),
            ({"a": Box(1)}, "['a']/Box.w"),
            (KeylessNode(Box(1)), "KeylessNode[<flat index 0>]/Box.w"),
            (WithKeys(1), "WithKeys.a"),
            (3, ""),
        ],
    )
    def test_text(self, tree, text):
        [(path, _)] = jax.tree_util.tree_leaves_with_path(tree)
        assert pretty_keystr(path, tree) == text

    def test_unknown_key(self):
        with pytest.raises(KeyError, match=r"GetAttrKey\(name='x'\).*in a Box.*'w'"):
            pretty_keystr((GetAttrKey("x"),), Box(1))

    def test_too_long(self):
        with pytest.raises(AssertionError, match=r"first 1 keys.*leaf of type int"):
            pretty_keystr((GetAttrKey("w"), GetAttrKey("w")), Box(1))

    def test_custom_key(self):
        assert str(CustomGetAttrKey("a")) == ".a"
        assert CustomGetAttrKey("a") != GetAttrKey("a")
        assert jax.tree_util.keystr((LoudKey("a"),)) == ".a"

    @given(trees)
    def test_ends_with_the_key_itself(self, tree):
        for path, _ in jax.tree_util.tree_leaves_with_path(tree):
            assert pretty_keystr(path, tree).endswith(str(path[-1]) if path else "")


@dataclasses.dataclass(frozen=True)
class First(AutoOrderedAcrossTypes):
    a: object
    b: object = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True)
class Second(AutoOrderedAcrossTypes):
    a: object


values = st.one_of(
    st.builds(First, st.integers(0, 3)),
    st.builds(Second, st.one_of(st.none(), st.integers(0, 3), st.text(max_size=1))),
    st.builds(
        ScopedStateVarLabel,
        st.one_of(st.none(), st.just("g"), st.just(("g", 1))),
        st.integers(0, 2),
    ),
    st.builds(AutoStateVarLabel, st.integers(0, 3)),
)


class TestAutoOrder:
    @given(st.lists(values, max_size=8))
    def test_total_order(self, items):
        shuffled = list(items)
        random.Random(0).shuffle(shuffled)
        assert sorted(items) == sorted(shuffled)
        for a in items:
            for b in items:
                assert (a < b) + (a > b) + (a == b) == 1
                assert (a <= b) == (a < b or a == b)
                assert (a >= b) == (a > b or a == b)

    @pytest.mark.parametrize("other", ["z", ("z",), ""])
    def test_after_strings_and_tuples(self, other):
        item = First(0)
        assert item > other
        assert item >= other
        assert other < item
        assert not item < other

    def test_other_types(self):
        with pytest.raises(TypeError, match="not supported"):
            operator.lt(First(0), 3)

    def test_serves_as_dictionary_keys(self):
        tree = {First(1): 1, Second(None): 2, Second("a"): 3, "name": 4}
        assert sorted(jax.tree.leaves(tree)) == [1, 2, 3, 4]

    def test_not_a_dataclass(self):
        class Plain(AutoOrderedAcrossTypes):
            pass

        with pytest.raises(AssertionError, match="Plain is none"):
            operator.lt(Plain(), Plain())

        @dataclasses.dataclass(frozen=True)  # the repair
        class Repaired(AutoOrderedAcrossTypes):
            pass

        assert Repaired() <= Repaired()
