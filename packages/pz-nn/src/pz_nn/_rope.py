"""The stages of rotary embedding: check, make angles, turn pairs.

Every block makes its own angles: XLA moves them out of the loop of a layer stack and merges those of
separate blocks, so passing them in as a side input saves nothing (looked up in the compiled program).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pz_named.named_axes import NamedArray, NamedArrayBase, is_namedarray
from pz_nn._axes import (
    Names,
    axis_indices,
    broadcast_against,
    move_to_end,
    names_and_data,
    with_names,
)
from pz_nn._dtypes import cast
from pz_nn._side_inputs import required
from pz_nn.rope_scaling import DefaultScaling

_PLAIN = DefaultScaling()


def check_settings(layer: Any) -> None:
    """Checks the static fields of a rotary layer when it is made.

    Raises:
        ValueError: If `scale_factor` is below 1 or `pairing` unknown.
    """
    user = type(layer).__name__
    if layer.scale_factor < 1.0:
        raise ValueError(
            f"{user}: scale_factor must be at least 1.0, but is {layer.scale_factor}. It divides the "
            "positions; to stretch a context by 8 give 8.0."
        )
    check_pairing(layer.pairing, user)


def check_pairing(pairing: str, user: str) -> None:
    """Checks how features are paired.

    Raises:
        ValueError: If `pairing` is unknown.
    """
    if pairing not in ("halves", "interleaved"):
        raise ValueError(
            f"{user}: pairing must be 'halves' or 'interleaved', but is {pairing!r}. Most published "
            "checkpoints with rotary embeddings use 'halves'."
        )


def rotate(
    layer: Any, value: NamedArrayBase, side_inputs: dict[str, Any], subset: int | None
) -> NamedArray:
    """Rotates the first `subset` features (all if None) of `value`, as `layer` says."""
    user = type(layer).__name__
    positions = required(side_inputs, layer.positions_input_name, user)
    names, data = names_and_data(value, user)
    axis_indices(names, (layer.embedding_axis,), user)
    check_positions(user, layer.positions_input_name, layer.embedding_axis, positions, value)
    moved = move_to_end(names, data, (layer.embedding_axis,))
    names, data = tuple(moved.named_axes), moved.data_array
    size = data.shape[-1] if subset is None else min(subset, data.shape[-1])
    if size % 2:
        raise ValueError(
            f"{user}: the number of rotated features must be even, but is {size} (axis "
            f"{layer.embedding_axis!r} of {value.named_shape}). Rotate an even number of them with "
            "ApplyRoPEToSubset."
        )
    if size == 0:
        return moved
    cos, sin = _cos_and_sin(layer, positions, names[:-1], size, data.dtype, side_inputs)
    turned = cast(_turn(data[..., :size], cos, sin, layer.pairing), data.dtype)
    if size < data.shape[-1]:
        turned = jnp.concatenate([turned, data[..., size:]], axis=-1)
    return with_names(names, turned)


def check_positions(
    user: str, name: str, embedding_axis: str, positions: Any, value: NamedArrayBase
) -> None:
    """Checks that positions, the side input `name`, can be spread over `value`.

    Raises:
        TypeError: If they are no named array.
        ValueError: If they have the embedding axis, positional axes, an axis that the input lacks, or
            one of another size.
    """
    if not is_namedarray(positions):
        raise TypeError(
            f"{user}: the side input {name!r} must be a named array, but is a "
            f'{type(positions).__name__}. Name its axes: `wrap(positions, "seq")`.'
        )
    shapes = f"positions.named_shape={positions.named_shape}, input {value.named_shape}"
    if embedding_axis in positions.named_shape:
        raise ValueError(
            f"{user}: the positions ({name!r}) must not have the embedding axis "
            f"{embedding_axis!r}: {shapes}. Rename that axis of the positions."
        )
    if positions.positional_shape:
        raise ValueError(
            f"{user}: the positions ({name!r}) must not have positional axes, but have shape "
            f"{positions.positional_shape} beside {shapes}. Tag them first."
        )
    missing = [axis for axis in positions.named_shape if axis not in value.named_shape]
    if missing:
        raise ValueError(
            f"{user}: the input must have every axis of the positions ({name!r}), but lacks {missing}: "
            f"{shapes}. Rename or drop those axes of the positions."
        )
    if any(value.named_shape[axis] != size for axis, size in positions.named_shape.items()):
        raise ValueError(
            f"{user}: axes of one name must agree in size, but the positions ({name!r}) and the input "
            f"differ: {shapes}. Give one position for each entry of the input."
        )


def _cos_and_sin(
    layer: Any,
    positions: NamedArrayBase,
    names: Names,
    size: int,
    dtype: Any,
    side_inputs: dict[str, Any],
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles, laid out along `names` and then the pairs."""
    scaling = layer.scaling or _PLAIN
    angle_dtype = jnp.promote_types(dtype, jnp.float32)
    frequencies = _frequencies(layer, scaling, size, side_inputs, names)
    aligned = broadcast_against(*names_and_data(positions, type(layer).__name__), names)
    angles = aligned[..., None].astype(angle_dtype) * (frequencies / layer.scale_factor)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    factor = attention_scale(layer)
    if not isinstance(factor, float) or factor != 1.0:
        cos, sin = cos * factor, sin * factor
    if layer.angles_in_input_dtype:
        cos, sin = cast(cos, dtype), cast(sin, dtype)
    return cos, sin


def attention_scale(layer: Any) -> Any:
    """The factor of cosines and sines: a float, or an array without axes."""
    if layer.attention_scale is None:
        return (layer.scaling or _PLAIN).attention_scale()
    given = layer.attention_scale
    return given.unwrap() if is_namedarray(given) else given


def _frequencies(
    layer: Any, scaling: Any, size: int, side_inputs: dict[str, Any], names: Names
) -> Any:
    """Frequencies of the pairs; along `names` first where the length differs from row to row."""
    user = type(layer).__name__
    if layer.frequencies is not None:
        names, frequencies = names_and_data(layer.frequencies, user)
        if names != (layer.embedding_axis,) or frequencies.shape != (size // 2,):
            raise ValueError(
                f"{user}: `frequencies` must have the one axis {layer.embedding_axis!r} of size "
                f"{size // 2}, but has {layer.frequencies.named_shape}. Give one frequency for each pair "
                "of features."
            )
        return frequencies
    if not scaling.needs_length:
        return scaling.frequencies(size, layer.max_wavelength)
    length = required(side_inputs, layer.length_input_name, user)
    if not is_namedarray(length):
        return scaling.frequencies(size, layer.max_wavelength, length)
    length_names, lengths = names_and_data(length, user)
    if missing := [name for name in length_names if name not in names]:
        raise ValueError(
            f"{user}: the input must have every axis of the length ({layer.length_input_name!r}), but lacks "
            f"{missing}: length.named_shape={length.named_shape}, input axes {names}. Give one length for "
            "each row, or one for all."
        )
    of_length = functools.partial(scaling.frequencies, size, layer.max_wavelength)
    for _ in length_names:
        of_length = jax.vmap(of_length)
    pairs = (*length_names, layer.embedding_axis)
    return broadcast_against(pairs, of_length(lengths), (*names, layer.embedding_axis))


def _turn(data: jax.Array, cos: jax.Array, sin: jax.Array, pairing: str) -> jax.Array:
    if pairing == "halves":
        first, second = jnp.split(data, 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    first, second = data[..., 0::2], data[..., 1::2]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(data.shape)
