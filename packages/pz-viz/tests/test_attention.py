"""Attention views: roles of axes, values, bad input."""

import base64
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx
import pz_viz
from pz_viz import attention

TOKENS = ["The", " cat", " sat"]


def weights(*shape):
    w = np.tril(np.random.default_rng(0).random(shape, dtype=np.float32))
    return w / w.sum(-1, keepdims=True)


def data_of(view):
    return json.loads(re.search(r"<script[^>]*>(.*?)</script>", view.body, re.S)[1])


@pytest.mark.smoke
def test_values_survive_to_a_quarter_of_a_percent():
    w = weights(2, 4, 3, 3)
    data = data_of(pz_viz.attention_view(w, TOKENS))
    codes = np.frombuffer(base64.b64decode(data["values"]), np.uint8).reshape(w.shape)
    np.testing.assert_allclose(codes / 254 * data["high"], w, atol=data["high"] / 500)
    assert [axis["name"] for axis in data["axes"]] == ["layer", "head", "query", "key"]
    assert data["axes"][2]["labels"] == ["The", "␣cat", "␣sat"]


def test_named_axes_in_any_order_give_the_same_view():
    w = weights(2, 3, 3)
    named = nx.wrap(jnp.asarray(w)).tag("heads", "seq", "kv_seq")
    plain = data_of(pz_viz.attention_view(w, TOKENS))["values"]
    turned = nx.wrap(jnp.asarray(w.transpose(2, 0, 1))).tag("kv_seq", "heads", "seq")
    for view in (named, turned):
        assert data_of(pz_viz.attention_view(view, TOKENS))["values"] == plain
    odd = nx.wrap(jnp.asarray(w)).tag("heads", "x", "y")
    shown = pz_viz.attention_view(odd, TOKENS, query_axis="x", key_axis="y")
    assert data_of(shown)["values"] == plain
    unnamed = named.untag("seq", "kv_seq")
    assert data_of(pz_viz.attention_view(unnamed, TOKENS))["values"] == plain


def test_ids_are_labelled_through_a_tokenizer():
    w = weights(3, 3)
    view = pz_viz.attention_view(w, jnp.array([2, 0, 1]), tokenizer=["a", " b", "c"])
    assert data_of(view)["axes"][0]["labels"] == ["c", "a", "␣b"]
    bare = pz_viz.attention_view(w, nx.wrap(jnp.array([2, 0, 1])).tag("seq"))
    assert data_of(bare)["axes"][0]["labels"] == ["2", "0", "1"]


def test_keys_may_have_tokens_of_their_own():
    view = pz_viz.attention_view(weights(3, 2), TOKENS, key_tokens=["x", "y"])
    assert data_of(view)["axes"][1]["labels"] == ["x", "y"]


def test_sliders_start_where_asked():
    view = pz_viz.attention_view(weights(4, 2, 3, 3), TOKENS, start=(-1, 1))
    assert [axis["start"] for axis in data_of(view)["axes"][:2]] == [3, 1]
    assert "layer 3, head 1: strongest: The → The 1" in view.text
    with pytest.raises(ValueError, match="4 is outside of the axis layer of size 4"):
        pz_viz.attention_view(weights(4, 2, 3, 3), TOKENS, start=(4,))


@pytest.mark.parametrize(
    "call, match",
    [
        (
            lambda: pz_viz.attention_view(weights(3, 3), TOKENS[:2]),
            r"tokens has 2 entries and the axis query has size 3",
        ),
        (
            lambda: pz_viz.attention_view(weights(3, 3), "The cat sat"),
            r"expected one entry per token, got a single string",
        ),
        (
            lambda: pz_viz.attention_view(weights(3, 3), np.zeros((1, 3), int)),
            r"expected one axis of token ids, got shape \(1, 3\)",
        ),
        (
            lambda: pz_viz.attention_view(nx.wrap(jnp.ones((3, 3))).tag("u", "v"), TOKENS),
            r"cannot tell which axis is the query.*u, v.*Pass query_axis=",
        ),
        (
            lambda: pz_viz.attention_view(weights(3, 3), TOKENS, query_axis="qq"),
            r"query_axis='qq': the array has no such axis .*'query', 'key'",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_what_cannot_be_read_is_an_error(monkeypatch):
    with pytest.raises(pz_viz.HostCopyError, match=r"none to read \(abstract\)"):
        pz_viz.attention_view(jax.ShapeDtypeStruct((3, 3), jnp.float32), TOKENS)
    gone = jnp.ones((3, 3)) + 0
    gone.delete()
    with pytest.raises(pz_viz.HostCopyError, match=r"none to read \(deleted\)"):
        pz_viz.attention_view(gone, TOKENS)
    with pytest.raises(pz_viz.HostCopyError, match=r"none to read \(tracer\)"):
        jax.make_jaxpr(lambda w: pz_viz.attention_view(w, TOKENS))(jnp.ones((3, 3)))
    monkeypatch.setattr(attention, "ATTENTION_BUDGET", 8)
    with pytest.raises(pz_viz.HostCopyError, match=r"9 elements .* at most 8"):
        pz_viz.attention_view(weights(3, 3), TOKENS)


def test_the_static_form_names_the_strongest_links():
    view = pz_viz.attention_view(weights(2, 3, 3), TOKENS)
    assert view.static_body.count("<img") == 2
    assert "strongest: The → The 1" in view.static_body
    assert "<script" not in view.static_body


def test_one_token_and_all_zero_weights():
    assert "strongest: a → a 1" in pz_viz.attention_view(np.ones((1, 1)), ["a"]).text
    assert "a → a 0" in pz_viz.attention_view(np.zeros((1, 1)), ["a"]).text
