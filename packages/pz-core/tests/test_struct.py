"""Structs: declaration, construction, flattening."""

import abc
import copy
import dataclasses
import inspect
import pickle
import typing
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.tree_util import GetAttrKey
from pz_core_trees import (
    Box,
    Empty,
    Hyper,
    Net,
    OwnLayout,
    StaticOnly,
    WithInit,
    WithKeys,
    static,
    trees,
)

import pz_core
from pz_core import Struct, pytree_dataclass
from pz_core.struct import (
    PYTREE_DATACLASS_INFO_ATTR,
    PyTreeDataclassSafetyError,
    StructStaticMetadata,
    is_pytree_dataclass_type,
    is_pytree_node_field,
)

pytestmark = pytest.mark.smoke


class TestDeclaration:
    def test_forms_of_the_decorator(self):
        for decorator in (pytree_dataclass, pytree_dataclass(), pytree_dataclass(kw_only=True)):
            decorated = decorator(type("C", (Struct,), {"__annotations__": {"a": int}}))
            assert is_pytree_dataclass_type(decorated)
            assert jax.tree.map(lambda x: x + 1, decorated(a=1)) == decorated(a=2)

    def test_returns_the_same_class(self):
        class C(Struct):
            a: int

        assert pytree_dataclass(C) is C
        assert PYTREE_DATACLASS_INFO_ATTR in vars(C)

    def test_is_pytree_dataclass_type(self):
        class Undecorated(Box):
            pass

        assert is_pytree_dataclass_type(Box)
        for other in (Undecorated, Struct, Box(1), int, 3, None):
            assert not is_pytree_dataclass_type(other)

    def test_is_pytree_node_field(self):
        assert [is_pytree_node_field(f) for f in dataclasses.fields(Box)] == [True, False]

    def test_signature_is_that_of_the_constructor(self):
        assert list(inspect.signature(Box).parameters) == ["w", "tag"]
        assert str(inspect.signature(WithInit)).startswith("(a: ")

    def test_options_are_passed_on(self):
        @pytree_dataclass(eq=False, repr=True, match_args=True)
        class Identity(Struct):
            a: int

        assert Identity(1) != Identity(1)
        assert Identity.__match_args__ == ("a",)
        assert "Identity(a=1)" in repr(Identity(1))

        @pytree_dataclass(order=True)
        class Ordered(Struct):
            a: int

        assert Ordered(1) < Ordered(2)

    def test_generic_and_abstract_bases(self):
        T = TypeVar("T")

        class Base(Struct, Generic[T], abc.ABC):
            @abc.abstractmethod
            def size(self) -> int: ...

        @pytree_dataclass
        class Concrete(Base[int]):
            a: T

            def size(self) -> int:
                return 1

        assert Concrete(1).size() == 1

        @pytree_dataclass
        class Incomplete(Base[int]):
            pass

        with pytest.raises(TypeError, match=r"Incomplete.*size"):
            Incomplete()

    def test_a_field_named_cls(self):
        @pytree_dataclass
        class Tricky(Struct):
            cls: Any
            self: Any = 2

        tree = jax.tree.map(lambda x: x + 1, Tricky.from_attributes(cls=1, self=2))
        assert tree.cls == 2
        assert tree.attributes_dict() == {"cls": 2, "self": 3}

    def test_class_not_derived_from_struct(self):
        assert jax.tree.leaves(OwnLayout(1, 2)) == [2, 1]
        assert jax.tree.map(lambda x: -x, OwnLayout(1, 2)) == OwnLayout(-1, -2)
        assert "OwnLayout(a=1" in repr(OwnLayout(1, 2))


