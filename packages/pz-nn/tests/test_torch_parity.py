"""The layers against PyTorch in float64 or float32, and rotary scalings against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, named, raw

from pz_core.variables import Parameter, freeze_variables
from pz_named import named_axes as nx
from pz_nn.batch_norm import BatchNorm
from pz_nn.convolution import ConvOperator, ConvTransposeOperator
from pz_nn.embeddings import ApplyRoPE
from pz_nn.group_norm import GroupStandardize
from pz_nn.linear_and_affine import Linear
from pz_nn.mixture_of_experts import MixtureOfExperts
from pz_nn.pooling import AveragePool, MaxPool
from pz_nn.recurrent import GRUCell, LSTMCell, ScanOver
from pz_nn.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    YarnScaling,
)
from pz_nn.standardization import LayerNorm, RMSLayerNorm

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def tensor(array, *order):
    return torch.tensor(raw(array, *order))


def frozen(label, array):
    return Parameter(label=label, value=array).freeze()


def test_norms(float64):
    x = named(0, {"n": 3, "c": 8, "s": 5}, jnp.float64)
    w, b = named(1, {"c": 8}, jnp.float64), named(2, {"c": 8}, jnp.float64)
    parameters = [frozen("N/scale.weights", w), frozen("N/shift.bias", b)]
    layer = LayerNorm.from_config("N", None, {"c": 8}, epsilon=1e-5).bind_variables(parameters)
    data = tensor(x, "n", "s", "c")
    expected = torch.nn.functional.layer_norm(data, (8,), tensor(w), tensor(b), 1e-5)
    assert_close(raw(layer(x), "n", "s", "c"), expected, 1e-12)
    layer = RMSLayerNorm.from_config("N", None, {"c": 8}, epsilon=1e-5)
    layer = layer.bind_variables(parameters[:1])
    expected = torch.nn.functional.rms_norm(data, (8,), tensor(w), 1e-5)
    assert_close(raw(layer(x), "n", "s", "c"), expected, 1e-12)
    expected = torch.nn.functional.group_norm(tensor(x), 4, eps=1e-5)
    assert_close(raw(GroupStandardize("c", 4, "s")(x)), expected, 1e-12)


def test_batch_norm():
    x = named(0, {"n": 3, "c": 8, "s": 5})
    ours = BatchNorm.from_config("b", jax.random.key(0), {"c": 8})
    theirs = torch.nn.BatchNorm1d(8).double()
    assert_close(raw(ours(x)), theirs(tensor(x)).detach(), 1e-5)
    standardize = ours.sublayers[0]
    assert_close(raw(standardize.running_mean.value), theirs.running_mean, 1e-6)
    assert_close(raw(standardize.running_variance.value), theirs.running_var, 1e-6)
    inference = standardize.for_inference()
    assert_close(raw(inference(x)), theirs.eval()(tensor(x)).detach(), 1e-5)


@pytest.mark.parametrize("bits", ["bfloat16", "float16"])
def test_low_precision_layer_norm_rounds_once_like_torch(bits):
    x, w, b = (named(i, {"n": 4, "c": 64} if i == 0 else {"c": 64}, bits) for i in range(3))
    layer = LayerNorm.from_config("N", None, {"c": 64}, epsilon=1e-5, scale_before_cast=True)
    layer = layer.bind_variables([frozen("N/scale.weights", w), frozen("N/shift.bias", b)])
    low = [tensor(t).to(getattr(torch, bits)) for t in (x, w, b)]
    expected = torch.nn.functional.layer_norm(low[0], (64,), low[1], low[2], 1e-5).double()
    assert (raw(layer(x)) == expected.numpy()).mean() > 0.99


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("stride, padding, dilation, groups", [(1, 0, 1, 1), (2, 1, 2, 2)])
def test_convolutions(dimensions, stride, padding, dilation, groups):
    axes = ["d", "h", "w"][:dimensions]
    x = named(0, {"n": 2, "g": groups, "i": 3, **dict.fromkeys(axes, 7)})
    w = named(1, {"g": groups, **dict.fromkeys(axes, 3), "i": 3, "o": 2})
    settings = (
        ("i",),
        ("o",),
        tuple(axes),
        (stride,) * dimensions,
        ((padding, padding),) * dimensions,
        (dilation,) * dimensions,
    )
    data = tensor(x, "n", "g", "i", *axes).flatten(1, 2)
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    y = ConvOperator(frozen("c.weights", w), *settings)(x)
    function = getattr(torch.nn.functional, f"conv{dimensions}d")
    expected = function(data, tensor(w, "g", "o", "i", *axes).flatten(0, 1), **options)
    assert_close(raw(y, "n", "g", "o", *axes).reshape(expected.shape), expected)
    y = ConvTransposeOperator(frozen("c.weights", w), *settings)(x)
    function = getattr(torch.nn.functional, f"conv_transpose{dimensions}d")
    expected = function(data, tensor(w, "g", "i", "o", *axes).flatten(0, 1), **options)
    assert_close(raw(y, "n", "g", "o", *axes).reshape(expected.shape), expected)


@pytest.mark.parametrize("count_padding", [True, False])
def test_pooling(count_padding):
    x = named(0, {"n": 2, "c": 3, "h": 7, "w": 6})
    options = dict(window={"h": 3, "w": 2}, strides={"h": 2, "w": 1}, padding={"h": (1, 1)})
    expected = torch.nn.functional.max_pool2d(tensor(x), (3, 2), (2, 1), (1, 0))
    assert_close(raw(MaxPool.over(**options)(x)), expected)
    expected = torch.nn.functional.avg_pool2d(
        tensor(x), (3, 2), (2, 1), (1, 0), count_include_pad=count_padding
    )
    assert_close(raw(AveragePool.over(**options, count_padding=count_padding)(x)), expected)


@pytest.mark.parametrize("cell_class, gates", [(GRUCell, 3), (LSTMCell, 4)])
def test_recurrent_cells(cell_class, gates):
    cell = cell_class.from_config("r", jax.random.key(0), {"f": 3}, {"h": 4})
    cell.input.sublayers[-1].bias.value = named(1, {"gates": gates, "h": 4})
    theirs = (torch.nn.GRU if gates == 3 else torch.nn.LSTM)(3, 4, batch_first=True).double()
    recurrent = cell.recurrent.sublayers[0].weights.value
    with torch.no_grad():
        w = tensor(cell.input.sublayers[0].weights.value, "gates", "h", "f")
        theirs.weight_ih_l0.copy_(w.flatten(0, 1))
        theirs.weight_hh_l0.copy_(tensor(recurrent, "gates", "h_out", "h").flatten(0, 1))
        theirs.bias_ih_l0.copy_(tensor(cell.input.sublayers[-1].bias.value).flatten())
        theirs.bias_hh_l0.zero_()
    x = named(0, {"n": 2, "t": 5, "f": 3})
    expected = theirs(tensor(x))[0].detach()
    assert_close(raw(ScanOver(freeze_variables(cell), "t")(x), "n", "t", "h"), expected)


def test_linear_in_float64(float64):
    x, w = named(0, {"n": 3, "i": 5}, jnp.float64), named(1, {"i": 5, "o": 2}, jnp.float64)
    layer = Linear(frozen("L.weights", w), ("i",), ("o",))
    expected = torch.nn.functional.linear(tensor(x), tensor(w, "o", "i"))
    assert_close(raw(layer(x)), expected, 1e-12)


HF_SCALINGS = [
    (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}, None),
    (DynamicScaling(2.0, 4096), {"rope_type": "dynamic", "factor": 2.0}, 9000),
    (
        Llama3Scaling(8.0, 1.0, 4.0, 256),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        None,
    ),
    (
        YarnScaling(16.0, 256, beta_fast=20.0, mscale=0.7, mscale_all_dim=0.5),
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 20.0,
            "mscale": 0.7,
            "mscale_all_dim": 0.5,
        },
        None,
    ),
    (
        LongRoPEScaling(
            tuple(1 + i / 8 for i in range(8)), tuple(2.0 + i for i in range(8)), 1024, 4.0
        ),
        {
            "rope_type": "longrope",
            "short_factor": [1 + i / 8 for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
        2000,
    ),
]


@pytest.mark.parametrize("scaling, parameters, length", HF_SCALINGS)
def test_rope_scalings(scaling, parameters, length):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 1e4, **parameters},
    )
    function = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    expected, factor = function(config, "cpu", seq_len=length)
    ours = scaling.frequencies(16, 1e4, length)
    np.testing.assert_allclose(np.asarray(ours), expected.numpy(), rtol=3e-7)
    assert_close(scaling.attention_scale(), factor, 1e-12)


@pytest.mark.parametrize("bits", ["float32", "bfloat16"])
def test_rope_follows_huggingface_bit_for_bit(bits):
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama

    x = named(0, {"n": 2, "heads": 3, "s": 50, "e": 16}, bits)
    positions = nx.wrap(jnp.arange(100).reshape(2, 50) * 37, "n", "s")
    config = LlamaConfig(hidden_size=48, num_attention_heads=3, head_dim=16)
    rotary = modeling_llama.LlamaRotaryEmbedding(config)
    data = tensor(x).to(getattr(torch, bits))
    cos, sin = rotary(data, torch.tensor(np.asarray(positions.unwrap("n", "s"))))
    expected, _ = modeling_llama.apply_rotary_pos_emb(data, data, cos, sin)
    layer = ApplyRoPE("e", 10_000.0, "p", angles_in_input_dtype=True)
    y = raw(layer(x, p=positions), "n", "heads", "s", "e")
    if bits == "bfloat16":
        assert (y == expected.double().numpy()).mean() > 0.99
    assert_close(y, expected.double(), 1e-5 if bits == "float32" else 1e-2)


def test_mixture_of_experts_against_mixtral():
    transformers = pytest.importorskip("transformers")
    from transformers.models.mixtral import modeling_mixtral

    config = transformers.MixtralConfig(
        hidden_size=6, intermediate_size=5, num_local_experts=4, num_experts_per_tok=2
    )
    theirs = modeling_mixtral.MixtralSparseMoeBlock(config).double().eval()
    layer = MixtureOfExperts.from_config("m", jax.random.key(0), {"e": 6}, {"h": 5}, 4, 2)
    branches, out = layer.expert.sublayers
    gate, value = branches.branches[0].sublayers[0], branches.branches[1]
    with torch.no_grad():
        theirs.gate.weight.copy_(tensor(layer.router.weights.value, "experts", "e"))
        both = [tensor(part.weights.value, "experts", "h", "e") for part in (gate, value)]
        theirs.experts.gate_up_proj.copy_(torch.cat(both, 1))
        theirs.experts.down_proj.copy_(tensor(out.weights.value, "experts", "e", "h"))
    x = named(0, {"n": 2, "s": 7, "e": 6})
    expected = theirs(tensor(x))
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert_close(raw(layer(x)), expected.detach())
