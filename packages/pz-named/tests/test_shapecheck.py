"""Shape checking: solving, reports, substitution; and the `checked` decorator."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx
from pz_named import shapecheck as chk
from pz_named.shapecheck import ArraySpec, var

pytestmark = pytest.mark.smoke


def fails(value, pattern, *parts, **options):
    with pytest.raises(chk.StructureMismatchError) as caught:
        chk.check_structure(value, pattern, **options)
    text = str(caught.value)
    for part in parts:
        assert part in text, text
    return text


def test_variables_are_solved_over_the_whole_tree():
    result = chk.check_structure(
        {"x": np.zeros((2, 3)), "y": np.zeros((3, 5, 7)), "z": nx.ones({"a": 2, "b": 3})},
        {
            "x": ArraySpec((var("a"), var("b"))),
            "y": ArraySpec((var("b"), *var("rest"))),
            "z": ArraySpec(named_shape={"a": var("a"), **var("others")}),
        },
    )
    assert dict(result) == {"a": 2, "b": 3, "rest": (5, 7), "others": {"b": 3}}
    assert (result["a"], result.b, result["a", "b"]) == (2, 3, (2, 3))


def test_runs_that_wait_are_solved_later():
    values = [np.ones((2, 3, 4)), np.ones((2,))]
    pattern = [ArraySpec((*var("p"), *var("q"))), ArraySpec(var("p"))]
    assert dict(chk.check_structure(values, pattern)) == {"p": (2,), "q": (3, 4)}
    fails(values[:1], pattern[:1], "ambiguous", "'p', 'q'", "(2, 3, 4) against ({*p}, {*q})")


def test_stuck_shapes_with_single_variables_are_reported():
    fails(np.ones((1, 2)), ArraySpec((*var("a"), *var("b"), var("c"))), "ambiguous")


def test_all_mismatches_are_reported_together():
    text = fails(
        {"a": np.zeros(2), "b": np.zeros(3), "c": "text", "d": (1,), "e": 1.0},
        {
            "a": ArraySpec((var("n"),)),
            "b": ArraySpec((var("n"),), np.int32),
            "c": ArraySpec(),
            "d": [1],
            "e": 2.0,
            "f": chk.ANY,
        },
        "missing ['f']",
        "root['b']: dtype float64, expected int32",
        "size 3, but {n} is 2 from root['a']",
        "root['c']: str 'text' is not array-like",
        "root['d']: expected list, found tuple",
        "root['e']: float 1.0 is not equal to float 2.0",
    )
    assert "(6 mismatches)" in text


def test_containers_of_other_data_are_mismatches():
    fails([1], [1, 2], "list of another structure: missing [1]")
    fails({"a": 1, "b": 2}, {"a": 1}, "unexpected ['b']")
    fails(None, [1], "expected list, found NoneType")
    fails(nx.ones({"a": 1}), [1], "expected list, found NamedArray")
    static = [jax.tree_util.Partial(f) for f in (sum, max)]
    fails(static[0], static[1], "static data")


def test_named_mismatches_give_their_reasons():
    fails(
        nx.ones({"a": 2, "b": 3, "c": 4}),
        ArraySpec(named_shape={"a": 5, "x": 3, "b": 3}),
        "axis 'x' is missing (expected size 3)",
        "axis 'c' (size 4) is unexpected",
        "axis 'a': size 2, expected 5",
    )
    fails(np.ones(3), ArraySpec((1, *var("r"), 1)), "at least 2 are needed")
    fails(np.ones(3), ArraySpec((3, 4)), "it has 1 axes, 2 are needed")


@pytest.mark.parametrize(
    "found, wanted, fits",
    [
        (np.float32, np.floating, True),
        (jnp.bfloat16, np.floating, True),
        (np.int32, np.floating, False),
        (np.float64, np.float32, False),
        (np.float64, jnp.float32, True),  # canonical dtypes agree without x64
        (np.float64, np.dtype("float32"), True),
        (np.bool_, np.generic, True),
        (np.int8, np.int32, False),
    ],
)
def test_dtypes(found, wanted, fits):
    value, pattern = np.zeros((), found), ArraySpec((), wanted)
    if fits:
        chk.check_structure(value, pattern)
    else:
        fails(value, pattern, "expected")


def test_keys_scalars_abstract_arrays_and_specs_are_array_like():
    chk.check_structure(jax.random.key(0), ArraySpec((), jax.dtypes.prng_key))
    chk.check_structure([1, 2.0, True, np.int8(1)], [ArraySpec()] * 4)
    chk.check_structure(jax.ShapeDtypeStruct((2,), np.float32), ArraySpec((2,)))
    chk.check_structure(ArraySpec((2,), np.float32), ArraySpec((var("n"),), np.floating))
    fails(ArraySpec((), np.floating), ArraySpec((), np.dtype("float32")), "dtype floating")


def test_literals_must_be_equal():
    chk.check_structure([1, "a", np.ones(2)], [1, "a", np.ones(2)])
    chk.check_structure(nx.ones({"a": 2}), nx.ones({"a": 2}))
    fails(np.ones(3), np.ones(1), "is not equal")
    fails(np.ones((2, 3)), np.ones((4,)), "is not equal")
    traced = []

    @jax.jit
    def inside(v):
        with pytest.raises(chk.StructureMismatchError):
            chk.check_structure(v, np.ones(2))
        traced.append(v)
        return v

    inside(jnp.ones(2))
    assert traced


def test_numpy_integers_normalise():
    spec = ArraySpec((np.int64(4),), named_shape={"a": np.int32(2)})
    assert [type(d) for d in spec.shape] == [int]
    fails(np.ones(3), ArraySpec((np.int64(4),)), "expected 4")
    result = chk.check_structure(
        np.ones(3), ArraySpec((var("n"),)), known_vars={"n": np.int64(3), "m": [1, 2]}
    )
    assert dict(result) == {"n": 3, "m": (1, 2)}


def test_known_dims_bind_their_declared_size():
    text = fails(
        [np.ones(3), np.ones(2)],
        [ArraySpec((chk.KnownDim("n", 2),)), ArraySpec((var("n"),))],
        "axis 0: size 3, but {n=2} is declared",
    )
    assert "(1 mismatch)" in text


def test_groups_collect_their_members():
    pattern = ArraySpec(named_shape=chk.vars_for_axes("size", {"a": None, "b": 3}))
    assert dict(chk.check_structure(nx.ones({"a": 2, "b": 3}), pattern)) == {
        "size": {"a": 2, "b": 3}
    }
    positional = ArraySpec((var("v")[0], var("v")[1]))
    assert dict(chk.check_structure(np.ones((2, 3)), positional)) == {"v": {0: 2, 1: 3}}
    with_whole = [ArraySpec(var("v")), ArraySpec((var("v")[1],))]
    assert dict(chk.check_structure([np.ones((2, 3)), np.ones(3)], with_whole)) == {"v": (2, 3)}
    fails([np.ones((2, 3)), np.ones(4)], with_whole, "v[1] is 4 from root[1], but v is (2, 3)")


def test_variables_keep_one_kind():
    fails(
        [np.ones(2), np.ones((1, 2))],
        [ArraySpec((var("n"),)), ArraySpec(var("n"))],
        "variable 'n' is used for a run of positional sizes, but it is 2 from root[0]",
    )
    fails(
        [nx.ones({"a": 2}), nx.ones({"a": 2})],
        [ArraySpec(named_shape=var("g")), ArraySpec(named_shape={"a": 2, **var("g")})],
        "key conflict: {**g} is {'a': 2} from root[0]",
    )


def test_any_name_may_be_an_axis():
    marker = nx.TmpPosAxisMarker()
    value = nx.wrap(jnp.ones((2, 3)), marker, ("head", 0))
    assert chk.check_structure(value, ArraySpec(named_shape=var("all")))["all"] == {
        marker: 2,
        ("head", 0): 3,
    }
    fails(value, ArraySpec(named_shape={}), "is unexpected")


def test_results_copy_pickle_and_compare():
    result = chk.check_structure(np.ones((2, 3)), ArraySpec((var("a"), var("b"))))
    for other in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other == result
    assert result != dict(result)
    assert {**result} == {"a": 2, "b": 3}


def test_a_prefix_stands_before_the_message():
    assert fails(1, 2, error_prefix="layer 3: ").startswith("layer 3: ")


def test_specs_are_static_metadata():
    spec = ArraySpec((2,), np.float32, {"a": 3})
    assert jax.tree_util.tree_leaves([spec, chk.ANY]) == []
    assert hash(spec) == hash(ArraySpec((2,), np.float32, {"a": 3}))
    assert jax.jit(lambda s: s)(spec) == spec
    abstract = spec.into_pytree()
    assert isinstance(abstract, nx.NamedArray)
    assert abstract.data_array.shape == (2, 3)
    assert chk.as_array_structure({"k": (abstract, 1.0, "text", None)}) == {
        "k": (spec, ArraySpec((), np.dtype("float32")), chk.ANY, None)
    }
    assert ArraySpec((), jax.random.key(0).dtype).into_pytree().shape == ()
    assert ArraySpec.floating_named({"a": 1}).positional_shape == ()


def test_substituting_variables_by_themselves_changes_nothing():
    spec = ArraySpec((var("n"), *var("p"), 3), np.float32, {"a": var("n"), **var("g")})
    found = chk.get_dimension_variables([spec, 3])
    assert not found.is_empty()
    assert chk.full_substitute_dimension_variables([spec, 3], found) == [spec, 3]
    renamed = chk.full_substitute_dimension_variables(
        spec,
        chk.DimensionVariableSubstitution(
            {"n": 5}, {"p": (6, 7)}, {"g": {"b": chk.KnownDim("z", 8)}}
        ),
    )
    assert renamed == ArraySpec((5, 6, 7, 3), np.float32, {"a": 5, "b": chk.KnownDim("z", 8)})
    assert chk.full_substitute_dimension_variables(
        renamed, chk.DimensionVariableSubstitution()
    ).named_shape == {"a": 5, "b": 8}


def test_variables_are_mappings_of_one():
    v = var("n")
    assert len(v) == 1
    assert (*v,) == (chk.MultiDimVar("n"),)
    assert {**v} == {chk.MultiDimVar("n"): chk.RemainingAxisPlaceholder()}
    assert v != {**v}
    assert var("a") < var("b")
    assert repr(ArraySpec((v["h"],), named_shape=v)) == "<ArraySpec any({n['h']} | {**n})>"
    assert [repr(chk.ANY), repr(chk.Wildcard("cache"))] == ["*", "<cache>"]


# --- checked ---


@nx.checked(
    "x: {batch, seq, embed:d}, weights: float {embed:d, out}, mask: {[n, 2], ...} -> {batch, seq, out}"
)
def project(x, weights, mask=None):
    return nx.dot(x, weights, axis="embed")


def test_checked_accepts_what_fits_also_under_jit():
    x, weights = nx.ones({"seq": 3, "batch": 2, "embed": 4}), nx.ones({"embed": 4, "out": 5})
    assert jax.jit(project)(x, weights=weights).named_shape == {"seq": 3, "batch": 2, "out": 5}
    assert project.__name__ == "project"


def test_checked_reports_all_arguments_by_name():
    with pytest.raises(chk.StructureMismatchError) as caught:
        project(
            nx.ones({"batch": 2, "embed": 4}),
            nx.ones({"embed": 6, "out": 5}, int),
            mask=nx.ones({"a": 1}),
        )
    text = str(caught.value)
    for part in (
        "project: arguments do not fit",
        "At weights: dtype int32, expected floating",
        "At x: named shape",
        "axis 'seq' is missing",
        "size 4, but {d} is 6 from weights",
        "At mask: positional shape ()",
    ):
        assert part in text


def test_checked_reports_results_and_several_of_them():
    @nx.checked("x: {...rest, embed:d} -> {...rest}, {[..., 2]}, *")
    def parts(x):
        return x.sum("embed"), jnp.ones((3, 2)), "anything"

    parts(nx.ones({"batch": 2, "embed": 3}))

    @nx.checked("x: {batch, embed:d} -> {batch, embed:d}")
    def wrong(x):
        return nx.sum(x, "embed")

    with pytest.raises(
        chk.StructureMismatchError, match=r"(?s)wrong: the result.*At result.*'embed' is missing"
    ):
        wrong(nx.ones({"batch": 2, "embed": 3}))
