"""Families: layouts of a checkpoint, stacks, text parts of larger models, entry points, errors."""

import jax.numpy as jnp
import numpy as np
import pytest
import pz_models_tiny as tiny
from pz_models_families import CASES, RandomCheckpoint, config_of

from pz_core.selectors import select
from pz_core.variables import unbind_params
from pz_models import CheckpointError, UnsupportedConfigError, families
from pz_models.checkpoints import StoredTensor
from pz_models.config_reader import ConfigReader
from pz_models.loading import model_from_checkpoint
from pz_models.text_part import text_part
from pz_models.transformer.position_scaling import ScaleByPosition
from pz_models.transformer.variants.llamalike_common import AttentionTypeSlidingWindowCausal
from pz_named import named_axes as nx
from pz_nn.attention import Attention

TOKENS = nx.wrap(jnp.array([5, 9, 3, 0, 23]), "seq")


def _rearranged(checkpoint, change):
    """The checkpoint with `change` made to its dictionary of arrays."""
    checkpoint.arrays = change(dict(checkpoint.arrays))
    checkpoint.tensors = {
        key: StoredTensor(array.shape, "", array.nbytes) for key, array in checkpoint.arrays.items()
    }
    return checkpoint


def _fuse(arrays):
    """Experts as models of transformers 5 hold them in memory."""
    fused = {key: array for key, array in arrays.items() if ".experts." not in key}
    for i in range(4):
        one = [
            [arrays[f"model.layers.{i}.mlp.experts.{e}.{part}_proj.weight"] for e in range(3)]
            for part in ("gate", "up", "down")
        ]
        gate, up, down = map(np.stack, one)
        fused[f"model.layers.{i}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], 1)
        fused[f"model.layers.{i}.mlp.experts.down_proj"] = down
    return fused


def _renamed(**prefixes):
    def rename(arrays):
        for old, new in prefixes.items():
            arrays = {
                new + key.removeprefix(old) if key.startswith(old) else key: array
                for key, array in arrays.items()
            }
        return arrays

    return rename


LAYOUTS = {
    "qwen3_moe": _fuse,
    "gpt_neox": _renamed(**{"embed_out.weight": "lm_head.weight"}),
    "gpt2": _renamed(**{"transformer.": ""}),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_other_layouts_give_the_same_parameters(case):
    expected = unbind_params(model_from_checkpoint(RandomCheckpoint(config_of(case))))[1]
    other = _rearranged(RandomCheckpoint(config_of(case)), LAYOUTS[case])
    found = {p.label: p.value for p in unbind_params(model_from_checkpoint(other))[1]}
    assert len(found) == len(expected)
    for parameter in expected:
        value = parameter.value
        np.testing.assert_array_equal(
            found[parameter.label].unwrap(*value.named_shape), value.unwrap(*value.named_shape)
        )


@pytest.mark.parametrize(
    "key", ["model.layers.1.mlp.experts.2.up_proj.weight", "model.norm.weight"]
)
def test_a_missing_tensor_is_named_in_the_layout_that_the_file_has(key):
    def without(arrays):
        return {name: array for name, array in arrays.items() if name != key}

    checkpoint = _rearranged(RandomCheckpoint(config_of("qwen3_moe")), without)
    with pytest.raises(CheckpointError, match=f"1 tensors .* missing.*'{key}'"):
        model_from_checkpoint(checkpoint)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
        "original_max_position_embeddings": 4}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
STACKED = {
    "mixtral": {},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "ministral": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "smollm3": {"rope_parameters": YARN},  # which multiplies cosines and sines, in some blocks
    # What cannot be an array repeats: super-blocks.
    "qwen3_moe partly dense": {},
    "smollm3 dynamic": {"rope_parameters": DYNAMIC, "max_position_embeddings": 4},
}


@pytest.mark.parametrize("case", STACKED)
def test_stacked_equals_unstacked(case):
    checkpoint = RandomCheckpoint(
        config_of(case if case in CASES else case.split()[0]) | STACKED[case]
    )
    models = [model_from_checkpoint(checkpoint, use_layer_stack=on) for on in (False, True)]
    one, other = (tiny.logits(model, TOKENS) for model in models)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_scaling_that_depends_on_the_length_must_repeat_in_a_stack():
    some = {"rope_parameters": DYNAMIC, "no_rope_layers": [1, 0, 0, 1]}
    checkpoint = RandomCheckpoint(config_of("smollm3") | some)
    with pytest.raises(ValueError, match=r"DynamicScaling.* differs between .*do not repeat"):
        model_from_checkpoint(checkpoint, use_layer_stack=True)
    model_from_checkpoint(checkpoint)


@pytest.mark.parametrize("model_type", ["mistral", "mixtral", "phi3", "qwen3_moe", "ministral3"])
def test_families_with_one_window_pass_over_layer_types(model_type):
    config = config_of(model_type) | {"sliding_window": 5, "use_sliding_window": True}
    pattern = {"layer_types": ["sliding_attention", "full_attention"] * 2}
    one, other = (families.family_of(config, "test").read_config(ConfigReader(fields, "test"))
                  for fields in (config, config | pattern))  # fmt: skip
    assert one == other
    assert one.attention_type == AttentionTypeSlidingWindowCausal(5)


def test_blocks_without_experts_stand_beside_blocks_with():
    config = config_of("qwen3_moe") | {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    checkpoint = RandomCheckpoint(config)
    labels = {p.label for p in unbind_params(model_from_checkpoint(checkpoint))[1]}
    routed = {label.split("/")[1] for label in labels if label.endswith("router.weights")}
    assert routed == {"block_1"}
    with pytest.raises(ValueError, match=r"blocks 0, 2, 3 have no experts.*use_layer_stack=False"):
        model_from_checkpoint(checkpoint, use_layer_stack=True)


def _with_vision(prefix, head):
    inner = config_of("gemma3_text")
    checkpoint = RandomCheckpoint(inner)
    checkpoint.config = {
        "model_type": "gemma3", "text_config": inner, "vision_config": {"hidden_size": 8},
        "mm_tokens_per_image": 4, "tie_word_embeddings": True,
    }  # fmt: skip

    def add(arrays):
        named = {prefix + key.removeprefix("model."): value for key, value in arrays.items()}
        return named | head | {"vision_tower.x.weight": np.zeros(3, np.float32)}

    return _rearranged(checkpoint, add), inner


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_part_of_a_checkpoint_with_vision(prefix):
    whole, inner = _with_vision(prefix, {})
    expected = {
        p.label: p.value for p in unbind_params(model_from_checkpoint(RandomCheckpoint(inner)))[1]
    }
    model = model_from_checkpoint(whole)
    for parameter in unbind_params(model)[1]:
        value = expected[parameter.label]
        np.testing.assert_array_equal(
            parameter.value.unwrap(*value.named_shape), value.unwrap(*value.named_shape)
        )
    assert model.metadata.huggingface_config["model_type"] == "gemma3_text"
    part = text_part(whole)
    assert part.describe("model.norm.weight") == f"random: tensor '{prefix}norm.weight'"
    assert part.describe("nothing") == "random: tensor 'nothing'"
    assert text_part(part) is part


def test_other_tensors_and_fields_beside_the_text_part_are_refused():
    whole, _ = _with_vision("language_model.model.", {"adapter.weight": np.zeros(3, np.float32)})
    with pytest.raises(
        CheckpointError, match=r"1 tensors are no part of the model.*adapter.weight"
    ):
        model_from_checkpoint(whole)
    whole.config["text_only_depth"] = 3
    with pytest.raises(
        UnsupportedConfigError, match=r"'gemma3' does not understand.*text_only_depth"
    ):
        model_from_checkpoint(whole)


BAD_CONFIGS = [
    ("mixtral", {"num_experts_per_tok": 4}, "'num_experts_per_tok' should be at most 'num_local_ex"),
    ("qwen3_moe", {"decoder_sparse_step": 9}, "no block has experts.*family 'qwen3'"),
    ("ministral3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
     "should have 'llama_4_scaling_beta' and"),
    ("ministral3", {"rope_parameters": None}, "no 'rope_parameters'"),
    ("gpt2", {"n_head": 3}, "'n_embd' should be a multiple of 'n_head'; they are 16 and 3"),
    ("gpt2", {"add_cross_attention": True}, "'add_cross_attention' is True"),
    ("gpt2", {"activation_function": "tanh"}, "'activation_function' is 'tanh', an activation"),
    ("llama", {"head_dim": 7}, r"rotated in pairs.*'head_dim' 7 and .* it is 7"),
    ("phi3", {"partial_rotary_factor": 0.3}, "rotated in pairs.*'head_dim' 4 and .* it is 1"),
    ("gpt_neox", {"rotary_pct": 1.5}, "at most the size of a head.* it is 6"),
    ("gpt_neox", {"num_attention_heads": 3}, "'hidden_size' should be a multiple of"),
]  # fmt: skip


@pytest.mark.parametrize("case, change, message", BAD_CONFIGS)
def test_configurations_that_are_not_understood_are_refused(case, change, message):
    checkpoint = RandomCheckpoint(config_of(case))
    checkpoint.config = checkpoint.config | change
    with pytest.raises(UnsupportedConfigError, match=message):
        model_from_checkpoint(checkpoint)


@pytest.mark.smoke
def test_queries_grow_with_their_position():
    positions = nx.wrap(jnp.array([-1, 0, 6, 7, 13, 14, 700]), "seq")
    layer = ScaleByPosition(beta=0.5, stretch=7)
    scaled = layer(nx.ones({"seq": 7, "projection": 2}), token_positions=positions)
    stretches = np.array([0, 0, 0, 1, 1, 2, 100])
    expected = np.broadcast_to((1 + 0.5 * np.log(1 + stretches))[:, None], (7, 2))
    np.testing.assert_allclose(scaled.unwrap("seq", "projection"), expected, rtol=1e-6)
    with pytest.raises(KeyError, match=r"'token_positions' is missing; given were .*'other'"):
        layer(nx.ones({"seq": 7}), other=1)


THEIR_MODULE = """
import dataclasses
from pz_models.transformer.variants import llama

FAMILY = dataclasses.replace(llama.FAMILY, model_type="my_llama")
"""
THEIR_ENTRY_POINTS = """
[pz_models.families]
my_llama = my_llama_family:FAMILY
"""


def test_other_packages_add_families_by_an_entry_point(tmp_path, monkeypatch):
    """A package as an installer would leave it: a module, and metadata beside it."""
    config = config_of("llama") | {"model_type": "my_llama"}
    with pytest.raises(UnsupportedConfigError, match=r"model_type is 'my_llama'.*llama"):
        families.family_of(config, "test")
    metadata = tmp_path / "my_llama-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-llama\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(THEIR_ENTRY_POINTS)
    (tmp_path / "my_llama_family.py").write_text(THEIR_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    assert families.family_of(config, "test").model_type == "my_llama"
    assert families.known_families()["llama"] == "pz_models.transformer.variants.llama:FAMILY"
    model = model_from_checkpoint(RandomCheckpoint(config))
    assert select(model).at_instances_of(Attention).count() == 4