class TestSafetyChecks:
    def test_decorated_twice(self):
        with pytest.raises(ValueError, match="applied twice to Box"):
            pytree_dataclass(Box)

    def test_inherited_fields_must_be_repeated(self):
        with pytest.raises(
            PyTreeDataclassSafetyError, match=r"Child.*\['b'\].*\['a', 'b'\]"
        ) as info:

            @pytree_dataclass
            class Child(_parent()):
                b: int

        assert "has_implicitly_inherited_fields=True" in str(info.value)

        @pytree_dataclass(has_implicitly_inherited_fields=True)  # the first repair
        class Repaired(_parent()):
            b: int

        @pytree_dataclass  # the second
        class Repeated(_parent()):
            a: int
            b: int

        assert Repaired(1, 2).b == Repeated(1, 2).b == 2

    def test_flag_without_need(self):
        with pytest.raises(PyTreeDataclassSafetyError, match="Child inherits no field implicitly"):

            @pytree_dataclass(has_implicitly_inherited_fields=True)
            class Child(_parent()):
                a: int
                b: int

    def test_other_annotations_are_ignored(self):
        @pytree_dataclass
        class C(Struct):
            shared: typing.ClassVar[int] = 3
            _: dataclasses.KW_ONLY
            a: int

        assert jax.tree.leaves(C(a=1)) == [1]

    @pytest.mark.parametrize(
        "repair", [{"overwrite_parent_init": True}, {"init": False}, "write one"], ids=str
    )
    def test_inherited_init_is_not_overwritten(self, repair):
        class Parent(Struct):
            def __init__(self):
                object.__setattr__(self, "a", 5)

        with pytest.raises(PyTreeDataclassSafetyError, match=r"Child inherits.*Parent.__init__"):

            @pytree_dataclass
            class Child(Parent):
                a: int

        if repair == "write one":

            @pytree_dataclass
            class Written(Parent):
                a: int

                def __init__(self):
                    super().__init__()

            assert Written().a == 5
        else:

            @pytree_dataclass(**repair)
            class Chosen(Parent):
                a: int

            assert Chosen(*([7] if "overwrite_parent_init" in repair else [])).a in (5, 7)

    def test_a_plain_dataclass_parents_init_counts_as_custom(self):
        @dataclasses.dataclass(frozen=True)
        class Plain:
            a: int

        with pytest.raises(PyTreeDataclassSafetyError, match=r"Plain.__init__"):

            @pytree_dataclass
            class Child(Plain, Struct):
                a: int

    def test_generated_inits_may_be_replaced_through_a_chain(self):
        @pytree_dataclass(init=False)
        class Child(_parent()):
            a: int

        @pytree_dataclass
        class Grandchild(Child):
            a: int
            b: int

        assert Grandchild(1, 2).b == 2

    def test_missing_pytree_methods(self):
        with pytest.raises(
            AttributeError, match=r"C needs.*tree_flatten_with_keys.*tree_unflatten"
        ):

            @pytree_dataclass
            class C:
                a: int

    def test_name_of_the_proxy_is_taken(self):
        with pytest.raises(ValueError, match="C defines `_MutableInitProxy`"):

            @pytree_dataclass
            class C(Struct):
                a: int
                _MutableInitProxy = None

                def __init__(self):
                    self.a = 1

    def test_a_field_must_not_hide_a_method(self):
        with pytest.raises(
            PyTreeDataclassSafetyError, match=r"'select' of .*C .*`Struct.select`.*select_"
        ):

            @pytree_dataclass
            class C(Struct):
                select: int

    def test_dataclass_errors_propagate(self):
        with pytest.raises(ValueError, match="mutable default"):

            @pytree_dataclass
            class C(Struct):
                a: list = []  # noqa: RUF012

    def test_a_failed_class_is_left_as_it_was(self):
        class C(_parent()):
            b: int

        before = dict(vars(C))
        with pytest.raises(PyTreeDataclassSafetyError):
            pytree_dataclass(C)
        assert dict(vars(C)) == before
        assert pytree_dataclass(has_implicitly_inherited_fields=True)(C)(1, 2).b == 2


def _parent():
    @pytree_dataclass
    class Parent(Struct):
        a: int

    return Parent


class TestAbstractness:
    @pytest.mark.parametrize("args", [(), (1,)])
    def test_undecorated_classes_cannot_be_made(self, args):
        class Undecorated(Struct):
            a: int

        with pytest.raises(TypeError, match=r"Undecorated.*must be decorated"):
            Undecorated(*args)
        with pytest.raises(TypeError, match=r"Undecorated.*must be decorated"):
            Undecorated.from_attributes(a=1)
        assert pytree_dataclass(Undecorated)(1).a == 1

    def test_undecorated_child_of_a_decorated_class(self):
        class Child(Box):
            pass

        with pytest.raises(TypeError, match=r"Child.*must be decorated"):
            Child(1)

    def test_a_standard_dataclass_stays_abstract(self):
        @dataclasses.dataclass(frozen=True)
        class Plain(Struct):
            a: int

        with pytest.raises(TypeError, match=r"Plain.*must be decorated"):
            Plain(1)


