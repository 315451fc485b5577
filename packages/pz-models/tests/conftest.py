"""Shared set-up: hypothesis profiles, tiny models and tiny checkpoint files."""

import os
import pathlib
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pz_named import named_axes as nx

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_helpers"))

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=15, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Models here are tiny and each is compiled once: compiling fast matters, running fast does not.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def tokens() -> nx.NamedArray:
    return nx.wrap(jnp.array([1, 2, 3]), "seq")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
