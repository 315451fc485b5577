"""Hypothesis profiles and the shared strategies of this wheel's tests."""

import os
import pathlib
import sys

import hypothesis
import jax
import pytest

# importlib import mode keeps test folders off sys.path; the helpers have a name of their own.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "helpers"))

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=15, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def quick_compilation():
    """Compiles without XLA's expensive passes: the many small programs here run once each."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