class TestHandWrittenInit:
    def test_self_in_init(self):
        seen = {}

        @pytree_dataclass
        class C(Struct):
            a: Any
            cached: Any = None

            def __init__(self, x: int):
                """Makes one."""
                seen["self"], seen["type"] = self, type(self)
                seen["leaves"] = jax.tree.leaves(self)
                with pytest.raises(TypeError, match="unhashable"):
                    hash(self)
                self.helper = 3
                self.a = self.double(x)
                del self.helper

            def double(self, x):
                return 2 * x

        made = C(4)
        assert made.a == 8
        assert seen["self"] is made
        assert seen["type"] is not C
        assert issubclass(seen["type"], C)
        assert seen["leaves"] == [made]
        assert vars(made) == {"a": 8, "cached": None}
        assert (C.__init__.__doc__, list(inspect.signature(C).parameters)) == ("Makes one.", ["x"])
        assert not is_pytree_dataclass_type(seen["type"])
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.a = 3

    def test_field_without_value(self):
        @pytree_dataclass
        class C(Struct):
            a: Any

            def __init__(self):
                pass

        with pytest.raises(
            AttributeError, match=r"C.__init__ left the field 'a'.*self.a = "
        ) as info:
            C()
        assert isinstance(info.value.__cause__, AttributeError)

    def test_defaults_count_as_values(self):
        @pytree_dataclass
        class C(Struct):
            a: Any = 3
            b: list = dataclasses.field(default_factory=list)

            def __init__(self):
                pass

        assert C().attributes_dict() == {"a": 3, "b": []}
        assert C().b is not C().b

    def test_super_chain(self):
        @pytree_dataclass
        class Child(WithInit):
            a: Any
            b: Any
            tag: str = static()
            c: Any = None

            def __init__(self, a):
                super().__init__(a, tag="child")
                self.c = -a

        assert Child(2).attributes_dict() == {"a": 2, "b": [2], "tag": "child", "c": -2}

    def test_inherited_init_must_set_new_fields(self):
        @pytree_dataclass(init=False)
        class FromHandWritten(WithInit):
            a: Any
            b: Any
            tag: str = static()
            c: Any = dataclasses.field()

        with pytest.raises(AttributeError, match="the field 'c'"):
            FromHandWritten(1)

        @pytree_dataclass(init=False)
        class FromGenerated(_parent()):
            a: int
            b: int

        with pytest.raises(AttributeError, match="the field 'b'"):
            FromGenerated(1)

    def test_without_proxy(self):
        @pytree_dataclass(use_mutable_proxy_in_init=False)
        class C(Struct):
            a: Any

            def __init__(self, a, careful):
                if careful:
                    object.__setattr__(self, "a", a)
                else:
                    self.a = a

        assert C(1, True).a == 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            C(1, False)

    def test_errors_of_the_init_propagate(self):
        @pytree_dataclass
        class C(Struct):
            a: Any

            def __init__(self):
                raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            C()

    def test_post_init_runs_for_generated_inits_only(self):
        calls = []

        @pytree_dataclass
        class C(Struct):
            a: Any

            def __post_init__(self):
                calls.append(self.a)

        tree = C(1)
        jax.tree.map(lambda x: x, tree)
        C.from_attributes(a=2)
        assert calls == [1]

    def test_post_init_may_rerun_for_classes_that_permit_it(self):
        calls = []

        @pytree_dataclass(post_init_may_rerun=True)
        class C(Struct):
            a: Any
            names: Any = dataclasses.field(metadata={"pytree_node": False})

            def __post_init__(self):
                calls.append(self.names)
                object.__setattr__(self, "names", tuple(self.names))

        tree = C(1, ["x"])
        assert jax.tree.map(lambda x: x + 1, tree) == C(2, ("x",))
        assert calls[:2] == [["x"], ("x",)]
        ((path, _),) = jax.tree_util.tree_leaves_with_path(tree)
        assert jax.tree_util.keystr(path) == ".a"


