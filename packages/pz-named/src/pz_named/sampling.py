"""Random keys and samples with named shapes.

Samplers take one key and a named shape. Values are drawn in the order of the mapping, as
`jax.random` would draw them for the sizes. A named array of keys gives one draw for each key.

Example:
    >>> import jax
    >>> import pz_named as nx
    >>> nx.random_normal(jax.random.key(0), {"batch": 2, "feature": 3}).named_shape
    {'batch': 2, 'feature': 3}
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pz_named._arguments import single_name
from pz_named._packing import names_first, pack
from pz_named.arrays import NamedArrayBase, is_namedarray, wrap
from pz_named.axis_names import AxisName
from pz_named.creation import checked_sizes
from pz_named.lifting import nmap

__all__ = [
    "random_bernoulli",
    "random_categorical",
    "random_gumbel",
    "random_normal",
    "random_permutation",
    "random_randint",
    "random_split",
    "random_truncated_normal",
    "random_uniform",
]


def _in_split_order(
    named_shape: Mapping[AxisName, int] | Sequence[tuple[AxisName, int]],
) -> dict[AxisName, int]:
    if isinstance(named_shape, collections.OrderedDict):
        return dict(named_shape)
    if isinstance(named_shape, Mapping):
        try:
            return {name: named_shape[name] for name in sorted(named_shape)}  # type: ignore[type-var]
        except TypeError as exc:
            raise ValueError(
                "random_split: the order of axes decides which key goes where, and the names "
                f"{list(named_shape)!r} cannot be sorted. Give an OrderedDict or a sequence of "
                "pairs instead."
            ) from exc
    pairs = [tuple(pair) for pair in named_shape]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            "random_split: named_shape must be a mapping or a non-empty sequence of (name, size) "
            f"pairs; it is {named_shape!r}."
        )
    return dict(pairs)  # type: ignore[arg-type]


def random_split(
    key: Any, named_shape: Mapping[AxisName, int] | Sequence[tuple[AxisName, int]]
) -> NamedArrayBase:
    """Splits a random key into keys along new named axes.

    Args:
      key: A typed or raw key, or a named array of keys.
      named_shape: Sizes by name. The order decides which key goes where: that of an `OrderedDict`
        or a sequence of pairs as given, that of any other mapping sorted by name.

    Returns:
      The keys: names of `key`, then the new ones. Raw keys keep their positional axis of size 2.

    Raises:
      ValueError: For names that `key` has already, or a plain mapping whose names do not sort.
    """
    sizes = checked_sizes("random_split", _in_split_order(named_shape))
    keys = key if is_namedarray(key) else wrap(key)
    overlap = [name for name in sizes if name in keys.named_shape]
    if overlap:
        raise ValueError(
            f"random_split: the key has the axes {overlap!r} already; its named_shape is "
            f"{keys.named_shape!r}. Choose other names."
        )
    count = math.prod(sizes.values())

    def split(one: Any) -> Any:
        result = jax.random.split(one, count)
        return result.reshape((*sizes.values(), *result.shape[1:]))

    split_keys: NamedArrayBase = nmap(split)(keys)
    return split_keys.tag_prefix(*sizes)


def _sample(
    what: str,
    draw: Callable[..., Any],
    key: Any,
    named_shape: Mapping[AxisName, int],
    *parameters: Any,
) -> NamedArrayBase:
    """Draws for the sizes; parameters are aligned with the new names and do not add others."""
    sizes = checked_sizes(what, named_shape)
    keys = key if is_namedarray(key) else wrap(key)
    shape = tuple(sizes.values())
    aligned = [_parameter(what, p, sizes) for p in parameters]
    drawn: NamedArrayBase = nmap(lambda one: draw(one, shape, *aligned))(keys)
    return drawn.tag_prefix(*sizes)


def _parameter(what: str, value: Any, sizes: Mapping[AxisName, int]) -> Any:
    """A parameter as an array that broadcasts against the sizes by position."""
    if not is_namedarray(value):
        return value
    unknown = [name for name in value.named_shape if name not in sizes]
    if unknown or value.positional_shape:
        raise ValueError(
            f"{what}: a parameter may have names of the result only; it has {value.named_shape!r} "
            f"and positional shape {value.positional_shape}, the result {dict(sizes)!r}."
        )
    return value.broadcast_to((), sizes).unwrap(*sizes)


def random_normal(
    key: Any, named_shape: Mapping[AxisName, int], dtype: Any = None
) -> NamedArrayBase:
    """Samples of the standard normal distribution.

    Args:
      key: A random key.
      named_shape: Sizes by name.
      dtype: A floating dtype; default JAX's.

    Returns:
      The samples.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    return _sample("random_normal", lambda k, s: jax.random.normal(k, s, dtype), key, named_shape)


