"""The logit lens and its relatives against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import pz_named as nx
import pz_viz
from pz_viz import logit_lens
from pz_viz.logit_lens import top_tokens

VOCABULARY = [f"t{i}" for i in range(20)]
LOGITS = np.random.default_rng(0).normal(size=(4, 3, 20)).astype(np.float32) * 3


@pytest.mark.smoke
def test_top_tokens_agree_with_numpy_in_float64():
    best = top_tokens(jnp.asarray(LOGITS), 5)
    p = scipy.special.softmax(LOGITS.astype(np.float64), axis=-1)
    order = np.argsort(-p, axis=-1)[..., :5]
    np.testing.assert_array_equal(best.ids, order)
    np.testing.assert_allclose(best.probabilities, np.take_along_axis(p, order, -1), rtol=1e-5)
    np.testing.assert_allclose(best.entropies, -(p * np.log(p)).sum(-1), rtol=1e-5)


def test_working_in_chunks_changes_nothing(monkeypatch):
    whole = top_tokens(jnp.asarray(LOGITS), 5)
    view = pz_viz.token_probabilities_view([3, 7, 11], LOGITS[0], VOCABULARY)
    monkeypatch.setattr(logit_lens, "POSITIONS_AT_ONCE", 1)
    parts = top_tokens(jnp.asarray(LOGITS), 5)
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_allclose(whole.probabilities, parts.probabilities, rtol=1e-6)
    again = pz_viz.token_probabilities_view([3, 7, 11], LOGITS[0], VOCABULARY)
    assert again.text == view.text


def test_masked_logits_have_zero_probability_and_finite_entropy():
    logits = LOGITS[:1, :1].copy()
    logits[..., 3:] = -np.inf
    best = top_tokens(jnp.asarray(logits), 5)
    assert np.isfinite(best.entropies).all()
    assert best.probabilities[..., 3:].max() == 0


def test_named_tables_in_any_order_and_without_positions():
    plain = pz_viz.logit_lens_view(LOGITS, VOCABULARY)
    named = nx.wrap(jnp.asarray(LOGITS.transpose(2, 0, 1))).tag("vocabulary", "block", "seq")
    assert pz_viz.logit_lens_view(named, VOCABULARY).body == plain.body
    last = pz_viz.logit_lens_view(
        nx.wrap(jnp.asarray(LOGITS[:, -1])).tag("layer", "vocab"), VOCABULARY, tokens=["a", "b"]
    )
    assert "after b" in last.body
    flat = pz_viz.logit_lens_view(LOGITS[:, -1], VOCABULARY)
    assert "next token" in flat.text


def test_cells_list_the_alternatives_and_the_entropy():
    view = pz_viz.logit_lens_view(LOGITS, VOCABULARY, tokens=["x", "y", "z"], top=4)
    best = top_tokens(jnp.asarray(LOGITS), 4)
    first = view.body.split("<td>")[1]
    for i, p in zip(best.ids[0, 0], best.probabilities[0, 0], strict=True):
        assert f"{p:7.2%}  t{i}" in first
    assert f"entropy {best.entropies[0, 0]:.3g} nats" in first
    by_entropy = pz_viz.logit_lens_view(LOGITS, VOCABULARY, color="entropy")
    assert f"{best.entropies[0, 0]:.2f} nats" in by_entropy.body


def test_positions_over_the_budget_are_left_out_with_a_note(monkeypatch):
    monkeypatch.setattr(logit_lens, "LENS_CELL_BUDGET", 8)
    view = pz_viz.logit_lens_view(LOGITS, VOCABULARY, tokens=["x", "y", "z"])
    assert "first 1 positions are left out" in view.body
    assert view.body.count("<td>") == 8


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"color": "red"}, r"color='red': expected \"probability\" or \"entropy\""),
        ({"tokens": ["x"]}, r"tokens has 1 entries and the table has 3 positions"),
        ({"block_labels": ["x"]}, r"block_labels has 1 entries and the table has 4 blocks"),
        ({"block_axis": "depth"}, r"block_axis='depth': the array has no such axis"),
    ],
)
def test_what_does_not_fit_is_an_error(kwargs, match):
    with pytest.raises(ValueError, match=match):
        pz_viz.logit_lens_view(LOGITS, VOCABULARY, **kwargs)


def test_too_many_axes_or_unknown_roles_are_errors():
    with pytest.raises(ValueError, match="Choose one index of the others first"):
        pz_viz.logit_lens_view(LOGITS[None], VOCABULARY)
    odd = nx.wrap(jnp.asarray(LOGITS)).tag("u", "v", "w")
    with pytest.raises(ValueError, match=r"cannot tell which axis is the block.*Pass block_axis="):
        pz_viz.logit_lens_view(odd, VOCABULARY)
    assert pz_viz.logit_lens_view(odd, VOCABULARY, block_axis="u").text
    with pytest.raises(pz_viz.HostCopyError, match="abstract"):
        pz_viz.logit_lens_view(jax.ShapeDtypeStruct((2, 20), jnp.float32), VOCABULARY)


def test_surprise_is_the_negative_log_probability():
    ids = np.array([3, 7, 11])
    view = pz_viz.token_probabilities_view(ids, LOGITS[0], VOCABULARY)
    log_p = scipy.special.log_softmax(LOGITS[0].astype(np.float64), axis=-1)
    surprises = [-log_p[0, 7], -log_p[1, 11]]
    assert f"Mean surprise {np.mean(surprises):.3g} nats" in view.text
    for token, nats in zip(ids[1:], surprises, strict=True):
        assert f"t{token}: probability {np.exp(-nats):.2%}, surprise {nats:.3g} nats" in view.body


def test_one_token_has_no_surprise():
    assert "nan" in pz_viz.token_probabilities_view([3], LOGITS[0][:1], VOCABULARY).text


@pytest.mark.parametrize(
    "ids, logits, match",
    [
        ([1, 2], LOGITS[0], r"2 tokens and logits for 3 positions"),
        ([1.0, 2.0, 3.0], LOGITS[0], r"expected integer ids with one axis, got float64"),
        ([1, 2, 3], LOGITS, r"needs a position and a vocabulary axis"),
        ([1, 20, 3], LOGITS[0], r"tokens holds the id 20, and logits has 20 entries"),
    ],
)
def test_surprise_of_what_does_not_fit_is_an_error(ids, logits, match):
    with pytest.raises(ValueError, match=match):
        pz_viz.token_probabilities_view(ids, logits, VOCABULARY)


def test_comparison_shows_both_probabilities_and_the_divergence():
    p, q = (scipy.special.softmax(x.astype(np.float64)) for x in (LOGITS[0, 0], LOGITS[1, 0]))
    view = pz_viz.comparison_view(
        nx.wrap(jnp.asarray(LOGITS[0, 0])).tag("vocabulary"), LOGITS[1, 0], VOCABULARY, top=3
    )
    assert f"= {np.sum(p * np.log(p / q)):.3g} nats" in view.text
    best = int(np.argmax(p))
    assert f"t{best}" in view.text
    assert f"{p[best]:.2%}" in view.text
    assert f"{q[best]:.2%}" in view.text


def test_comparing_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="vocabularies of 20 and 19 tokens"):
        pz_viz.comparison_view(LOGITS[0, 0], LOGITS[0, 0, :19], VOCABULARY)
    with pytest.raises(ValueError, match=r"left needs one axis.*Choose one position"):
        pz_viz.comparison_view(LOGITS[0], LOGITS[0], VOCABULARY)
    with pytest.raises(pz_viz.HostCopyError, match="left"):
        pz_viz.comparison_view(jax.ShapeDtypeStruct((20,), jnp.float32), LOGITS[0, 0], VOCABULARY)
