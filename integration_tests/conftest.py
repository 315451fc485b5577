"""What the tests of the whole system share."""

import pytest


@pytest.fixture(scope="module")
def compile_fast():
    """For modules that compile every model once: fast compilation matters there, fast running does not."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
