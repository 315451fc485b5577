"""Errors of single layers, of builders and of the surgery on stacks, with the repairs they advise."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from block_zoo import F, H, P, Remember, affine, attention, gated_mlp
from error_cases import Case, check, ones

import pz_nn
from pz_core import select
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter, StateVariable, freeze_variables
from pz_named import named_axes as nx

KEY = jax.random.key(0)
X = ones(a=2, b=3)


def parameter(label, **sizes):
    return Parameter(label=label, value=ones(**sizes))


# --- linear operators -------------------------------------------------------------------------------


def einsum_shape(inputs, output, *arrays):
    return pz_nn.NamedEinsum(inputs, output)(tuple(arrays)).named_shape


def conv(x, **options):
    settings = {"input_axes": {"i": 2}, "output_axes": {"o": 3}, "padding": "VALID", **options}
    return pz_nn.Conv.from_config("c", KEY, window={"height": 3}, **settings)(x)


IMAGE = ones(height=5, i=2)
OPERATORS = {
    "RenameAxes: lengths": Case(
        ValueError,
        ("RenameAxes", "same length", "('a', 'b')", "('c',)", "each old name one new name"),
        lambda: pz_nn.RenameAxes(("a", "b"), ("c",))(X),
        lambda: pz_nn.RenameAxes(("a", "b"), ("c", "d"))(X),
        {"c": 2, "d": 3},
    ),
    "AddBias: missing axis": Case(
        ValueError,
        ("AddBias", "['c']", "{'a': 2, 'b': 3}", "{'c': 4}", "new_axis_names"),
        lambda: pz_nn.AddBias(parameter("b", c=4), ())(X),
        lambda: pz_nn.AddBias(parameter("b", c=4), ("c",))(X),
        {"a": 2, "b": 3, "c": 4},
    ),
    "AddBias: new axis is biased already": Case(
        ValueError,
        ("AddBias.from_config('b')", "['a']", "new_output_axes={'a': 2}", "another name"),
        lambda: pz_nn.AddBias.from_config("b", KEY, {"a": 2}, {"a": 2})(X),
        lambda: pz_nn.AddBias.from_config("b", KEY, {"a": 2}, {"c": 2})(X),
        {"a": 2, "b": 3, "c": 2},
    ),
    "NamedEinsum: specs that are no tuple": Case(
        TypeError,
        ("NamedEinsum", "input_axes", "dict", "`(spec,)`"),
        lambda: einsum_shape({"a": "a", "b": "b"}, ("a",), X),
        lambda: einsum_shape(({"a": "a", "b": "b"},), ("a",), X),
        {"a": 2},
    ),
    "NamedEinsum: a string as spec": Case(
        TypeError,
        ("NamedEinsum", "str 'b'", "('b',)"),
        lambda: einsum_shape(("b",), (), ones(b=3)),
        lambda: einsum_shape((("b",),), (), ones(b=3)),
        {},
    ),
    "NamedEinsum: no spec": Case(
        ValueError,
        ("NamedEinsum", "at least one input", "one spec for each input"),
        lambda: einsum_shape((), ()),
        lambda: einsum_shape((("a", "b"),), (), X),
        {},
    ),
    "NamedEinsum: output index that no input has": Case(
        ValueError,
        ("NamedEinsum", "['row']", "{'a': 'i', 'b': 'j'}", "Use the index"),
        lambda: einsum_shape(({"a": "i", "b": "j"},), {"row": "row"}, X),
        lambda: einsum_shape(({"a": "i", "b": "j"},), {"row": "i"}, X),
        {"row": 2},
    ),
    "NamedEinsum: repeated output index": Case(
        ValueError,
        ("NamedEinsum", "once", "{'a': 'i', 'b': 'i'}", "Remove the repetition"),
        lambda: einsum_shape((("i",),), {"a": "i", "b": "i"}, ones(i=2)),
        lambda: einsum_shape((("i",),), {"a": "i"}, ones(i=2)),
        {"a": 2},
    ),
    "NamedEinsum: repeated axis": Case(
        ValueError,
        ("NamedEinsum", "once", "('a', 'a')", "diagonal", "one index"),
        lambda: einsum_shape((("a", "a"),), ("a",), ones(a=2)),
        lambda: einsum_shape(({"a": "i", "b": "i"},), {"a": "i"}, ones(a=2, b=2)),
        {"a": 2},
    ),
    "NamedEinsum: batch axis named like an output axis": Case(
        ValueError,
        ("NamedEinsum", "['c']", "batch axes ('c',)", "Rename the batch axis first"),
        lambda: einsum_shape((("a",), ("a",)), {"c": "a"}, ones(a=2, c=3), ones(a=2, c=3)),
        lambda: einsum_shape((("a",), ("a",)), {"c": "a"}, ones(a=2, n=3), ones(a=2, n=3)),
        {"n": 3, "c": 2},
    ),
    "Conv: input": Case(
        ValueError,
        ("(c/Conv) ConvOperator", "{'i': 2}", "('height',)", "{'height': 5, 'i': 4}", "RenameAxes"),
        lambda: conv(ones(height=5, i=4)),
        lambda: conv(ones(height=5, i=4), input_axes={"i": 4}),
        {"height": 3, "o": 3},
    ),
    "Conv: axis in two groups": Case(
        ValueError,
        ("Conv.from_config('c')", "['height'] stand in several groups", "in the one group"),
        lambda: conv(IMAGE, output_axes={"height": 3}),
        lambda: conv(IMAGE, output_axes={"o": 3}),
        {"height": 3, "o": 3},
    ),
    "Conv: strides of another axis": Case(
        ValueError,
        ("strides", "('height',)", "['hight']", "Did you mean 'height'?"),
        lambda: conv(IMAGE, strides={"hight": 2}),
        lambda: conv(IMAGE, strides={"height": 2}),
        {"height": 2, "o": 3},
    ),
    "Conv: stride of 0": Case(
        ValueError,
        ("strides must be at least 1", "0", "1 means every entry"),
        lambda: conv(IMAGE, strides=0),
        lambda: conv(IMAGE, strides=1),
        {"height": 3, "o": 3},
    ),
    "Conv: padding": Case(
        ValueError,
        ("padding must be 'SAME'", "'same'", "{'height': (1, 1)}"),
        lambda: conv(IMAGE, padding="same"),
        lambda: conv(IMAGE, padding={"height": (1, 1)}),
        {"height": 5, "o": 3},
    ),
    "quantize_linear: integers": Case(
        TypeError,
        ("quantize_linear", "floating", "Parameter of dtype int32", "Bind or merge"),
        lambda: pz_nn.quantize_linear(
            pz_nn.Linear(Parameter(label="i", value=ones(jnp.int32, f=3)), ("f",), ())
        ),
        lambda: pz_nn.quantize_linear(pz_nn.Linear(parameter("i", f=3), ("f",), ()))(ones(f=3)),
        {},
    ),
    "Int8Linear: output axis there before": Case(
        ValueError,
        ("Int8Linear", "['g']", "{'f': 3, 'g': 2}", "RenameAxes"),
        lambda: INT8(ones(f=3, g=2)),
        lambda: INT8(pz_nn.RenameAxes("g", "h")(ones(f=3, g=2))),
        {"h": 2, "g": 2},
    ),
    "MixtureOfExperts: top_k": Case(
        ValueError,
        ("MixtureOfExperts", "top_k", "is 3 of 2", "'experts'", "smaller top_k"),
        lambda: experts(top_k=3)(ones(n=2, f=3)),
        lambda: experts(top_k=1)(ones(n=2, f=3)),
        {"n": 2, "f": 3},
    ),
    "ExpertLinear: axis in two groups": Case(
        ValueError,
        ("ExpertLinear.from_config('x')", "one group only", "['f']", "another name"),
        lambda: expert({"f": 3}).weights.value,
        lambda: expert({"g": 3}).weights.value,
        {"experts": 2, "f": 3, "g": 3},
    ),
    "ExpertLinear outside of a mixture": Case(
        ValueError,
        ("ExpertLinear", "'tokens'", "{'n': 2, 'f': 3}", "inside a MixtureOfExperts"),
        lambda: expert({"g": 3})(ones(n=2, f=3), expert_group_sizes=jnp.array([2, 0])),
        lambda: experts(top_k=1)(ones(n=2, f=3)),
        {"n": 2, "f": 3},
    ),
}
INT8 = pz_nn.quantize_linear(pz_nn.Linear.from_config("q", KEY, {"f": 3}, {"g": 2}))


def expert(output_axes):
    return pz_nn.ExpertLinear.from_config("x", KEY, {"f": 3}, output_axes, 2)


def experts(top_k):
    return pz_nn.MixtureOfExperts.from_config("m", KEY, {"f": 3}, {"h": 2}, 2, top_k)


# --- other layers -----------------------------------------------------------------------------------

TABLE = pz_nn.EmbeddingTable.from_config("t", KEY, 4, {"e": 2})
SCALED = pz_nn.LongRoPEScaling((1.0,) * 2, (2.0,) * 4, 8, 2.0)
ROWS = ones(row=2, s=3, e=4)


def rotate(x=ROWS, length=None, **options):
    layer = pz_nn.ApplyRoPE("e", 100.0, "p", **options)
    return layer(x, p=nx.arange("s", 3), **({} if length is None else {"rope_length": length}))


def masked(positions, **options):
    return pz_nn.ApplyCausalAttentionMask(-1e9, **options)(
        ones(seq=2, kv_seq=2), token_positions=positions
    )


def standardized(**options):
    return pz_nn.LayerNorm.from_config("n", KEY, {"a": 2}, **options)(X)


def drawn(mode="fan_in", distribution="normal", dtype=jnp.float32):
    return pz_nn.variance_scaling_initializer(
        KEY,
        scale=1.0,
        mode=mode,
        distribution=distribution,
        input_axes={"i": 2},
        output_axes={"o": 3},
        parallel_axes={},
        convolution_spatial_axes={},
        dtype=dtype,
    )


def two_linears(*names):
    with pz_nn.unique_parameter_names():
        layers = [pz_nn.Linear.from_config(name, None, {"f": 3}, {"f": 3}) for name in names]
    return len(layers)


LAYERS = {
    "an input without names": Case(
        TypeError,
        ("Softmax", "a named array", 'wrap(array, "batch", "features")'),
        lambda: pz_nn.Softmax("features")(jnp.ones((2, 3))),
        lambda: pz_nn.Softmax("features")(nx.wrap(jnp.ones((2, 3)), "batch", "features")),
        {"batch": 2, "features": 3},
    ),
    "dropout of an input without names": Case(
        TypeError,
        ("StochasticDropout", "a named array", 'wrap(array, "batch", "features")'),
        lambda: pz_nn.StochasticDropout(0.5)(jnp.ones((2, 3)), random_stream=FixedKey()),
        lambda: pz_nn.StochasticDropout(0.5)(
            nx.wrap(jnp.ones((2, 3)), "batch", "features"), random_stream=FixedKey()
        ),
        {"batch": 2, "features": 3},
    ),
    "positions without names": Case(
        TypeError,
        ("ApplyCausalAttentionMask", "'token_positions'", "named array", "wrap(array, 'seq', ...)"),
        lambda: masked(jnp.arange(2)),
        lambda: masked(nx.wrap(jnp.arange(2), "seq")),
        {"seq": 2, "kv_seq": 2},
    ),
    "positions without the token axis": Case(
        ValueError,
        ("'token_positions'", "the axis 'seq'", "{'tokens': 2}", "another seq_axis"),
        lambda: masked(nx.arange("tokens", 2)),
        lambda: pz_nn.ApplyCausalAttentionMask(-1e9, seq_axis="tokens")(
            ones(tokens=2, kv_seq=2), token_positions=nx.arange("tokens", 2)
        ),
        {"tokens": 2, "kv_seq": 2},
    ),
    "RoPE: pairing": Case(
        ValueError,
        ("ApplyRoPE", "'halves' or 'interleaved'", "'quarters'", "use 'halves'"),
        lambda: rotate(pairing="quarters"),
        lambda: rotate(pairing="halves"),
        {"row": 2, "s": 3, "e": 4},
    ),
    "RoPE: frequencies": Case(
        ValueError,
        ("ApplyRoPE", "`frequencies`", "'e' of size 2", "{'e': 4}", "each pair of features"),
        lambda: rotate(frequencies=ones(e=4)),
        lambda: rotate(frequencies=ones(e=2)),
        {"row": 2, "s": 3, "e": 4},
    ),
    "RoPE: axis of the length that the input lacks": Case(
        ValueError,
        ("ApplyRoPE", "'rope_length'", "['other']", "{'other': 2}", "one length for each row"),
        lambda: rotate(length=nx.arange("other", 2), scaling=pz_nn.DynamicScaling(2.0, 2)),
        lambda: rotate(length=nx.arange("row", 1, 3), scaling=pz_nn.DynamicScaling(2.0, 2)),
        {"row": 2, "s": 3, "e": 4},
    ),
    "LongRoPE: factors": Case(
        ValueError,
        ("LongRoPEScaling", "long_factor", "2 rotated pairs", "has 4", "the rotated axis (4)"),
        lambda: rotate(length=9, scaling=SCALED),
        lambda: rotate(length=9, scaling=dataclasses.replace(SCALED, long_factor=(2.0,) * 2)),
        {"row": 2, "s": 3, "e": 4},
    ),
    "sinusoidal positions of odd size": Case(
        ValueError,
        ("AddSinusoidalPositions", "even", "'e' has size 3", "one feature more"),
        lambda: pz_nn.AddSinusoidalPositions("e", "p")(ones(s=3, e=3), p=nx.arange("s", 3)),
        lambda: pz_nn.AddSinusoidalPositions("e", "p")(ones(s=3, e=4), p=nx.arange("s", 3)),
        {"s": 3, "e": 4},
    ),
    "EmbeddingLookup: ids outside the table": Case(
        IndexError,
        ("EmbeddingLookup", "[-4, 3]", "4 entries", "from 0 to 4", "tokenizer and model"),
        lambda: pz_nn.EmbeddingLookup(TABLE)(nx.arange("s", 5)),
        lambda: pz_nn.EmbeddingLookup(TABLE)(nx.arange("s", 4)),
        {"e": 2, "s": 4},
    ),
    "EmbeddingLookup: ids that are no integers": Case(
        TypeError,
        ("EmbeddingLookup", "integers", "float32", "`ids.astype(jnp.int32)`"),
        lambda: pz_nn.EmbeddingLookup(TABLE)(ones(s=3)),
        lambda: pz_nn.EmbeddingLookup(TABLE)(ones(s=3).astype(jnp.int32)),
        {"e": 2, "s": 3},
    ),
    "EmbeddingLookup: embedding axis in the ids": Case(
        ValueError,
        ("EmbeddingLookup", "['e']", "{'e': 2}", "RenameAxes"),
        lambda: pz_nn.EmbeddingLookup(TABLE)(nx.arange("e", 2)),
        lambda: pz_nn.EmbeddingLookup(TABLE)(pz_nn.RenameAxes("e", "s")(nx.arange("e", 2))),
        {"e": 2, "s": 2},
    ),
    "EmbeddingDecode: logits": Case(
        ValueError,
        ("EmbeddingDecode", "'vocabulary'", "{'e': 2, 'vocabulary': 4}", "rename the axis"),
        lambda: pz_nn.EmbeddingDecode(TABLE)(ones(e=2, vocabulary=4)),
        lambda: pz_nn.EmbeddingDecode(TABLE)(
            pz_nn.RenameAxes("vocabulary", "n")(ones(e=2, vocabulary=4))
        ),
        {"n": 4, "vocabulary": 4},
    ),
    "GroupNorm: groups": Case(
        ValueError,
        ("GroupStandardize", "'a' has size 2", "groups=4", "Choose a divisor"),
        lambda: pz_nn.GroupStandardize("a", 4, ())(X),
        lambda: pz_nn.GroupStandardize("a", 2, ())(X).named_shape.keys(),
        X.named_shape.keys(),
    ),
    "LayerNorm: scale before cast": Case(
        ValueError,
        ("LayerNorm.from_config", "compute_dtype is None", "compute_dtype=jnp.float32"),
        lambda: standardized(scale_before_cast=True, compute_dtype=None),
        lambda: standardized(scale_before_cast=True, compute_dtype=jnp.float32),
        {"b": 3, "a": 2},
    ),
    "epsilon that is no number": Case(
        TypeError,
        ("Standardize", "epsilon must be a number", "Pass a Python number"),
        lambda: pz_nn.Standardize("a", X),
        lambda: pz_nn.Standardize("a", 1e-6)(X),
        {"b": 3, "a": 2},
    ),
    "ScaleWithOffset: size": Case(
        ValueError,
        ("ScaleWithOffset", "{'a': 2, 'b': 3}", "{'a': 4}", "sizes of the input"),
        lambda: pz_nn.ScaleWithOffset(parameter("w", a=4), 1.0)(X),
        lambda: pz_nn.ScaleWithOffset(parameter("w", a=2), 1.0)(X),
        {"a": 2, "b": 3},
    ),
    "initializer: mode": Case(
        ValueError,
        ("variance_scaling_initializer", "mode", "'fan_im'", "Did you mean 'fan_in'?"),
        lambda: drawn(mode="fan_im"),
        lambda: drawn(mode="fan_in"),
        {"i": 2, "o": 3},
    ),
    "initializer: dtype": Case(
        ValueError,
        ("variance_scaling_initializer", "floating", "int32", "cast the result"),
        lambda: drawn(dtype=jnp.int32),
        lambda: drawn().astype(jnp.int32),
        {"i": 2, "o": 3},
    ),
    "initializer by an unknown name": Case(
        ValueError,
        ("initializer_by_name", "'xavier_norm'", "Did you mean 'xavier_normal'?"),
        lambda: pz_nn.initializer_by_name("xavier_norm"),
        lambda: pz_nn.initializer_by_name("xavier_normal") is pz_nn.xavier_normal_initializer,
        True,
    ),
    "one name for two layers": Case(
        pz_nn.DuplicateParameterNameError,
        ("make_parameter", "'same.weights'", "another name", "same object in both places"),
        lambda: two_linears("same", "same"),
        lambda: two_linears("one", "other"),
        2,
    ),
}


class FixedKey:
    """A random stream that always gives the same key."""

    def next_key(self):
        return KEY


# --- attention --------------------------------------------------------------------------------------


def attend(embedding=4, heads=2, kv_heads=None, **options):
    layer = pz_nn.Attention.from_config("a", KEY, embedding, heads, kv_heads, **options)
    return layer(ones(seq=2, embedding=embedding), token_positions=nx.arange("seq", 2))


def fused(layer):
    return type(pz_nn.use_fused_attention(layer)).__name__


def cached(x=None, sequence_axis="seq", end=0, batch=None, **options):
    mask = pz_nn.ApplyCausalAttentionMask(-1e30, kv_positions_input_name="kv_positions")
    options = {"cached_axes": {**(batch or {}), "heads": H, "p": P}, **options}
    layer = pz_nn.KVCachingAttention.from_uncached(
        attention("a", KEY, mask=mask), sequence_axis, 4, cache_end_index_key="end", **options
    )
    side = {"token_positions": nx.arange("seq", 2), "kv_positions": nx.arange("seq", 4)}
    return layer(ones(**(x or {"seq": 2, "f": F})), end=end, **side)


def in_a_ring(cache_len, mask):
    layer = pz_nn.RingKVCachingAttention.from_uncached(
        attention("a", KEY, mask=mask), "seq", cache_len, {"heads": H, "p": P}, "end"
    )
    return layer.kv_cache.value[0].named_shape["seq"]


PLAIN = pz_nn.Attention.from_config("a", None, 4, 2)
WITH_IDENTITY = select(PLAIN).at_instances_of(pz_nn.Softmax).insert_after(pz_nn.Identity())
WINDOW = pz_nn.ApplyCausalSlidingWindowAttentionMask(-1e30, 3)
OUTPUT = {"seq": 2, "embedding": 4}
ATTENTION = {
    "heads that cannot be grouped": Case(
        ValueError,
        ("Attention.from_config('a')", "num_heads=2", "num_kv_heads=3", "or a divisor"),
        lambda: attend(heads=2, kv_heads=3),
        lambda: attend(heads=2, kv_heads=1),
        OUTPUT,
    ),
    "size of a head": Case(
        ValueError,
        ("Attention.from_config('a')", "embedding_dim=4", "num_heads=3", "Give projection_dim"),
        lambda: attend(heads=3),
        lambda: attend(heads=3, projection_dim=2),
        OUTPUT,
    ),
    "ALiBi without heads": Case(
        ValueError,
        ("alibi_slopes", "at least one head", "{'heads': 0}", "size of at least 1"),
        lambda: pz_nn.alibi_slopes({"heads": 0}),
        lambda: pz_nn.alibi_slopes({"heads": 1}),
        {"heads": 1},
    ),
    "fused attention that needs its weights": Case(
        pz_nn.FusedAttentionError,
        ("use_fused_attention", "the root", "explicit weights", "Identity follows its softmax"),
        lambda: fused(select(WITH_IDENTITY)),
        lambda: fused(
            select(
                select(WITH_IDENTITY)
                .at(lambda layer: layer.query_key_to_attn)
                .at_instances_of(pz_nn.Identity)
                .remove_from_parent()
            )
        ),
        "Attention",
    ),
    "fused attention of nothing": Case(
        ValueError,
        ("use_fused_attention", "no attention layer", "select(model)"),
        lambda: fused(select(PLAIN).at(lambda layer: layer.input_to_query)),
        lambda: fused(select(PLAIN)),
        "Attention",
    ),
    "cache: axis given twice": Case(
        ValueError,
        ("KVCachingAttention.from_uncached", "['seq']", "sequence_axis='seq'", "Leave token axis"),
        lambda: cached(cached_axes={"heads": H, "p": P, "seq": 4}),
        lambda: cached(cached_axes={"heads": H, "p": P}),
        {"seq": 2, "f": F},
    ),
    "cache: index with positional axes": Case(
        TypeError,
        ("KVCachingAttention", "'end'", "shape (3,)", "wrap(index, 'batch')"),
        lambda: cached({"batch": 3, "seq": 2, "f": F}, end=jnp.zeros(3, int), batch={"batch": 3}),
        lambda: cached(
            {"batch": 3, "seq": 2, "f": F},
            end=nx.wrap(jnp.zeros(3, int), "batch"),
            batch={"batch": 3},
        ),
        {"batch": 3, "seq": 2, "f": F},
    ),
    "cache: token axis": Case(
        ValueError,
        ("KVCachingAttention", "the axis 'tokens'", "'seq': 2", "as sequence_axis"),
        lambda: cached(sequence_axis="tokens"),
        lambda: cached(sequence_axis="seq"),
        {"seq": 2, "f": F},
    ),
    "cache: batch axis": Case(
        ValueError,
        ("KVCachingAttention", "{'rows': 3}", "belongs in cached_axes"),
        lambda: cached({"rows": 3, "seq": 2, "f": F}),
        lambda: cached({"rows": 3, "seq": 2, "f": F}, batch={"rows": 3}),
        {"rows": 3, "seq": 2, "f": F},
    ),
    "ring without a window": Case(
        ValueError,
        ("RingKVCachingAttention.from_uncached", "it has none", "KVCachingAttention"),
        lambda: in_a_ring(4, pz_nn.ApplyCausalAttentionMask(-1e30)),
        cached,
        {"seq": 2, "f": F},
    ),
    "ring smaller than the window": Case(
        ValueError,
        ("RingKVCachingAttention.from_uncached", "cache_len is 2", "window 3", "cache_len=3"),
        lambda: in_a_ring(2, WINDOW),
        lambda: in_a_ring(3, WINDOW),
        3,
    ),
}

# --- stacks -----------------------------------------------------------------------------------------


@pytree_dataclass
class Holds(pz_nn.Layer):
    """Has a child that need not be a layer."""

    child: object

    def __call__(self, x, /, **_side_inputs):
        return x


@pytree_dataclass
class HoldsText(pz_nn.Layer):
    """Has a text that is no child."""

    text: str = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, x, /, **_side_inputs):
        return x


@pytree_dataclass
class Saves(pz_nn.Layer):
    """Puts what a function makes of its input into a state."""

    state: StateVariable
    make: object = dataclasses.field(metadata={"pytree_node": False})

    def __call__(self, x, /, **_side_inputs):
        self.state.value = self.make(x)
        return x


def saved(make):
    metadata = {"layerstack_axes": {"blocks": pz_nn.LayerStackVarBehavior.PER_LAYER}}
    state = StateVariable(ones(blocks=2), label="s", metadata=metadata)
    pz_nn.LayerStack(Saves(state, make), "blocks", 2)(ones(f=3))
    return state.value


def built(block):
    make = pz_nn.LayerStack.from_sublayer_builder
    return make(lambda init_base_rng: block, "blocks", 2, KEY, {})(ones(f=2))


def restacked(blocks, *form, **options):
    """Stacks blocks and says how: the class of the stacked block."""
    stack = pz_nn.restack(blocks, "blocks", *form, **options)
    return type(stack.stacked_sublayers).__name__


def run_and_restack(*blocks):
    for block in blocks:
        block(ones(f=2))
    return restacked(blocks)


def remembering():
    return [Remember(StateVariable(None, label="s")) for _ in range(2)]


def ropes(scaling=None, *inputs):
    names = inputs or ("token_positions",) * 2
    pairs = zip((10.0, 100.0), names, strict=True)
    return [pz_nn.ApplyRoPE("p", length, name, scaling=scaling) for length, name in pairs]


MLP, OTHER = gated_mlp("net/block_0", KEY), affine("net/block_1", KEY)
CAUSAL = pz_nn.ApplyCausalAttentionMask(0.0)
STACK = pz_nn.LayerStack.from_sublayer_builder(affine, "blocks", 2, KEY, {"name": "decoder"})
BLOCKS = pz_nn.unstack(STACK, stacked_name="decoder", block_name="layer{i}")
STACKS = {
    "builder: a text as leaf": Case(
        TypeError,
        ("from_sublayer_builder", "is a str", 'dataclasses.field(metadata={"pytree_node": False})'),
        lambda: built(Holds("text")),
        lambda: built(HoldsText("text")),
        {"f": 2},
    ),
    "state per layer left without names": Case(
        ValueError,
        ("LayerStack", "'s' is PER_LAYER", "without names", "nx.wrap(array, ...names)"),
        lambda: saved(lambda x: x.unwrap("f")),
        lambda: saved(lambda x: nx.wrap(x.unwrap("f"), "f")),
        {"blocks": 2, "f": 3},
    ),
    "structure of the argument": Case(
        ValueError,
        ("structure of the argument", "what the next block expects"),
        lambda: pz_nn.LayerStack(lambda x, /, **_: (x, x), "blocks", 2)(X),
        lambda: pz_nn.LayerStack(lambda x, /, **_: (x[1], x[0]), "blocks", 2)((X, X))[0],
        {"a": 2, "b": 3},
    ),
    "checkpoint policy": Case(
        ValueError,
        ("checkpoint", "'nothing_savable'", "Did you mean", "'nothing_saveable'"),
        lambda: dataclasses.replace(STACK, checkpoint="nothing_savable")(ones(f=F)),
        lambda: dataclasses.replace(STACK, checkpoint="nothing_saveable")(ones(f=F)),
        {"f": F},
    ),
    "unstack: part that names the stack": Case(
        ValueError,
        ("unstack", "'decoder/Linear.weights'", "'blocks'", "stacked_name=..."),
        lambda: pz_nn.unstack(STACK),
        lambda: len(pz_nn.unstack(STACK, stacked_name="decoder").sublayers),
        2,
    ),
    "restack: parts that name the blocks": Case(
        ValueError,
        ("restack", "block_0", "'layer0/Linear.weights'", "block_name=..."),
        lambda: restacked(BLOCKS),
        lambda: restacked(BLOCKS, stacked_name="decoder", block_name="layer{i}"),
        "Affine",
    ),
    "restack: blocks of different kinds": Case(
        ValueError,
        ("restack", "blocks 0 and 1", 'form="super_block" or form="scanned"'),
        lambda: restacked([MLP, OTHER]),
        lambda: restacked([MLP, OTHER], "super_block"),
        "SuperBlock",
    ),
    "restack: sizes": Case(
        ValueError,
        ("restack", "{'f': 2}", "{'f': 3}", "blocks of equal sizes"),
        lambda: restacked([Holds(ones(f=2)), Holds(ones(f=3))]),
        lambda: restacked([Holds(ones(f=2)), Holds(ones(f=2))]),
        "Holds",
    ),
    "restack: the stack axis is there": Case(
        ValueError,
        ("restack", "'blocks'", "{'blocks': 2}", "another stack_axis"),
        lambda: restacked([Holds(ones(blocks=2)), Holds(ones(blocks=2))]),
        lambda: (
            pz_nn.restack(
                [Holds(ones(blocks=2)), Holds(ones(blocks=2))], "layers"
            ).stacked_sublayers.child
        ),
        {"layers": 2, "blocks": 2},
    ),
    "restack: plain arrays that differ": Case(
        ValueError,
        ("restack", "can therefore not vary", "Make it a named array"),
        lambda: restacked([Holds(jnp.zeros(2)), Holds(jnp.ones(2))]),
        lambda: restacked([Holds(nx.wrap(jnp.zeros(2), "f")), Holds(ones(f=2))]),
        "Holds",
    ),
    "restack: plain arrays in variables": Case(
        ValueError,
        ("restack", "must be named arrays", "nx.wrap(array, ...names)"),
        lambda: restacked([Holds(StateVariable(jnp.ones(1), label="s")) for _ in range(2)]),
        lambda: restacked([Holds(StateVariable(ones(f=1), label="s")) for _ in range(2)]),
        "Holds",
    ),
    "restack: bound and frozen": Case(
        ValueError,
        ("restack", "different things", "Parameter, ParameterValue", "bind, or freeze"),
        lambda: restacked([Holds(parameter("w")), freeze_variables(Holds(parameter("w")))]),
        lambda: restacked([freeze_variables(Holds(parameter("w"))) for _ in range(2)]),
        "Holds",
    ),
    "restack: states of which one was run": Case(
        ValueError,
        ("restack", "one structure", "Run all blocks, or none"),
        lambda: restacked([remembering()[0], Remember(StateVariable(ones(f=2), label="s"))]),
        lambda: run_and_restack(*remembering()),
        "Remember",
    ),
    "restack: nothing": Case(
        ValueError,
        ("restack", "at least one block", "Identity()"),
        lambda: restacked([]),
        lambda: pz_nn.Identity()(X),
        {"a": 2, "b": 3},
    ),
    "restack: form": Case(
        ValueError,
        ("restack", "'super_block' or 'scanned'", "'superblock'"),
        lambda: restacked([MLP, OTHER], "superblock"),
        lambda: restacked([MLP, OTHER], "super_block"),
        "SuperBlock",
    ),
    "scanned: other differences": Case(
        ValueError,
        ('restack(form="scanned")', "blocks 0 and 1", 'form="super_block"'),
        lambda: restacked([MLP, OTHER], "scanned"),
        lambda: restacked([MLP, OTHER], "super_block"),
        "SuperBlock",
    ),
    "scanned: a mask in some blocks": Case(
        ValueError,
        ('restack(form="scanned")', "ApplyCausalAttentionMask, Identity", 'form="super_block"'),
        lambda: restacked([Holds(pz_nn.Identity()), Holds(CAUSAL)], "scanned"),
        lambda: restacked([Holds(pz_nn.Identity()), Holds(CAUSAL)], "super_block"),
        "SuperBlock",
    ),
    "scanned: rotary embeddings that read different positions": Case(
        ValueError,
        ('restack(form="scanned")', "more than their frequencies", 'form="super_block"'),
        lambda: restacked(ropes(None, "p", "q"), "scanned", axis_sizes={"p": 4}),
        lambda: restacked(ropes(None, "p", "q"), "super_block"),
        "SuperBlock",
    ),
    "scanned: unknown size of the rotated axis": Case(
        ValueError,
        ('restack(form="scanned")', "'p'", "axis_sizes={'p': ...}"),
        lambda: restacked(ropes(), "scanned"),
        lambda: restacked(ropes(), "scanned", axis_sizes={"p": 4}),
        "ApplyRoPE",
    ),
    "scanned: frequencies that depend on the length": Case(
        ValueError,
        ('restack(form="scanned")', "length of the sequence", "rope_length=..."),
        lambda: restacked(ropes(pz_nn.DynamicScaling(2.0, 4)), "scanned", axis_sizes={"p": 4}),
        lambda: restacked(
            ropes(pz_nn.DynamicScaling(2.0, 4)), "scanned", axis_sizes={"p": 4}, rope_length=8
        ),
        "ApplyRoPE",
    ),
    "edit_blocks: no such block": Case(
        IndexError,
        ("edit_blocks", "[-2, 1]", "2 booleans", "are 2", "2 blocks along 'blocks'"),
        lambda: pz_nn.edit_blocks(STACK, 2, lambda block: pz_nn.Identity()),
        lambda: pz_nn.edit_blocks(STACK, 1, lambda block: pz_nn.Identity())(ones(f=F)),
        {"f": F},
    ),
    "edit_blocks: an edit that gives no layer": Case(
        ValueError,
        ("edit_blocks", "what is no layer", "Return a layer from the edit"),
        lambda: pz_nn.edit_blocks(STACK, 1, lambda block: None),
        lambda: pz_nn.edit_blocks(STACK, 1, lambda block: pz_nn.Identity())(ones(f=F)),
        {"f": F},
    ),
}

CASES = {**OPERATORS, **LAYERS, **ATTENTION, **STACKS}


@pytest.mark.parametrize("name", CASES)
def test_error_says_what_to_do_and_that_works(name):
    check(CASES[name])
