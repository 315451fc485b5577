"""Configurations with a wrong value anywhere: one of our errors, or a model; never another crash."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pz_models_families import CASES, RandomCheckpoint, config_of

from pz_models import CheckpointError, UnsupportedConfigError
from pz_models.loading import model_from_checkpoint

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 10**9, 2**63, 10**30]),
    st.sampled_from([0.0, -0.5, 0.3, 1e-300, 1e300, float("inf"), float("nan")]),
    st.sampled_from(["", "yarn", "linear", "dynamic", "longrope", "silu", "default", "x"]),
)
KEYS = st.sampled_from(
    ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor",
     "original_max_position_embeddings", "short_factor", "long_factor", "full_attention",
     "sliding_attention", "partial_rotary_factor", "beta_fast", "mscale"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["rope_scaling", "rope_parameters", "layer_types", "sliding_window", "head_dim", "rope_theta",
     "partial_rotary_factor", "num_key_value_heads", "original_max_position_embeddings"]
)  # fmt: skip


@functools.cache
def _checkpoint(case):
    return RandomCheckpoint(config_of(case))


@settings(max_examples=150)
@given(data=st.data())
def test_a_wrong_value_is_an_error_of_ours(data):
    case = data.draw(st.sampled_from(sorted(CASES)))
    checkpoint = _checkpoint(case)
    field = data.draw(st.sampled_from(sorted(checkpoint.config)) | FIELDS)
    changed = dict(checkpoint.config) | {field: data.draw(VALUES)}
    broken = RandomCheckpoint.__new__(RandomCheckpoint)
    broken.__dict__ |= checkpoint.__dict__ | {"config": changed}
    try:
        model_from_checkpoint(broken)
    except (CheckpointError, UnsupportedConfigError):
        pass


@pytest.mark.parametrize("case", CASES)
def test_tensors_of_another_size_are_an_error(case):
    checkpoint = RandomCheckpoint(config_of(case))
    key = sorted(checkpoint.tensors)[0]
    checkpoint.tensors[key] = type(checkpoint.tensors[key])((3, 1, 4), "", 48)
    with pytest.raises(CheckpointError, match=rf"{key}.* has shape \(3, 1, 4\)"):
        model_from_checkpoint(checkpoint)


def test_the_table_itself_loads():
    assert np.isfinite(_checkpoint("llama").arrays["model.norm.weight"]).all()
    model_from_checkpoint(_checkpoint("llama"))
