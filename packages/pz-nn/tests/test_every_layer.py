"""What holds for every layer: one table, checked for compilation, dtypes, order, gradients and edges.

`test_no_layer_is_forgotten` says where the few layers are tested that do not fit into the table.
"""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, check_gradients, draw, named, raw

import pz_nn
from pz_core import select
from pz_core.struct import pytree_dataclass
from pz_core.tree_util import tree_flatten_exactly_one_level
from pz_core.variables import Parameter, ParameterValue, unbind_variables
from pz_named import named_axes as nx
from pz_named import shapecheck as chk

KEY = jax.random.key(0)
AXES = {"n": 2, "s": 4, "f": 6}
POSITIONS = {"p": nx.arange("s", 4)}
LOGITS = {"p": nx.arange("s", 2, 6), "k": nx.arange("s", 6), "prefix": 4}
TOKENS = {"p": nx.arange("s", 4), "k": nx.arange("s", 4), "docs": nx.arange("s", 4) // 2}
CACHED = {"p": nx.arange("s", 4), "k": nx.arange("s", 5), "end": 0}


class Fixed:
    """A random stream that always gives the same key, so that dropout is a function."""

    def next_key(self):
        return KEY


@pytree_dataclass
class Twice(pz_nn.Layer):
    """Gives the pair that a NamedEinsum takes."""

    def __call__(self, x, /, **_side_inputs):
        return x, x


class Model(NamedTuple):
    """A layer without its variables; the values of floating parameters, and of all other variables."""

    layer: Any
    parameters: tuple[Any, ...]
    others: tuple[Any, ...]

    def __call__(self, x, /, **side_inputs):
        values = [*self.parameters, *self.others]
        return self.layer.stateless_call(values, x, **side_inputs)[0]


def is_floating_parameter(value):
    return isinstance(value, ParameterValue) and jnp.issubdtype(value.value.dtype, jnp.floating)


def build(name, dtype):
    make, _ = LAYERS[name]
    layer, values = unbind_variables(make(draw, dtype), freeze=True)
    parameters = tuple(value for value in values if is_floating_parameter(value))
    return Model(layer, parameters, tuple(v for v in values if not is_floating_parameter(v)))


def mask(kind, *settings):
    """A mask on "logits" {n, s, f}: s are the queries, f the keys."""
    return lambda i, d: kind(-9.0, *settings, "p", "k", "s", "f"), LOGITS


def attend(dtype, window=None, **options):
    """Grouped attention with every option that has parameters or is no linear map."""
    names = {"query_positions_input_name": "p", "seq_axis": "s"}
    if window is None:
        chosen = pz_nn.ApplyCausalAttentionMask(-1e4, **names, kv_positions_input_name="k")
    else:
        chosen = pz_nn.ApplyCausalSlidingWindowAttentionMask(
            -1e4, window, **names, kv_positions_input_name="k"
        )
    return pz_nn.Attention.from_config(
        "x", KEY, 6, num_heads=2, num_kv_heads=1, projection_dim=2, embedding_axis="f",
        **{"mask": chosen, "seq_axis": "s", "dtype": dtype, **options},
    )  # fmt: skip


def caching(kind, cache_len, attention, dtype, **options):
    axes = {"n": 2, "projection": 2}
    return kind.from_uncached(
        attention, "s", cache_len, axes, "end", cache_dtype=dtype, cache_label="c", **options
    )


def stack_of_affines(initializer, dtype):
    def block(init_base_rng):
        axes = {"f": 6}
        affine = pz_nn.Affine.from_config(
            "x", init_base_rng, axes, axes, linear_initializer=initializer, dtype=dtype
        )
        return pz_nn.Residual(pz_nn.Sequential([affine, pz_nn.Elementwise(jnp.sin)]))

    return pz_nn.LayerStack.from_sublayer_builder(block, "blocks", 2, KEY, {})


# Entries that every floating dtype represents, so that one float32 result serves all comparisons.
INPUT = named(0, AXES, jnp.bfloat16).astype(jnp.float32)


@functools.cache
def result(name):
    """The layer's float32 result for INPUT."""
    _, sides = LAYERS[name]
    return build(name, jnp.float32)(INPUT, **sides)


# name: (builder from (initializer, dtype), side inputs)
LAYERS = {
    "Affine": (
        lambda i, d: pz_nn.Affine.from_config(
            "x",
            KEY,
            {"f": 6},
            {"f": 3},
            {"s": 4},
            linear_initializer=i,
            bias_initializer=i,
            dtype=d,
        ),
        {},
    ),
    "Linear": (
        lambda i, d: pz_nn.Linear.from_config("x", KEY, {"f": 6}, {"g": 3}, initializer=i, dtype=d),
        {},
    ),
    "Int8Linear": (
        lambda i, d: pz_nn.quantize_linear(
            pz_nn.Linear.from_config("x", KEY, {"f": 6}, {"g": 3}, initializer=i, dtype=d)
        ),
        {},
    ),
    "AddBias": (lambda i, d: pz_nn.AddBias.from_config("x", KEY, {"f": 6}, {"g": 2}, i, d), {}),
    "ConstantRescale": (lambda i, d: pz_nn.ConstantRescale(0.3), {}),
    "RenameAxes": (lambda i, d: pz_nn.RenameAxes("f", "g"), {}),
    "Elementwise": (lambda i, d: pz_nn.Elementwise(jax.nn.silu), {}),
    "Elementwise of a lambda": (lambda i, d: pz_nn.Elementwise(lambda v: v * jnp.sin(v)), {}),
    "TanhSoftCap": (lambda i, d: pz_nn.TanhSoftCap(2.0), {}),
    "Softmax": (lambda i, d: pz_nn.Softmax(("s", "f")), {}),
    "Standardize": (lambda i, d: pz_nn.Standardize("f"), {}),
    "LayerNorm": (lambda i, d: pz_nn.LayerNorm.from_config("x", KEY, {"f": 6}, dtype=d), {}),
    "LayerNorm, no bias": (
        lambda i, d: pz_nn.LayerNorm.from_config("x", KEY, {"f": 6}, dtype=d, use_bias=False),
        {},
    ),
    "RMSLayerNorm": (lambda i, d: pz_nn.RMSLayerNorm.from_config("x", KEY, {"f": 6}, dtype=d), {}),
    "RMSLayerNorm, Gemma": (
        lambda i, d: pz_nn.RMSLayerNorm.from_config(
            "x", KEY, {"f": 6}, dtype=d, offset=1.0, scale_before_cast=True
        ),
        {},
    ),
    "GroupNorm": (lambda i, d: pz_nn.GroupNorm.from_config("x", KEY, "f", 6, 3, "s", dtype=d), {}),
    "InferenceBatchNorm": (
        lambda i, d: pz_nn.set_training(
            pz_nn.BatchNorm.from_config("x", KEY, {"f": 6}, dtype=d), False
        ),
        {},
    ),
    "StochasticDropout": (
        lambda i, d: pz_nn.StochasticDropout(0.5, "s"),
        {"random_stream": Fixed()},
    ),
    "DisabledDropout": (lambda i, d: pz_nn.DisabledDropout(0.5, ()), {}),
    "ApplyRoPE": (lambda i, d: pz_nn.ApplyRoPE("f", 100.0, "p"), POSITIONS),
    "ApplyRoPEToSubset": (
        lambda i, d: pz_nn.ApplyRoPEToSubset("f", 100.0, 4, "p", pairing="interleaved"),
        POSITIONS,
    ),
    "AddLearnedPositions": (
        lambda i, d: pz_nn.AddLearnedPositions.from_config("x", KEY, 9, {"f": 6}, "p", i, d),
        POSITIONS,
    ),
    "AddSinusoidalPositions": (lambda i, d: pz_nn.AddSinusoidalPositions("f", "p"), POSITIONS),
    "EmbeddingDecode": (
        lambda i, d: pz_nn.EmbeddingDecode(
            pz_nn.EmbeddingTable.from_config("x", KEY, 5, {"f": 6}, initializer=i, dtype=d)
        ),
        {},
    ),
    "Conv": (
        lambda i, d: pz_nn.Conv.from_config(
            "x", KEY, {"f": 6}, {"f": 2}, {"s": 3}, initializer=i, bias_initializer=i, dtype=d
        ),
        {},
    ),
    "ConvTranspose": (
        lambda i, d: pz_nn.ConvTranspose.from_config(
            "x", KEY, {"f": 6}, {"g": 2}, {"s": 3}, strides=2, initializer=i, dtype=d
        ),
        {},
    ),
    "MaxPool": (lambda i, d: pz_nn.MaxPool.over({"s": 2}), {}),
    "AveragePool": (lambda i, d: pz_nn.AveragePool.over({"s": 2, "f": 3}), {}),
    "GatedMLP": (
        lambda i, d: pz_nn.GatedMLP.from_config(
            "x", KEY, {"f": 6}, {"h": 3}, initializer=i, dtype=d
        ),
        {},
    ),
    "GRU": (
        lambda i, d: pz_nn.ScanOver(
            pz_nn.GRUCell.from_config("x", KEY, {"f": 6}, {"h": 2}, i, d), "s"
        ),
        {},
    ),
    "LSTM": (
        lambda i, d: pz_nn.ScanOver(
            pz_nn.LSTMCell.from_config("x", KEY, {"f": 6}, {"h": 2}, i, dtype=d), "s"
        ),
        {},
    ),
    "TrainingBatchNorm": (
        lambda i, d: pz_nn.BatchNorm.from_config("x", KEY, {"f": 6}, dtype=d),
        {},
    ),
    "ComputeInDType": (
        lambda i, d: pz_nn.ComputeInDType(jnp.float32, [pz_nn.Elementwise(jnp.tanh)]),
        {},
    ),
    "CastToDType": (lambda i, d: pz_nn.CastToDType(d), {}),
    "groups": (
        lambda i, d: pz_nn.NamedGroup(
            "group",
            [
                pz_nn.CheckedSequential(chk.ANY, chk.ANY, [pz_nn.CheckStructure(chk.ANY)]),
                pz_nn.Sequential([pz_nn.Identity(), pz_nn.CheckpointName("sine")]),
                pz_nn.Elementwise(jnp.sin),
            ],
        ),
        {},
    ),
    "LinearInPlace": (
        lambda i, d: pz_nn.Linear.from_config("x", KEY, {"f": 6}, {"f": 3}, initializer=i, dtype=d),
        {},
    ),
    "NamedEinsum": (
        lambda i, d: pz_nn.Sequential(
            [
                Twice(),
                pz_nn.NamedEinsum(
                    ({"s": "q", "f": "f"}, {"s": "k", "f": "f"}), {"s": "q", "t": "k"}
                ),
            ]
        ),
        {},
    ),
    "EmbeddingLookup": (
        lambda i, d: pz_nn.Sequential(
            [
                pz_nn.Elementwise(lambda v: (v > 0).astype(jnp.int32)),
                pz_nn.EmbeddingLookup(
                    pz_nn.EmbeddingTable.from_config("x", KEY, 2, {"e": 3}, initializer=i, dtype=d)
                ),
            ]
        ),
        {},
    ),
    "LayerStack": (stack_of_affines, {}),
    "ForSomeBlocks": (
        lambda i, d: pz_nn.edit_blocks(
            stack_of_affines(i, d),
            [1],
            lambda block: pz_nn.Sequential([block, pz_nn.Elementwise(jnp.tanh)]),
        ),
        {},
    ),
    "ApplyCausalAttentionMask": mask(pz_nn.ApplyCausalAttentionMask),
    "ApplyCausalSlidingWindowAttentionMask": mask(pz_nn.ApplyCausalSlidingWindowAttentionMask, 2),
    "ApplySlidingWindowWithSinksAttentionMask": mask(
        pz_nn.ApplySlidingWindowWithSinksAttentionMask, 2, 1
    ),
    "ApplyPrefixAttentionMask": mask(pz_nn.ApplyPrefixAttentionMask, "prefix"),
    "ApplyBidirectionalAttentionMask": (
        lambda i, d: pz_nn.ApplyBidirectionalAttentionMask(-9.0, "k", "s", "f"),
        LOGITS,
    ),
    "ApplyExplicitAttentionMask": (
        lambda i, d: pz_nn.ApplyExplicitAttentionMask("keep", -9.0),
        {"keep": nx.arange("f", 6) % 2 == 0},
    ),
    "ApplyALiBi": (
        lambda i, d: pz_nn.ApplyALiBi(pz_nn.alibi_slopes({"heads": 2}), "p", "k", "s", "f"),
        LOGITS,
    ),
    "SoftmaxWithSink": (
        lambda i, d: pz_nn.SoftmaxWithSink(
            "f", Parameter(label="x", value=nx.wrap(jnp.asarray(0.5, d)))
        ),
        {},
    ),
    "Attention": (
        lambda i, d: attend(
            d,
            rope=pz_nn.ApplyRoPE("projection", 100.0, "p"),
            query_key_norm=True,
            use_bias=True,
            use_output_bias=True,
            logit_soft_cap=2.0,
        ),
        TOKENS,
    ),
    "Attention to packed documents": (
        lambda i, d: attend(
            d, mask=pz_nn.ApplyPackedDocumentAttentionMask(-1e4, "docs", "p", "k", "s")
        ),
        TOKENS,
    ),
    "Attention, fused": (
        lambda i, d: pz_nn.use_fused_attention(select(attend(d))),
        TOKENS,
    ),
    "KVCachingAttention": (
        lambda i, d: caching(pz_nn.KVCachingAttention, 5, attend(d), d),
        CACHED,
    ),
    "RingKVCachingAttention": (
        lambda i, d: caching(
            pz_nn.RingKVCachingAttention, 3, attend(d, window=2), d, kv_positions_input_name="k"
        ),
        CACHED,
    ),
    "Residual": (lambda i, d: pz_nn.Residual(pz_nn.Elementwise(jnp.sin)), {}),
    "BranchAndAddTogether": (
        lambda i, d: pz_nn.BranchAndAddTogether([pz_nn.Identity(), pz_nn.Elementwise(jnp.sin)]),
        {},
    ),
    "BranchAndMultiplyTogether": (
        lambda i, d: pz_nn.BranchAndMultiplyTogether([pz_nn.Identity(), pz_nn.Softmax("f")]),
        {},
    ),
    "ConcatBranches": (
        lambda i, d: pz_nn.ConcatBranches([pz_nn.Identity(), pz_nn.Elementwise(jnp.sin)], "f"),
        {},
    ),
}
# Relative to the largest entry of the result. Several layers round more than once.
TOLERANCES = {jnp.bfloat16: 4e-2, jnp.float16: 5e-3}

WITH_A_CACHE = ("KVCachingAttention", "RingKVCachingAttention")

every_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.mark.smoke
@every_layer
def test_compiled_equals_eager_and_order_of_axes_does_not_matter(name):
    _, sides = LAYERS[name]

    def results(dtype):
        layer, x = build(name, dtype), INPUT.astype(dtype)

        @jax.jit
        def run(x):
            return layer(x, **sides), layer(x.order_as("f", "n", "s"), **sides)

        eager, (compiled, permuted) = layer(x, **sides), run(x)
        assert axis_order(compiled) == axis_order(eager)
        assert compiled.dtype == permuted.dtype == eager.dtype == dtype
        return raw(eager), raw(compiled), raw(permuted, *eager.named_shape)

    eager, compiled, _ = results(jnp.float32)
    assert_close(compiled, eager, 2e-6)
    # Where terms cancel, the order of a sum shows in float32.
    with jax.enable_x64(True):
        eager, compiled, permuted = results(jnp.float64)
        assert_close(compiled, eager, 1e-12)
        assert_close(permuted, eager, 1e-12)


@every_layer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(name, dtype):
    _, sides = LAYERS[name]
    layer = build(name, dtype)
    if name == "Int8Linear":  # integers and float32 scales, whatever it was made of
        layer = build(name, jnp.float32)
    else:
        assert all(parameter.value.dtype == dtype for parameter in layer.parameters)
        # Initializers draw other numbers in another dtype; these are those of the float32 layer.
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), build(name, jnp.float32).parameters)
        layer = layer._replace(parameters=cast)
    y = jax.jit(lambda v: layer(v, **sides))(INPUT.astype(dtype))
    assert y.dtype == dtype
    exact = raw(result(name), *y.named_shape)
    assert_close(raw(y), exact, TOLERANCES[dtype] * max(1.0, np.abs(exact).max()))