def random_truncated_normal(
    key: Any,
    lower: Any,
    upper: Any,
    named_shape: Mapping[AxisName, int],
    dtype: Any = None,
) -> NamedArrayBase:
    """Samples of the standard normal distribution between two bounds.

    Args:
      key: A random key.
      lower: The lower bound; may be named.
      upper: The upper bound; may be named.
      named_shape: Sizes by name.
      dtype: A floating dtype; default JAX's.

    Returns:
      The samples.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    return _sample(
        "random_truncated_normal",
        lambda k, s, a, b: jax.random.truncated_normal(k, a, b, s, dtype),
        key,
        named_shape,
        lower,
        upper,
    )


def random_uniform(
    key: Any,
    named_shape: Mapping[AxisName, int],
    dtype: Any = None,
    minval: Any = 0.0,
    maxval: Any = 1.0,
) -> NamedArrayBase:
    """Samples between two bounds, the upper one excluded.

    Args:
      key: A random key.
      named_shape: Sizes by name.
      dtype: A floating dtype; default JAX's.
      minval: The lower bound; may be named.
      maxval: The upper bound; may be named.

    Returns:
      The samples.
    """
    dtype = jnp.result_type(float) if dtype is None else dtype
    return _sample(
        "random_uniform",
        lambda k, s, a, b: jax.random.uniform(k, s, dtype, a, b),
        key,
        named_shape,
        minval,
        maxval,
    )


def random_gumbel(
    key: Any, named_shape: Mapping[AxisName, int], dtype: Any = None
) -> NamedArrayBase:
    """Samples of the standard Gumbel distribution; arguments as for `random_normal`."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    return _sample("random_gumbel", lambda k, s: jax.random.gumbel(k, s, dtype), key, named_shape)


def random_randint(
    key: Any,
    named_shape: Mapping[AxisName, int],
    minval: Any,
    maxval: Any,
    dtype: Any = None,
) -> NamedArrayBase:
    """Integers between two bounds, the upper one excluded.

    Args:
      key: A random key.
      named_shape: Sizes by name.
      minval: The lowest integer; may be named.
      maxval: One more than the highest; may be named.
      dtype: An integer dtype; default JAX's.

    Returns:
      The samples.
    """
    dtype = jnp.result_type(int) if dtype is None else dtype
    return _sample(
        "random_randint",
        lambda k, s, a, b: jax.random.randint(k, s, a, b, dtype),
        key,
        named_shape,
        minval,
        maxval,
    )


def random_bernoulli(key: Any, p: Any, named_shape: Mapping[AxisName, int]) -> NamedArrayBase:
    """Booleans that are true with a given probability.

    Args:
      key: A random key.
      p: The probability; may be named.
      named_shape: Sizes by name.

    Returns:
      The samples.
    """
    return _sample(
        "random_bernoulli", lambda k, s, q: jax.random.bernoulli(k, q, s), key, named_shape, p
    )


def random_categorical(key: Any, logits: NamedArrayBase, axis: AxisName) -> NamedArrayBase:
    """Positions along a name, drawn with probability `softmax(logits, axis)`.

    Args:
      key: A random key.
      logits: Unnormalised log probabilities.
      axis: The name of the classes.

    Returns:
      One position for each element of the other axes.

    Raises:
      ValueError: For an unknown name.
    """
    axis = single_name("random_categorical", logits, axis)
    data, layout = names_first(logits)
    names = [name for name in layout.names if name != axis]
    place = layout.names.index(axis)
    return pack(jax.random.categorical(key, data, axis=place), names)


def random_permutation(key: Any, x: NamedArrayBase, axis: AxisName) -> NamedArrayBase:
    """The array with its slices along a name in random order.

    Args:
      key: A random key.
      x: The array.
      axis: The name; the order is the same for all other axes.

    Returns:
      The shuffled array.

    Raises:
      ValueError: For an unknown name.
    """
    axis = single_name("random_permutation", x, axis)
    data, layout = names_first(x)
    place = layout.names.index(axis)
    return pack(jax.random.permutation(key, data, axis=place), layout.names)
