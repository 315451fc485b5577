"""The GPT-NeoX builder: pinned values, tree, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny

from pz_core.variables import freeze_params
from pz_models.transformer.variants import gpt_neox
from pz_nn.combinators import BranchAndAddTogether, Residual

CONFIG = gpt_neox.GPTNeoXTransformerConfig(
    num_attention_heads=4,
    embedding_dim=16,
    projection_dim=4,
    mlp_hidden_dim=32,
    num_decoder_blocks=2,
    vocab_size=11,
    activation_fn="gelu_exact",
    rope_subset_size=2,
    rope_wavelength=1e4,
    layernorm_epsilon=1e-5,
    parameter_dtype=jnp.float32,
    activation_dtype=jnp.float32,
)


def _build(key, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    build = gpt_neox.build_gpt_neox_transformer
    return jax.jit(lambda key: freeze_params(build(config, init_base_rng=key)))(key)


@pytest.mark.smoke
def test_pinned_values(key, tokens):
    """What Penzai 0.2.5 gives, whose final norm has another epsilon (hence the tolerance)."""
    logits = tiny.logits(_build(key), tokens)
    expected = [-1.158883, 0.159258, 0.235600, -1.028819, -0.832486]
    np.testing.assert_allclose(logits[-1, :5], expected, atol=1e-4)
    np.testing.assert_allclose(logits.sum(), -11.25463, atol=1e-3)


def test_residuals_are_parallel_or_one_after_the_other(key, tokens):
    parallel, sequential = _build(key), _build(key, use_parallel_residual=False)
    assert isinstance(parallel.body.sublayers[1].sublayers[0], BranchAndAddTogether)
    assert [type(part) for part in sequential.body.sublayers[1].sublayers] == [Residual] * 2
    difference = tiny.logits(parallel, tokens) - tiny.logits(sequential, tokens)
    assert np.abs(difference).max() > 1e-2


def test_dtypes_reach_every_parameter(key):
    model = jax.eval_shape(
        lambda key: _build(key, parameter_dtype=jnp.bfloat16, use_layer_stack=True), key
    )
    leaves = jax.tree.leaves(model.body.sublayers[-1].weights)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_unknown_activations_are_refused():
    config = dataclasses.replace(CONFIG, activation_fn="selu")
    with pytest.raises(KeyError, match=r"one of gelu_exact.*received 'selu'"):
        gpt_neox.build_gpt_neox_transformer(config)
