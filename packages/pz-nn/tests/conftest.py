"""Settings and fixtures shared by the tests of pz-nn."""

import os
import pathlib
import sys

import hypothesis
import jax
import pytest

# Helpers are imported by a name of their own: importlib mode has no package of tests.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "_helpers"))

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=15, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Tests ask what programs compute, hardly ever how fast: half of the suite's time was XLA's optimiser.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def optimized_programs():
    """For tests that look into compiled programs: switches XLA's optimiser on."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def key():
    """The key of every test vector."""
    return jax.random.key(0)


@pytest.fixture
def float64():
    """Runs a test with 64-bit floats enabled."""
    with jax.enable_x64(True):
        yield
