import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_zoo import attention
from nn_helpers import assert_close, axis_order, check_gradients, named, raises, raw

from pz_core.struct import pytree_dataclass
from pz_core.variables import bind_variables, unbind_params, unbind_variables, variable_jit
from pz_named import named_axes as nx
from pz_nn.attention import (
    ApplyAttentionMask,
    ApplyCausalAttentionMask,
    ApplyCausalSlidingWindowAttentionMask,
    ApplyExplicitAttentionMask,
    Attention,
)

Q, K = 4, 4
LOGITS = {"heads": 2, "seq": Q, "kv_seq": K}


def keep_causal(q, k, window=None):
    keep = (q[:, None] >= k[None, :]) & (k[None, :] >= 0)
    return keep if window is None else keep & (q[:, None] - k[None, :] < window)


POSITIONS = [np.arange(4), np.array([-1, -1, 0, 1]), np.array([3, 4, 7, 9])]


@pytest.mark.smoke
@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("window", [None, 1, 2, 100])
def test_causal_masks(positions, window):
    logits = named(0, LOGITS)
    if window is None:
        mask = ApplyCausalAttentionMask(-9.0)
    else:
        mask = ApplyCausalSlidingWindowAttentionMask(-9.0, window)
    y = mask(logits, token_positions=nx.wrap(positions, "seq"))
    assert axis_order(y) == list(LOGITS)  # laid out as the logits, not as the mask
    assert_close(raw(y), np.where(keep_causal(positions, positions, window), raw(logits), -9.0))


