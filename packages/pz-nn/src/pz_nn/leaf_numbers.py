"""Python numbers among the leaves of a model, and what they cost.

An epsilon, a scale or the fill value of a mask may be a Python number. Every call of a compiled function
then converts it anew, which takes longer than passing a hundred arrays:

    model = numbers_as_arrays(model)      # once, before jax.jit(...)(model, x) is called often
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["numbers_as_arrays"]

Tree = TypeVar("Tree")


def numbers_as_arrays(tree: Tree) -> Tree:
    """Makes arrays of the Python numbers among the leaves of a tree.

    The arrays are weakly typed, as the numbers are: a model with them computes the same, in the same
    dtypes. Blocks of a layer stack go on sharing them.

    Args:
        tree: A model, or any tree.

    Returns:
        The tree with arrays in place of `bool`, `int`, `float` and `complex` leaves.
    """

    def convert(leaf: Any) -> Any:
        return jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf

    converted: Tree = jax.tree.map(convert, tree)
    return converted
