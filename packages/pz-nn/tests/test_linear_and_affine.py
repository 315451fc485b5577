import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import (
    assert_close,
    assert_jit_equals_eager,
    axis_order,
    check_gradients,
    draw,
    named,
    raises,
    raw,
)

from pz_core.variables import Parameter, ParameterSlot, UnboundVariableError, freeze_variables
from pz_named import named_axes as nx
from pz_named import shapecheck as chk
from pz_nn.basic_ops import Elementwise
from pz_nn.embeddings import EmbeddingDecode, EmbeddingTable
from pz_nn.linear_and_affine import (
    AddBias,
    Affine,
    ConstantRescale,
    Linear,
    LinearInPlace,
    NamedEinsum,
    RenameAxes,
    constant_initializer,
    contract,
    xavier_normal_initializer,
)

UNIT = 1e-5


def einsum_oracle(left, right, summed):
    """contract() by hand-written einsum over sorted letters."""
    names = list(dict.fromkeys([*left.named_shape, *right.named_shape]))
    letter = dict(zip(names, "abcdefgh", strict=False))
    result = [n for n in left.named_shape if n not in summed]
    result += [n for n in right.named_shape if n not in left.named_shape]
    spec = f"{''.join(letter[n] for n in left.named_shape)},{''.join(letter[n] for n in right.named_shape)}"
    value = np.einsum(f"{spec}->{''.join(letter[n] for n in result)}", raw(left), raw(right))
    return result, value


@pytest.mark.smoke
@pytest.mark.parametrize(
    "summed, left, right",
    [
        ("b", "ab", "bc"),
        ("b", "ab", "cb"),
        (("a", "b"), "ab", "bca"),
        ("b", "abc", "dbc"),
        ("b", "cab", "bcd"),
        ((), "ab", "bc"),
        ("a", "a", "a"),
        ((), "", "ab"),
    ],
)
def test_contract_against_einsum(summed, left, right):
    sizes = dict(a=2, b=3, c=4, d=5)
    x = named(0, {n: sizes[n] for n in left})
    y = named(1, {n: sizes[n] for n in right})
    result = contract(summed, x, y)
    order, expected = einsum_oracle(x, y, summed)
    assert axis_order(result) == order
    assert_close(raw(result), expected, UNIT)


@hypothesis.given(st.data())
def test_contract_of_random_axes(data):
    names = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)
    sizes = data.draw(st.fixed_dictionaries({n: st.integers(0, 3) for n in "abcd"}))
    left, right = data.draw(names), data.draw(names)
    summed = [n for n in left if n in right and data.draw(st.booleans())]
    x, y = named(0, {n: sizes[n] for n in left}), named(1, {n: sizes[n] for n in right})
    result = contract(summed, x, y)
    order, expected = einsum_oracle(x, y, summed)
    assert axis_order(result) == order
    assert_close(raw(result), expected, UNIT)


@pytest.mark.parametrize(
    "left, right, result",
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float16", "float16", "float16"),
        ("int32", "int32", "int32"),
        ("int32", "float32", "float32"),
    ],
)
def test_contract_dtypes(left, right, result):
    x, y = nx.ones({"a": 3, "b": 4}, left), nx.ones({"b": 4}, right)
    assert contract("b", x, y).dtype == result
    assert (raw(contract("b", x, y)) == 4).all()
    assert contract("b", x, y, preferred_element_type=jnp.float32).dtype == jnp.float32


def test_contract_errors():
    x, y = nx.ones({"a": 3, "b": 4}), nx.ones({"b": 5})
    with raises(ValueError, "contract", "left operand", "'c'"):
        contract("c", x, y)
    with raises(ValueError, "right operand", "'a'"):
        contract("a", x, y)
    with raises(ValueError, "['b']", "{'a': 3, 'b': 4}", "{'b': 5}"):
        contract("b", x, y)
    with raises(ValueError, "positional", "(5,)"):
        contract("b", x, nx.wrap(jnp.ones(5)))


@pytest.mark.smoke
def test_linear_becomes_one_dot_general():
    heads = {"heads": 2, "projection": 4}
    layer = freeze_variables(
        Linear.from_config("L", jax.random.key(0), {"embedding": 8}, heads, initializer=draw)
    )
    x = named(0, {"batch": 2, "seq": 3, "embedding": 8})

    def primitives(function, value):
        found = [str(e.primitive) for e in jax.make_jaxpr(function)(value).eqns]
        return [name for name in found if name != "reshape"]  # free; see test_axis_folding

    assert primitives(layer, x) == ["dot_general"]
    # The guard can fail: an input with the contracted axis elsewhere needs no transpose either …
    assert primitives(layer, x.order_as("embedding", "batch", "seq")) == ["dot_general"]
    # … but a parallel axis in the middle does.
    parallel = freeze_variables(
        Linear.from_config(
            "P", jax.random.key(0), {"embedding": 8}, {"out": 2}, {"seq": 3}, initializer=draw
        )
    )
    assert "transpose" in primitives(parallel, x)