@every_layer
def test_gradient(name, float64):
    _, sides = LAYERS[name]
    layer = build(name, jnp.float64)

    def run(data, parameters):
        y = layer._replace(parameters=parameters)(nx.wrap(data, "n", "s", "f"), **sides)
        return y.with_positional_prefix().data_array

    # JAX's fused attention sums in float32 whatever its input.
    options = {"step": 1e-3, "tolerance": 1e-3} if "fused" in name else {}
    check_gradients(run, raw(named(1, AXES)), layer.parameters, **options)


def layers_in(tree):
    """The classes of all layers in a tree."""
    children = tree_flatten_exactly_one_level(tree)
    below = set().union(*(layers_in(child) for _, child in children[0])) if children else set()
    return below | ({type(tree)} if isinstance(tree, pz_nn.Layer) else set())


def test_no_layer_is_forgotten():
    public = {getattr(pz_nn, name) for name in pz_nn.__all__}
    layers = {
        c
        for c in public
        if isinstance(c, type) and issubclass(c, pz_nn.Layer) and not inspect.isabstract(c)
    }
    tested = set().union(*(layers_in(make(draw, jnp.float32)) for make, _ in LAYERS.values()))
    assert {layer.__name__ for layer in layers - tested} == {
        "ExpertLinear",  # test_mixture_of_experts: rounding may choose another expert
        "MixtureOfExperts",
        "SuperBlock",  # test_stack_surgery: a Sequential
        "TakeSideInput",  # test_attention_variants: does not read its input
    }


