"""Saved folders, read by transformers: the same logits, for every family."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny
from pz_models_families import CASES, RandomCheckpoint, config_of

from pz_core.selectors import select
from pz_models import compare_to_reference, save_huggingface
from pz_models.loading import model_from_checkpoint
from pz_models.transformer.model_parts import TransformerBlock
from pz_named import named_axes as nx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # its threads spin while they wait, which starves JAX's

TOKENS = np.random.default_rng(0).integers(0, 24, 12)


def _assert_read_alike(model, folder, **options):
    save_huggingface(model, folder, **options)
    theirs, problems = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(problems.values()), problems
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    logits = tiny.logits(model, nx.wrap(jnp.asarray(TOKENS), "seq"))
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    return theirs


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_was_saved(case, tmp_path):
    """Saved as if it had been built here, so that the configuration is of our making, too."""
    if case.split()[0] not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {case}")
    model = model_from_checkpoint(RandomCheckpoint(config_of(case)))
    metadata = dataclasses.replace(model.metadata, huggingface_config=None)
    built = dataclasses.replace(model, metadata=metadata)
    options = {"model_type": case.split()[0], "max_shard_bytes": 4000}
    theirs = _assert_read_alike(built, tmp_path, **options)
    assert compare_to_reference(model, theirs, TOKENS[:5]).first_difference is None


def test_transformers_reads_an_edited_model(tmp_path):
    model = model_from_checkpoint(RandomCheckpoint(config_of("llama tied")))
    blocks = select(model).at_instances_of(TransformerBlock)
    _assert_read_alike(blocks.pick_nth_selected(1).remove_from_parent(), tmp_path)