VECTORS = [
    (None, [[0.1396385, 0.99455, -0.8820708], [-1.0321009, -0.2628353, -0.266573]]),
    (
        xavier_normal_initializer,
        [[0.1014764, 1.0653088, -0.8200154], [-1.1997814, -0.1931487, -0.1959844]],
    ),
]


@pytest.mark.smoke
@pytest.mark.parametrize("initializer, expected", VECTORS)
def test_linear_vectors(key, initializer, expected):
    options = {} if initializer is None else {"initializer": initializer}
    layer = Linear.from_config("L", key, {"a": 2}, {"b": 3}, **options)
    assert layer.weights.label == "L.weights"
    assert layer.weights.metadata == {}
    assert_close(layer.weights.value.unwrap("a", "b"), expected, 2e-7)


def test_affine_vector(key):
    layer = Affine.from_config("A", key, {"f": 2}, {"f": 2}, parallel_axes={"h": 2})
    linear, rename, bias = layer.sublayers
    assert linear.weights.label == "A/Linear.weights"
    assert bias.bias.label == "A/AddBias.bias"
    assert rename == RenameAxes(("f_out",), ("f",))
    assert axis_order(linear.weights.value) == ["h", "f", "f_out"]
    assert axis_order(bias.bias.value) == ["h", "f"]
    expected = [
        [[-1.0767463, 0.3557028], [0.7696719, -0.5930194]],
        [[1.0566344, 0.9937615], [0.1783504, -0.3727846]],
    ]
    assert_close(raw(linear.weights.value), expected, 2e-7)


def test_linear_with_all_kinds_of_axes(key):
    layer = Linear.from_config(
        "L",
        key,
        {"a": 3, "b": 2},
        {"c": 5},
        parallel_axes={"p": 7},
        parallel_broadcast_axes={"q": 11},
    )
    weights = layer.weights.value
    assert axis_order(weights) == ["p", "q", "a", "b", "c"]
    assert (layer.in_axis_names, layer.out_axis_names) == (("a", "b"), ("c", "q"))
    assert layer.input_axes == {"a": 3, "b": 2}
    assert layer.output_axes == {"q": 11, "c": 5}
    assert layer.parallel_axes == {"p": 7}
    limit = np.sqrt(3 / 5.5)
    assert 0.98 * limit < np.abs(raw(weights)).max() <= limit
    x = named(0, {"batch": 2, "a": 3, "b": 2, "p": 7})
    y = assert_jit_equals_eager(freeze_variables(layer), x)
    assert axis_order(y) == ["batch", "p", "q", "c"]
    assert_close(raw(y), np.einsum("nabp,pqabc->npqc", raw(x), raw(weights)), UNIT)


def test_linear_in_place(key):
    layer = Linear.from_config("L", key, {"f": 3, "g": 2}, {"f": 4, "h": 5}, initializer=draw)
    assert isinstance(layer, LinearInPlace)
    linear, rename = layer.sublayers
    assert linear.weights.label == "L.weights"
    assert rename == RenameAxes(old=("f_out",), new=("f",))
    x = named(0, {"n": 2, "f": 3, "g": 2})
    y = layer(x)
    assert axis_order(y) == ["n", "f", "h"]
    assert_close(raw(y), np.einsum("nfg,fgoh->noh", raw(x), raw(linear.weights.value)), UNIT)