def test_masks_read_other_inputs_and_axes():
    logits = named(0, {"b": 2, "q": 3, "k": 5})
    query = np.array([[2, 3, 4], [0, 1, -1]])
    key = np.array([0, 1, 2, -1, -1])
    for cls, extra in (
        (ApplyCausalAttentionMask, ()),
        (ApplyCausalSlidingWindowAttentionMask, (2,)),
    ):
        mask = cls(-9.0, *extra, "mine", "theirs", "q", "k")
        y = mask(logits, mine=nx.wrap(query, "b", "q"), theirs=nx.wrap(key, "q"))
        keep = np.stack([keep_causal(row, key, *extra) for row in query])
        assert_close(raw(y), np.where(keep, raw(logits), -9.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_masks_keep_the_dtype_for_a_python_number(dtype):
    positions = nx.arange("seq", Q)
    logits = named(0, LOGITS, dtype)
    assert ApplyCausalAttentionMask(-1e4)(logits, token_positions=positions).dtype == dtype
    strong = ApplyCausalAttentionMask(jnp.float32(-1e4))(logits, token_positions=positions)
    assert strong.dtype == jnp.float32


def test_explicit_mask():
    logits = named(0, LOGITS)
    keep = np.random.default_rng(0).random((Q, K, 3)) > 0.5
    layer = ApplyExplicitAttentionMask("attn_mask", -9.0)
    y = layer(logits, attn_mask=nx.wrap(jnp.asarray(keep), "seq", "kv_seq", "batch"))
    assert axis_order(y) == [*LOGITS, "batch"]
    assert_close(raw(y), np.where(keep[None], raw(logits)[..., None], -9.0))
    numbers = nx.wrap(jnp.asarray(keep * 2.5), "seq", "kv_seq", "batch")
    assert_close(raw(layer(logits, attn_mask=numbers)), raw(y))


def test_fully_masked_rows_are_uniform_and_windows_may_be_arrays():
    logits = named(0, {"seq": 1, "kv_seq": 4})
    y = ApplyCausalAttentionMask(-1e30, "q", "k")(
        logits, q=nx.wrap(jnp.array([-1]), "seq"), k=nx.arange("seq", 4)
    )
    assert_close(jax.nn.softmax(raw(y)), [[0.25] * 4])
    per_head = ApplyCausalSlidingWindowAttentionMask(-9.0, nx.wrap(jnp.array([1, 3]), "heads"))
    y = per_head(named(0, LOGITS), token_positions=nx.arange("seq", Q))
    expected = [
        np.where(keep_causal(np.arange(Q), np.arange(Q), w), row, -9.0)
        for w, row in zip((1, 3), raw(named(0, LOGITS)), strict=True)
    ]
    assert_close(raw(y), expected)


def test_masks_of_ones_own():
    @pytree_dataclass
    class KeepDiagonal(ApplyAttentionMask):
        masked_out_value: float

        def keep_mask(self, side_inputs):
            return nx.arange("seq", Q) == nx.arange("kv_seq", K)

    y = KeepDiagonal(0.0)(nx.ones({"seq": Q, "kv_seq": K}))
    assert_close(raw(y), np.eye(4))
    with pytest.raises(TypeError):
        ApplyAttentionMask()


def test_mask_errors():
    mask = ApplyCausalAttentionMask(-9.0)
    logits = named(0, LOGITS)
    with raises(KeyError, "token_positions", "ApplyCausalAttentionMask"):
        mask(logits, token_position=nx.arange("seq", Q))
    with raises(TypeError, "token_positions", "wrap"):
        mask(logits, token_positions=jnp.arange(4))
    with raises(ValueError, "'seq'", "{'s': 4}"):
        mask(logits, token_positions=nx.arange("s", Q))
    with raises(KeyError, "'m'"):
        ApplyExplicitAttentionMask("m", 0.0)(logits)
    mask(logits, token_positions=nx.arange("seq", Q))


# --- the data flow ----------------------------------------------------------------------------------


def test_attention_runs_its_parts_in_order_with_all_side_inputs():
    calls = []

    def part(name):
        def run(x, /, **side_inputs):
            calls.append((name, x, side_inputs))
            return name, x

        return run

    layer = Attention(part("q"), part("k"), part("v"), part("a"), part("o"))
    weights = ("a", (("q", "in"), ("k", "in")))
    assert layer("in", value=1, x=2) == ("o", (weights, ("v", "in")))
    assert [c[0] for c in calls] == ["q", "k", "v", "a", "o"]
    assert all(c[2] == {"value": 1, "x": 2} for c in calls)


def reference_attention(layer, x, positions):
    """Causal attention with rotary positions in NumPy, from the layer's parameters."""
    _, params = unbind_params(layer)
    weights = {p.label.rsplit("/", 1)[1].removesuffix(".weights"): p.value for p in params}
    project = {k: raw(weights[k], "f", "heads", "p") for k in ("query", "key", "value")}
    x = raw(x, "batch", "seq", "f")
    q, k, v = (np.einsum("bsf,fhp->bhsp", x, project[n]) for n in ("query", "key", "value"))
    half = q.shape[-1] // 2
    angles = positions[:, None] * 100.0 ** (-np.arange(half) / half)

    def rotate(z):
        a, b = z[..., :half], z[..., half:]
        return np.concatenate(
            [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
        )

    logits = rotate(q) @ np.swapaxes(rotate(k), -1, -2) * q.shape[-1] ** -0.5
    logits = np.where(keep_causal(positions, positions), logits, -np.inf)
    attn = np.exp(logits - logits.max(-1, keepdims=True))
    attn /= attn.sum(-1, keepdims=True)
    return np.einsum("bhsp,hpf->bsf", attn @ v, raw(weights["out"], "heads", "p", "f"))


@pytest.mark.smoke
@pytest.mark.parametrize("seq", [0, 5])
def test_attention_equals_numpy(seq, key):
    layer = attention("a", key)
    x = named(0, {"batch": 2, "seq": seq, "f": 4})
    y = variable_jit(lambda layer, x, p: layer(x, token_positions=p))(
        layer, x, nx.arange("seq", seq)
    )
    assert axis_order(y) == ["batch", "seq", "f"]
    if seq:
        assert_close(raw(y), reference_attention(layer, x, np.arange(seq)))


def test_attention_gradients(float64):
    layer = attention("a", jax.random.key(0))
    slots, params = unbind_variables(layer, freeze=True)
    weights = [jnp.asarray(p.value.data_array, jnp.float64) for p in params]
    positions = nx.arange("seq", 3)

    @jax.jit
    def run(weights, x):
        values = [
            dataclasses.replace(p, value=dataclasses.replace(p.value, data_array=w))
            for p, w in zip(params, weights, strict=True)
        ]
        y = bind_variables(slots, values)(nx.wrap(x, "seq", "f"), token_positions=positions)
        return y.unwrap("seq", "f")

    check_gradients(run, weights, raw(named(0, {"seq": 3, "f": 4})))