class TestInstances:
    def test_frozen(self):
        box = Box(1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            box.w = 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            del box.w
        with pytest.raises(dataclasses.FrozenInstanceError):
            box.other = 2

    def test_equality_and_hash(self):
        assert Box(1) == Box(1)
        assert Box(1) != Box(1, "u")
        assert hash(Box(1)) == hash(Box(1))
        with pytest.raises(TypeError, match="unhashable"):
            hash(Box([1]))

    def test_from_attributes(self):
        made = WithInit.from_attributes(a=1, b=2, tag="x")
        assert made.attributes_dict() == {"a": 1, "b": 2, "tag": "x"}
        with pytest.raises(ValueError, match=r"Box.from_attributes.*\['w', 'tag'\].*\['w'\]"):
            Box.from_attributes(w=1)
        assert Box.from_attributes(w=1, tag="t") == Box(1)  # the repair

    def test_replace(self):
        assert dataclasses.replace(Box(1), w=2) == Box(2)

    def test_select(self):
        box = Box(1)
        assert box.select().get() is box

    def test_colors(self):
        @pytree_dataclass
        class Layer(Struct):
            def __call__(self):
                pass

        assert Box(1).treescope_color() == "transparent"
        expected = pz_core.color_from_string(f"{Layer.__module__}.{Layer.__qualname__}")
        assert Layer().treescope_color() == expected
        assert pz_core.color_from_string("penzai") == "oklch(0.785 0.103 119.586181640625 / 1.0)"

    def test_cached_property_does_not_survive_a_map(self):
        import functools

        @pytree_dataclass
        class C(Struct):
            a: Any
            b: Any = dataclasses.field(default=0, init=False)

            @functools.cached_property
            def double(self):
                return 2 * self.a

        c = C(1)
        assert c.double == 2
        assert jax.tree.map(lambda x: x + 1, c).double == 4


class TestRepr:
    def test_is_inherited_and_bounded(self):
        assert Box.__repr__ is Struct.__repr__
        assert repr(Box(1)) == "Box(w=1, tag='t')"
        deep = 0
        for _ in range(3000):
            deep = Box(deep)
        assert len(repr(deep)) < 300
        assert len(repr(Box(list(range(10_000))))) < 300
        assert len(repr(Box("x" * 10_000))) < 300

    def test_arrays_show_shape_and_dtype(self):
        assert repr(Box(jnp.ones((2, 3)))) == "Box(w=<float32[2,3]>, tag='t')"
        assert repr(Box(np.ones(4))) == "Box(w=<float64[4]>, tag='t')"
        assert "float32[2]" in repr(Box(jax.ShapeDtypeStruct((2,), jnp.float32)))

    def test_under_tracing(self):
        texts = []
        jax.jit(lambda x: texts.append(repr(Box(x))))(jnp.ones(3))
        assert texts == ["Box(w=<float32[3]>, tag='t')"]

    def test_survives_a_failing_repr(self):
        class Bad:
            def __repr__(self):
                raise RuntimeError

        assert "Bad" in repr(Box(Bad()))


CASES = [
    Box(1),
    Net([Box(1), None], {"a": 2}),
    Empty(),
    StaticOnly(),
    WithInit(1),
    WithKeys(1, (2,)),
    OwnLayout(1, 2),
]


class TestPytree:
    @pytest.mark.parametrize("tree", CASES, ids=lambda x: type(x).__name__)
    def test_round_trip(self, tree):
        leaves, treedef = jax.tree.flatten(tree)
        rebuilt = treedef.unflatten(leaves)
        assert type(rebuilt) is type(tree)
        assert rebuilt == tree

    @pytest.mark.parametrize("tree", CASES, ids=lambda x: type(x).__name__)
    def test_any_children_are_accepted(self, tree):
        sentinel = object()
        rebuilt = jax.tree.map(lambda _: sentinel, tree)
        assert all(leaf is sentinel for leaf in jax.tree.leaves(rebuilt))

    def test_key_paths(self):
        assert jax.tree_util.tree_leaves_with_path(Box(1)) == [((GetAttrKey("w"),), 1)]
        (path, _), _ = jax.tree_util.tree_leaves_with_path(WithKeys(1, 2))
        assert path[0].loudness == 3
        assert jax.tree_util.keystr(path) == ".a"

    def test_static_fields_are_structure(self):
        assert jax.tree.structure(Box(1)) != jax.tree.structure(Box(1, "u"))
        unhashable = StaticOnly([1])
        assert jax.tree.map(lambda x: x, unhashable).tag is unhashable.tag

    def test_unhashable_static_values_in_jit(self):
        traces = []

        @jax.jit
        def f(x, s):
            traces.append(s.tag)
            return x

        f(1.0, StaticOnly([1]))
        f(1.0, StaticOnly([1]))
        f(1.0, StaticOnly([2]))
        assert traces == [[1], [2]]

    def test_transforms(self):
        box = WithKeys(jnp.arange(3.0), None)
        grad = jax.grad(lambda b: (b.a**2).sum())(box)
        np.testing.assert_allclose(grad.a, 2 * box.a)
        out = jax.vmap(lambda b: b.a + 1, in_axes=(WithKeys(0, None),))(box)
        np.testing.assert_allclose(out, box.a + 1)

    def test_public_flatten_methods(self):
        children, aux = Box(1).tree_flatten_with_keys()
        assert children == [(GetAttrKey("w"), 1)]
        assert aux == StructStaticMetadata(("w",), {"tag": "t"})
        assert hash(aux) == hash(Box(2).tree_flatten()[1])
        assert Box.tree_unflatten(aux, [5]) == Box(5)

    def test_unflatten_errors(self):
        _, aux = Box(1).tree_flatten()
        with pytest.raises(AssertionError, match="StructStaticMetadata, got None"):
            Box.tree_unflatten(None, [1])
        with pytest.raises(AssertionError, match=r"one child for each of \['w'\], got 2"):
            Box.tree_unflatten(aux, [1, 2])

    def test_own_flatten_methods_are_honoured(self):
        @pytree_dataclass
        class Reversed(Struct):
            a: Any
            b: Any

            def tree_flatten_with_keys(self):
                return [(GetAttrKey("b"), self.b), (GetAttrKey("a"), self.a)], None

            def tree_flatten(self):
                return [self.b, self.a], None

            @classmethod
            def tree_unflatten(cls, aux, children):
                return cls.from_attributes(b=children[0], a=children[1])

        assert jax.tree.leaves(Reversed(1, 2)) == [2, 1]
        assert pz_core.select(Reversed(1, 2)).at(lambda t: t.b).set(5) == Reversed(1, 5)

    @given(trees)
    def test_key_paths_equal_jax(self, tree):
        ours = [path for path in pz_core.select(tree).at_pytree_leaves().get_keypaths()]
        theirs = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        assert ours == theirs
        assert [jax.tree_util.keystr(p) for p in ours] == [jax.tree_util.keystr(p) for p in theirs]


class TestStaticNumbers:
    """Fields that are children unless they hold a number."""

    @pytest.mark.parametrize("number", [True, 3, 0.5, 1j])
    def test_a_number_is_no_leaf(self, number):
        node = Hyper(1.5, number)
        assert jax.tree.leaves(node) == [1.5]
        assert jax.tree.map(lambda x: 2 * x, node) == Hyper(3.0, number)

    @pytest.mark.parametrize("child", [np.float32(2), np.arange(2), "text", [1.0]], ids=repr)
    def test_anything_else_is_a_child(self, child):
        assert jax.tree.leaves(Hyper(1.5, child)) == [1.5, *jax.tree.leaves(child)]
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(Hyper(1.5, child))]
        assert all(path[0] == GetAttrKey("by") for path in paths[1:])

    def test_numbers_of_different_types_are_different_structures(self):
        one, real, true = (jax.tree.structure(Hyper(0, number)) for number in (1, 1.0, True))
        assert one == jax.tree.structure(Hyper(5, 1))
        assert len({one, real, true}) == 3
        assert one != real
        assert real != true

    def test_is_neither_traced_nor_differentiated(self):
        traced = []

        @jax.jit
        def run(node):
            traced.append(node.by)
            return node.a * node.by

        assert [run(Hyper(2.0, by)).item() for by in (3, 3, 4)] == [6.0, 6.0, 8.0]
        assert traced == [3, 4]
        assert run(Hyper(2.0, jnp.float32(5))) == 10
        assert isinstance(traced[-1], jax.core.Tracer)
        assert jax.grad(lambda node: node.a * node.by)(Hyper(2.0, 3)) == Hyper(jnp.float32(3), 3)

    def test_a_number_put_in_the_place_of_an_array_is_a_leaf(self):
        # As in a tree of axes for vmap, or the mask of an optimizer.
        node = Hyper(jnp.arange(3.0), jnp.arange(3.0))
        axes = jax.tree.map(lambda _: 0, node)
        assert axes == Hyper(0, 0)
        assert jax.tree.structure(axes) == jax.tree.structure(node)
        assert jax.tree.leaves(copy.deepcopy(axes)) == [0, 0]
        assert node.tree_flatten()[1] == axes.tree_flatten()[1]
        product = jax.vmap(lambda n: n.a * n.by, in_axes=(axes,))(node)
        np.testing.assert_array_equal(product, [0, 1, 4])

    def test_a_default_that_the_constructor_leaves(self):
        @pytree_dataclass
        class Lazy(Struct):
            by: Any = dataclasses.field(default=2, metadata={"pytree_node": "unless_number"})

            def __init__(self):
                pass

        assert jax.tree.leaves(Lazy()) == []
        assert jax.tree.map(lambda x: x, Lazy()).by == 2

    def test_maps_that_stop_at_none(self):
        mapped = jax.tree.map(lambda x: x, Hyper(None, 3), is_leaf=lambda x: x is None)
        assert mapped == Hyper(None, 3)
        assert jax.tree.leaves(mapped) == []

    def test_selections_reach_it(self):
        tree = [Hyper(jnp.ones(2), 3), Hyper(jnp.ones(2), jnp.float32(3))]
        found = pz_core.select(tree).at(lambda t: t[0].by)
        assert found.get() == 3
        changed = found.set(jnp.float32(7))
        assert len(jax.tree.leaves(changed)) == 4
        assert len(jax.tree.leaves(tree)) == 3
        assert pz_core.select(tree).at_instances_of(int).set(9)[0].by == 9
        assert pz_core.select(tree).at_pytree_leaves().count() == 3
        assert pz_core.select(3).at_pytree_leaves().get() == 3

    def test_public_flatten_methods(self):
        for node in (Hyper(1, 2), Hyper(1, "child")):
            children, static = node.tree_flatten()
            assert Hyper.tree_unflatten(static, children) == node
        assert Hyper(1, 2).tree_flatten() == (
            [1],
            StructStaticMetadata(("a",), {"by": 2, "tag": "t"}),
        )

    def test_copies_keep_what_is_static(self):
        for node in (Hyper(1, 2), jax.tree.map(lambda _: 0, Hyper("a", "b"))):
            leaves = jax.tree.leaves(node)
            for copied in (copy.copy(node), copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
                assert copied == node
                assert jax.tree.leaves(copied) == leaves
        assert jax.tree.leaves(dataclasses.replace(Hyper(1, 2), by="child")) == [1, "child"]

    def test_other_metadata_is_refused(self):
        field = dataclasses.field(metadata={"pytree_node": "number"})
        with pytest.raises(ValueError, match="'unless_number'"):
            pytree_dataclass(type("C", (Struct,), {"__annotations__": {"a": int}, "a": field}))


class TestCopies:
    @pytest.mark.parametrize("tree", CASES, ids=lambda x: type(x).__name__)
    def test_pickle_and_copy(self, tree):
        assert pickle.loads(pickle.dumps(tree)) == tree
        assert copy.copy(tree) == tree
        assert copy.deepcopy(tree) == tree

    def test_deepcopy_keeps_sharing_and_skips_init(self):
        inner = [1]
        tree = WithInit.from_attributes(a=inner, b=inner, tag="x")
        duplicate = copy.deepcopy(tree)
        assert duplicate.a is duplicate.b
        assert duplicate.a is not inner