def test_the_check_of_gradients_can_fail(float64):
    @jax.custom_vjp
    def wrong(x):
        return jnp.sin(x)

    wrong.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (1.001 * g * jnp.cos(x),))
    with pytest.raises(AssertionError):
        check_gradients(wrong, np.arange(3.0))
    check_gradients(jnp.sin, np.arange(3.0))


@every_layer
def test_batch_axes_of_any_name_and_number_and_unknown_side_inputs_of_any_name(name):
    if name in WITH_A_CACHE:
        pytest.skip("its cache has the batch axes")
    _, sides = LAYERS[name]
    unknown = dict.fromkeys(("self", "value", "argument", "inputs", "x", "layer", "names"), 1)
    layer = build(name, jnp.float32)
    expected = {n: s for n, s in result(name).named_shape.items() if n != "n"}
    for batch in ({}, {"n": 0}, {("odd", 1): 2, "value": 1, "out": 3}):
        x = nx.zeros({**batch, "s": 4, "f": 6})
        y = jax.eval_shape(lambda v: layer(v, **sides, **unknown), x)
        assert y.named_shape == {**batch, **expected}


@every_layer
@pytest.mark.parametrize("length", [0, 1])
def test_zero_length_sequences_and_one_token(name, length):
    _, sides = LAYERS[name]
    if name == "Affine":
        pytest.skip("its weights have the sequence as an axis")
    own = {"p", "docs"} if sides is LOGITS or sides is CACHED else {"p", "k", "docs"}
    sides = {key: nx.arange("s", length) if key in own else value for key, value in sides.items()}
    layer = build(name, jnp.float32)
    y = jax.jit(lambda v: layer(v, **sides))(nx.ones({"n": 2, "s": length, "f": 6}))
    assert y.named_shape["n"] == 2
    assert np.isfinite(raw(y)).all()
    full = result(name).named_shape.get("s")
    if full == INPUT.named_shape["s"]:
        assert y.named_shape["s"] == length


@every_layer
def test_hyperparameters_are_no_leaves(name):
    leaves = jax.tree.leaves(build(name, jnp.float32))
    assert [leaf for leaf in leaves if not isinstance(leaf, jax.Array)] == []
