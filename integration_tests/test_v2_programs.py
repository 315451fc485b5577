"""Programs as people wrote them for Penzai V2; they use its public API and nothing of ours.

Each also runs, as it stands, with the `penzai` 0.2 that these names come from.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penzai import pz
from penzai.models import simple_mlp
from penzai.models.transformer import variants
from penzai.toolshed import basic_training, lora, model_rewiring, save_intermediates

optax = pytest.importorskip("optax")


def test_an_mlp_learns_xor():
    mlp = simple_mlp.MLP.from_config(
        name="mlp",
        init_base_rng=jax.random.key(42),
        feature_sizes=[2, 16, 16, 2],
    )
    xor_inputs = pz.nx.wrap(
        jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]), "batch", "features"
    )
    xor_labels = jnp.array([0, 1, 1, 0])

    def loss_fn(model, rng, state, inputs, labels):
        del rng
        logits = model(inputs)
        log_probs = jax.nn.log_softmax(logits.unwrap("batch", "features"), axis=-1)
        picked = log_probs[jnp.arange(4), labels]
        accuracy = jnp.mean(jnp.argmax(log_probs, axis=-1) == labels)
        return -jnp.mean(picked), state + 1, {"accuracy": accuracy, "count": state}

    trainer = basic_training.StatefulTrainer.build(
        root_rng=jax.random.key(1),
        model=mlp,
        optimizer_def=optax.adam(2e-2),
        loss_fn=loss_fn,
        initial_loss_fn_state=jnp.array(0),
    )
    for _ in range(80):
        aux = trainer.step(inputs=xor_inputs, labels=xor_labels)

    assert aux["accuracy"] == 1.0
    assert aux["count"] == 79
    # The trainer wrote into the model's own parameters.
    predictions = pz.nx.nmap(jnp.argmax)(mlp(xor_inputs).untag("features")).unwrap("batch")
    np.testing.assert_array_equal(predictions, xor_labels)
    # A functional loop would start from the same parameters.
    unbound, params = pz.unbind_params(mlp, freeze=True)
    rebound = pz.bind_variables(unbound, params)
    np.testing.assert_array_equal(rebound(xor_inputs).data_array, mlp(xor_inputs).data_array)


def tiny_transformer():
    config = variants.llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=1,
        embedding_dim=16,
        projection_dim=8,
        mlp_hidden_dim=32,
        num_decoder_blocks=2,
        vocab_size=20,
        mlp_variant="geglu_approx",
        tie_embedder_and_logits=True,
        parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32,
    )
    return variants.llamalike_common.build_llamalike_transformer(
        config, init_base_rng=jax.random.key(0, impl="rbg")
    )


@pz.variable_jit
def run(model, tokens, token_positions):
    return model(tokens, token_positions=token_positions)


@pz.pytree_dataclass
class ReplaceWith(pz.nn.Layer):
    value: Any

    def __call__(self, argument: Any, /, **unused_side_inputs: Any) -> Any:
        return self.value


def test_attention_is_patched_between_worlds():
    model = pz.freeze_params(tiny_transformer())
    tokens = pz.nx.wrap(jnp.array([[1, 2, 3, 4], [1, 7, 3, 4], [1, 7, 3, 4]]), "worlds", "seq")
    token_positions = pz.nx.arange("seq", 4)

    # "patched" runs on the corrupted tokens, but takes the first attention layer's output from
    # the clean run.
    patch = model_rewiring.RewireComputationPaths(
        worlds_axis="worlds",
        world_ordering=("clean", "corrupted", "patched"),
        taking={
            "clean": model_rewiring.From("clean"),
            "corrupted": model_rewiring.From("corrupted"),
            "patched": model_rewiring.From("clean"),
        },
    )
    attention = pz.select(model).at_instances_of(pz.nn.Attention)
    assert attention.count() == 2
    patched_model = attention.pick_nth_selected(0).insert_after(patch)
    logits = run(patched_model, tokens, token_positions)
    by_world = logits.untag("worlds")
    clean, corrupted, patched = (by_world[i] for i in range(3))

    # The worlds that are not rewired are what the model says without the patch.
    plain = run(model, tokens, token_positions).untag("worlds")
    np.testing.assert_allclose(
        clean.unwrap("seq", "vocabulary"), plain[0].unwrap("seq", "vocabulary"), atol=1e-5
    )
    np.testing.assert_allclose(
        corrupted.unwrap("seq", "vocabulary"), plain[1].unwrap("seq", "vocabulary"), atol=1e-5
    )

    # The rewired one, by hand: save the clean output of the layer, put it into the corrupted run.
    saved = pz.StateVariable(value=None, label="saved")
    saving_model = (
        pz.select(model)
        .at_instances_of(pz.nn.Attention)
        .pick_nth_selected(0)
        .insert_after(save_intermediates.SaveIntermediate(saved))
    )
    run(saving_model, tokens.untag("worlds")[0], token_positions)
    by_hand_model = (
        pz.select(model)
        .at_instances_of(pz.nn.Attention)
        .pick_nth_selected(0)
        .apply(lambda _: ReplaceWith(saved.value))
    )
    by_hand = run(by_hand_model, tokens.untag("worlds")[1], token_positions)
    np.testing.assert_allclose(
        patched.unwrap("seq", "vocabulary"), by_hand.unwrap("seq", "vocabulary"), atol=1e-5
    )
    difference = pz.nx.nmap(jnp.abs)(patched - corrupted).unwrap("seq", "vocabulary").max()
    assert difference > 1e-3


def test_low_rank_adapters_are_finetuned():
    model = tiny_transformer()
    frozen_model = pz.freeze_params(model)
    adapted = lora.loraify_linears_in_selection(
        pz.select(frozen_model).at_instances_of(pz.nn.Attention),
        rank=2,
        init_base_rng=jax.random.key(1),
    )
    adapters = pz.select(adapted).at_instances_of(lora.LowRankAdapter)
    assert adapters.count() == 8  # query, key, value and output of two layers
    _, trainable = pz.unbind_params(adapted)
    assert len(trainable) == 16
    assert all(isinstance(p, pz.Parameter) for p in trainable)

    tokens = pz.nx.wrap(jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]), "batch", "seq")
    token_positions = pz.nx.arange("seq", 5)
    targets = jnp.array([[2, 3, 4, 5, 6], [7, 8, 9, 10, 11]])
    before = run(adapted, tokens, token_positions)
    original = run(model, tokens, token_positions)
    np.testing.assert_allclose(
        before.unwrap("batch", "seq", "vocabulary"),
        original.unwrap("batch", "seq", "vocabulary"),
        atol=1e-6,
    )

    def loss_fn(model, rng, state, tokens, positions, targets):
        del rng
        logits = model(tokens, token_positions=positions)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.unwrap("batch", "seq", "vocabulary"), targets
        )
        return jnp.mean(losses), state, {"loss": jnp.mean(losses)}

    trainer = basic_training.StatefulTrainer.build(
        root_rng=jax.random.key(2),
        model=adapted,
        optimizer_def=optax.adam(5e-2),
        loss_fn=loss_fn,
    )
    losses = [
        trainer.step(tokens=tokens, positions=token_positions, targets=targets)["loss"]
        for _ in range(20)
    ]
    assert losses[-1] < 0.5 * losses[0]
    # What was frozen is as it was.
    after = run(model, tokens, token_positions)
    np.testing.assert_array_equal(original.data_array, after.data_array)
    changed = [p for p in trainable if p.label.endswith("LoRA_B.weights")]
    assert all(np.any(p.value.data_array != 0) for p in changed)