def test_linear_batch_axes_of_any_name_and_number(key):
    layer = Linear.from_config("L", key, {"f": 3}, {"g": 2}, initializer=draw)
    expected = raw(layer.weights.value)
    for batch in ([], ["x", "y", "L", "a b"]):
        for place in {0, len(batch) // 2, len(batch)}:
            names = [*batch[:place], "f", *batch[place:]]
            x = named(0, {n: 3 if n == "f" else 2 for n in names})
            assert_close(raw(layer(x), *batch, "g"), raw(x, *batch, "f") @ expected, UNIT)
    assert layer(nx.zeros({"empty": 0, "f": 3})).named_shape == {"empty": 0, "g": 2}


@pytest.mark.parametrize("parameter", ["parameter", "frozen"])
def test_linear_errors_name_the_layer(key, parameter):
    layer = Linear.from_config("net/query", key, {"f": 3}, {"g": 2}, initializer=draw)
    layer = layer if parameter == "parameter" else freeze_variables(layer)
    with raises(chk.StructureMismatchError, "(net/query) ", "f", "3", "4"):
        layer(named(0, {"f": 4}))
    with raises(chk.StructureMismatchError, "(net/query) ", "complex64"):
        layer(nx.ones({"f": 3}, jnp.complex64))


def test_linear_labels_that_are_no_strings(key):
    layer = Linear(Parameter(label=("a", 1), value=nx.ones({"f": 3, "g": 2})), ("f",), ("g",))
    with raises(chk.StructureMismatchError, "f"):
        layer(named(0, {"x": 3}))
    with raises(UnboundVariableError, "w"):
        Linear(ParameterSlot("w"), ("f",), ("g",))(named(0, {"f": 3}))


@pytest.mark.parametrize(
    "axes, fragments",
    [
        (dict(input_axes={"a": 3}, output_axes={"a": 5, "a_out": 2}), ["a_out", "RenameAxes"]),
        (dict(input_axes={"a": 3, "a_out": 1}, output_axes={"a": 5}), ["a_out"]),
        (dict(input_axes={"a": 3}, output_axes={"a": 5}, parallel_axes={"a_out": 2}), ["a_out"]),
        (dict(input_axes={"a": 3}, output_axes={"b": 5}, parallel_axes={"b": 5}), ["['b']"]),
        (dict(input_axes={"a": 3}, output_axes={}, parallel_broadcast_axes={"a": 3}), ["['a']"]),
        (
            dict(
                input_axes={},
                output_axes={},
                parallel_axes={"p": 1},
                parallel_broadcast_axes={"p": 1},
            ),
            ["['p']"],
        ),
        (
            dict(input_axes={"a": 3}, output_axes={"a": 3}, rename_outputs_if_necessary=False),
            ["['a']", "rename_outputs_if_necessary"],
        ),
    ],
)
def test_linear_config_errors(axes, fragments):
    with raises(ValueError, "Linear.from_config('L')", *fragments, str(axes["input_axes"])):
        Linear.from_config("L", None, **axes)


def test_linear_gradient(float64, key):
    layer = freeze_variables(
        Linear.from_config("L", key, {"f": 3}, {"g": 2}, {"p": 2}, None, draw, jnp.float64)
    )
    weights = layer.weights.value
    x = named(0, {"n": 2, "f": 3, "p": 2}, jnp.float64)

    def run(w, d):
        linear = Linear(
            Parameter(label="w", value=nx.wrap(w, "p", "f", "g")).freeze(), ("f",), ("g",)
        )
        return jnp.sin(linear(nx.wrap(d, "n", "f", "p")).unwrap("n", "p", "g"))

    check_gradients(run, weights.unwrap("p", "f", "g"), x.unwrap("n", "f", "p"))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 3e-2), (jnp.float16, 3e-3)])
