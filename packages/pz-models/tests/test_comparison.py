"""Where two models differ: the block that is broken is named, and none beside it."""

import jax.numpy as jnp
import numpy as np
import pytest

from pz_core.selectors import select
from pz_core.variables import unbind_params
from pz_models import compare_to_reference, from_huggingface
from pz_models.comparison import Comparison, StageDifference
from pz_models.transformer.model_parts import TransformerBlock
from pz_named import named_axes as nx
from pz_nn.grouping import Identity

TOKENS = [1, 5, 2, 7, 3]


@pytest.fixture(scope="module")
def theirs():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=12, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def _with_broken_parameter(model, ending, index=None):
    """The model, with one parameter doubled; of one block where it is stacked."""
    parameter = next(p for p in unbind_params(model)[1] if p.label.endswith(ending))
    if index is None:
        parameter.value = parameter.value * 2.0
    else:
        factors = jnp.ones(3).at[index].set(2.0)
        parameter.value = parameter.value * nx.wrap(factors, "blocks")
    return model


@pytest.mark.torch
@pytest.mark.parametrize("stacked", [False, True], ids=["unstacked", "stacked"])
def test_a_broken_block_is_named_and_no_other(theirs, stacked):
    ours = from_huggingface(theirs, use_layer_stack=stacked)
    same = compare_to_reference(ours, theirs, TOKENS)
    names = ["embeddings", "block 0", "block 1", "block 2", "logits"]
    assert [stage.name for stage in same.stages] == names
    assert same.first_difference is None
    assert theirs.training  # left as it was, and run without dropout
    if stacked:
        broken = _with_broken_parameter(ours, "mlp/out_linear.weights", 1)
    else:
        broken = _with_broken_parameter(ours, "block_1/mlp/out_linear.weights")
    found = compare_to_reference(broken, theirs, nx.wrap(jnp.array(TOKENS), "seq"))
    assert found.different == ("block 1",)
    own = [stage.own > found.tolerance for stage in found.stages]
    accumulated = [stage.accumulated > found.tolerance for stage in found.stages]
    assert own == [False, False, True, False, False]
    assert accumulated == [False, False, True, True, True]
    assert "block 1" in str(found).splitlines()[3]
    assert "differs" in str(found).splitlines()[3]


@pytest.mark.torch
@pytest.mark.parametrize(
    "ending, name", [("embeddings", "embeddings"), ("lm_head.weights", "logits")]
)
def test_ends_are_stages_too(theirs, ending, name):
    broken = _with_broken_parameter(from_huggingface(theirs), ending)
    assert compare_to_reference(broken, theirs, TOKENS).different == (name,)


@pytest.mark.torch
def test_what_cannot_be_compared_is_told(theirs):
    ours = from_huggingface(theirs)
    with pytest.raises(ValueError, match=r"one sequence of token ids.*shape \(2, 2\)"):
        compare_to_reference(ours, theirs, np.ones((2, 2), int))
    blocks = select(ours).at_instances_of(TransformerBlock)
    with pytest.raises(ValueError, match="the model has 2 blocks; LlamaForCausalLM has lists of"):
        compare_to_reference(blocks.pick_nth_selected(0).remove_from_parent(), theirs, TOKENS)
    with pytest.raises(ValueError, match=r"no TransformerBlock in model\.body"):
        compare_to_reference(blocks.remove_from_parent(), theirs, TOKENS)
    with pytest.raises(ValueError, match="should be a Sequential of layers, it is a Identity"):
        compare_to_reference(select(ours).at(lambda m: m.body).set(Identity()), theirs, TOKENS)


def test_not_a_number_is_a_difference():
    stage = StageDifference("block 0", float("nan"), float("nan"), 0)
    assert Comparison((stage,), 1e-4).first_difference == "block 0"
