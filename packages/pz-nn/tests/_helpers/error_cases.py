"""Tables of errors: what is wrong, which words say so, and that what these words advise works."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from nn_helpers import raises

from pz_named import named_axes as nx


class Case(NamedTuple):
    """One row.

    Attributes:
        error: The class of the error.
        text: Parts of its text: the layer or call, the rule, the values, the advice.
        wrong: The wrong program.
        repaired: The program as the text advises it.
        gives: The named shape of the repaired program's result, or the result itself.
    """

    error: type[BaseException]
    text: tuple[str, ...]
    wrong: Callable[[], Any]
    repaired: Callable[[], Any]
    gives: Any


def check(case):
    """Runs both programs of a case."""
    with raises(case.error, *case.text) as caught:
        case.wrong()
    assert type(caught.value) is case.error
    result = case.repaired()
    assert (result.named_shape if nx.is_namedarray(result) else result) == case.gives


def ones(dtype=jnp.float32, /, **sizes):
    """A named array of ones."""
    return nx.ones(sizes, dtype)