def test_linear_low_precision(key, dtype, tolerance):
    layer = Linear.from_config("L", key, {"f": 32}, {"g": 8}, initializer=draw, dtype=dtype)
    x = named(0, {"n": 4, "f": 32}, dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert_close(raw(y), raw(x) @ raw(layer.weights.value), tolerance)
    assert layer(x.astype(jnp.float32)).dtype == jnp.float32


def frozen_ones(**sizes):
    return Parameter(label="w", value=nx.ones(sizes, jnp.bfloat16)).freeze()


@pytest.mark.parametrize(
    "contracting",
    [
        lambda **options: Linear(frozen_ones(f=3, g=2), ("f",), ("g",), **options),
        lambda **options: EmbeddingDecode(EmbeddingTable(frozen_ones(v=2, f=3), "v"), **options),
        lambda **options: lambda x: NamedEinsum((("f",), ("f",)), (), **options)((x, x)),
        lambda **options: lambda x: contract("f", x, x, **options),
    ],
    ids=["Linear", "EmbeddingDecode", "NamedEinsum", "contract"],
)
def test_precision_is_passed_on(contracting):
    layer = contracting(precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    jaxpr = jax.make_jaxpr(layer)(nx.ones({"f": 3}, jnp.bfloat16))
    assert "HIGHEST" in str(jaxpr)
    assert jaxpr.out_avals[0].dtype == jnp.float32


@pytest.mark.smoke
def test_rename_axes():
    x = named(0, {"a": 2, "b": 3})
    assert RenameAxes("a", "c")(x).named_shape == {"c": 2, "b": 3}
    swapped = RenameAxes(("a", "b"), ("b", "a"))(x)
    assert axis_order(swapped) == ["b", "a"]
    assert (raw(swapped) == raw(x)).all()


def test_views_are_taken_as_they_lie():
    x = nx.wrap(jnp.arange(6.0).reshape(2, 3)).tag("a", "b").untag("b", "a").tag("q", "p")
    assert RenameAxes("q", "r")(x).named_shape == {"p": 2, "r": 3}
    y = RenameAxes((), ())(nx.wrap(jnp.ones((2, 3)), "a", "b").as_namedarrayview())
    assert isinstance(y, nx.NamedArray)
    assert y.named_shape == {"a": 2, "b": 3}


def test_add_bias(key):
    layer = AddBias.from_config("B", key, {"f": 3}, {"g": 2}, initializer=constant_initializer(2.0))
    assert layer.bias.label == "B.bias"
    assert layer.new_axis_names == ("g",)
    x = named(0, {"n": 4, "f": 3})
    y = layer(x)
    assert axis_order(y) == ["n", "f", "g"]
    assert_close(raw(y), (raw(x) + 2)[..., None].repeat(2, -1))
    assert layer(nx.arange("f", 3)).dtype == jnp.float32
    with raises(ValueError, "f"):
        layer(named(0, {"f": 4}))
    with raises(ValueError, "AddBias", "['f']", "new_axis_names"):
        layer(named(0, {"n": 4}))
    with raises(ValueError, "AddBias.from_config('B')", "['f']", "new_output_axes={'f': 2}"):
        AddBias.from_config("B", key, {"f": 3}, {"f": 2})


def test_affine_with_everything(key):
    layer = Affine.from_config(
        "A",
        key,
        {"f": 3},
        {"f": 4, "g": 2},
        parallel_axes={"p": 2},
        parallel_broadcast_axes={"q": 3},
        linear_initializer=draw,
        bias_initializer=constant_initializer(0.5),
    )
    x = named(0, {"n": 2, "p": 2, "f": 3})
    y = layer(x)
    assert axis_order(y) == ["n", "p", "q", "f", "g"]
    weights = layer.sublayers[0].weights.value
    expected = np.einsum("npf,pqfog->npqog", raw(x), raw(weights, "p", "q", "f", "f_out", "g"))
    assert_close(raw(y), expected + 0.5, UNIT)
    slots = Affine.from_config("A", None, {"f": 3}, {"g": 4})
    assert [type(s.weights) if i == 0 else type(s.bias) for i, s in enumerate(slots.sublayers)] == [
        ParameterSlot,
        ParameterSlot,
    ]


def test_constant_rescale():
    x = {"n": named(0, {"a": 2}), "p": jnp.ones(2, jnp.bfloat16)}
    y = ConstantRescale(2.5)(x)
    assert_close(raw(y["n"]), 2.5 * raw(x["n"]))
    assert y["p"].dtype == jnp.bfloat16
    by = nx.wrap(jnp.array([1.0, 2.0]), "a")
    assert_close(raw(ConstantRescale(by)(x["n"])), raw(x["n"]) * [1.0, 2.0])
    assert ConstantRescale(2.0) == ConstantRescale(2.0)


ATTENTION = NamedEinsum(
    ({"seq": "tq", "heads": "h", "proj": "p"}, {"seq": "tk", "heads": "h", "proj": "p"}),
    {"heads": "h", "seq": "tq", "kv_seq": "tk"},
)


@pytest.mark.smoke
def test_named_einsum_attention():
    q = named(0, {"batch": 2, "seq": 3, "heads": 4, "proj": 5})
    k = named(1, {"batch": 2, "seq": 6, "heads": 4, "proj": 5})
    logits = assert_jit_equals_eager(ATTENTION, (q, k))
    assert axis_order(logits) == ["batch", "heads", "seq", "kv_seq"]
    assert_close(raw(logits), np.einsum("bqhp,bkhp->bhqk", raw(q), raw(k)), UNIT)
    assert [str(e.primitive) for e in jax.make_jaxpr(ATTENTION)((q, k)).eqns] == ["dot_general"]


EINSUMS = [
    # specs, output, numpy string, names of inputs, names of output
    ((("a", "b"), ("b", "c")), ("a", "c"), "ab,bc->ac", ["ab", "bc"]),
    ((("a", "b"), ("b", "c")), ("c", "a"), "ab,bc->ca", ["ab", "bc"]),
    ((("a", "b"), ("b",)), ("b", "a"), "ab,b->ba", ["ab", "b"]),
    ((("a", "b"),), (), "ab->", ["ab"]),
    ((("a", "b"),), ("b", "a"), "ab->ba", ["ab"]),
    ((("a", "b"), ("b", "c"), ("c", "d")), ("d", "a"), "ab,bc,cd->da", ["ab", "bc", "cd"]),
    ((("a", "b"), ("c",)), ("a",), "ab,c->a", ["ab", "c"]),
    (({"a": "i", "e": "i"},), {"diagonal": "i"}, "aa->a", ["ae"]),
    ((("a",), ("b",)), ("b", "a"), "a,b->ba", ["a", "b"]),
]


@pytest.mark.parametrize("specs, output, formula, inputs", EINSUMS)
@pytest.mark.parametrize("batch", ["", "xy"])
def test_named_einsum_table(specs, output, formula, inputs, batch):
    sizes = dict(a=2, e=2, b=3, c=4, d=5, x=2, y=3)
    arrays = tuple(named(i, {n: sizes[n] for n in batch + names}) for i, names in enumerate(inputs))
    result = NamedEinsum(specs, output)(arrays)
    left, right = formula.split("->")
    letters = ",".join(batch + term for term in left.split(","))
    assert_close(raw(result), np.einsum(f"{letters}->{batch}{right}", *map(raw, arrays)), UNIT)
    assert axis_order(result) == [*batch, *output]


def test_named_einsum_accepts_lists_and_orders_batch_axes_by_the_first_input():
    layer = NamedEinsum([["a", "b"], ["b"]], ["a"])
    x, y = named(0, {"m": 2, "a": 2, "n": 3, "b": 3}), named(1, {"n": 3, "b": 3, "m": 2})
    result = layer((x, y))
    assert axis_order(result) == ["m", "n", "a"]
    assert_close(raw(result), np.einsum("manb,nbm->mna", raw(x), raw(y)), UNIT)


def test_named_einsum_call_errors():
    layer = NamedEinsum((("a", "b"), ("b", "c")), ("a", "c"))
    x, y = named(0, {"a": 2, "b": 3}), named(1, {"b": 3, "c": 4})
    with raises(ValueError, "NamedArray"):
        layer(x)
    with raises(chk.StructureMismatchError, "NamedEinsum", "c"):
        layer((x, named(1, {"b": 3})))
    with raises(chk.StructureMismatchError, "int32"):
        layer((x.astype(jnp.int32), y))
    with raises(chk.StructureMismatchError, "NamedEinsum"):
        layer((jnp.ones((2, 3)), y))
    with raises(ValueError, "['c']", "batch axis"):
        NamedEinsum((("a",), ("a",)), {"c": "a"})((named(0, {"a": 2, "c": 3}),) * 2)


def test_named_einsum_gradient(float64):
    layer = NamedEinsum((("a", "b"), ("b",)), ("a",))
    x, y = np.random.default_rng(0).normal(size=(2, 3)), np.arange(3.0)
    check_gradients(
        lambda a, b: jnp.sin(layer((nx.wrap(a, "a", "b"), nx.wrap(b, "b"))).unwrap("a")), x, y
    )


def test_side_inputs_may_have_any_name(key):
    layer = Affine.from_config("A", key, {"f": 3}, {"f": 3}, linear_initializer=draw)
    x = named(0, {"f": 3})
    names = ["value", "x", "arg", "argument", "in_array", "inputs", "arrays", "self"]
    layer(x, **dict.fromkeys(names, 1))
    NamedEinsum((("f",),), ())((x,), **dict.fromkeys(names, 1))
    ConstantRescale(2.0)(x, **dict.fromkeys(names, 1))
    Elementwise(jnp.sin)(x, **dict.fromkeys(names, 1))


def test_colours(key):
    layer = Affine.from_config("A", None, {"f": 3}, {"f": 3})
    linear, _, bias = layer.sublayers
    assert linear.treescope_color() == layer.treescope_color()[0] == "#eba875"
    assert bias.treescope_color() == "#65cfbc"
    assert LinearInPlace([]).treescope_color() == layer.treescope_color()
    assert Elementwise(jnp.sin).treescope_color() == Elementwise(jnp.sin).treescope_color()
    assert Elementwise(jnp.sin).treescope_color() != Elementwise(jnp.cos).treescope_color()
    partial = functools.partial(jax.nn.gelu, approximate=True)
    assert Elementwise(partial).treescope_color() == Elementwise(jax.nn.gelu).treescope_color()
