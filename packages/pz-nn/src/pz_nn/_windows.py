"""Settings of sliding windows: strides, dilation and padding, given by axis name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pz_nn._axes import near_misses

AxisSettings = int | dict[str, int]
Pairs = tuple[tuple[int, int], ...]
Padding = str | Pairs


def per_axis(
    setting: AxisSettings, window: Mapping[str, int], what: str, user: str
) -> tuple[int, ...]:
    """A setting as one number for each window axis; axes that a dict leaves out get 1.

    Raises:
        ValueError: If a dict names no window axis, or a number is below 1.
    """
    if isinstance(setting, dict):
        _check_known(setting, window, what, user)
        values = tuple(setting.get(axis, 1) for axis in window)
    else:
        values = (setting,) * len(window)
    if any(value < 1 for value in values):
        raise ValueError(
            f"{user}: {what} must be at least 1, but is {setting}. 1 means every entry in turn."
        )
    return values


def checked_padding(
    padding: str | dict[str, tuple[int, int]], window: Mapping[str, int], user: str
) -> Padding:
    """Padding as a word or as (low, high) for each window axis; axes left out get (0, 0).

    Raises:
        ValueError: If the word is unknown or a name is no window axis.
    """
    if isinstance(padding, dict):
        _check_known(padding, window, "padding", user)
        return tuple(padding.get(axis, (0, 0)) for axis in window)
    if padding not in ("SAME", "VALID", "CAUSAL"):
        raise ValueError(
            f"{user}: padding must be 'SAME', 'VALID', 'CAUSAL' or (low, high) by axis name, but is "
            f"{padding!r}. Write for example {{'height': (1, 1)}}."
        )
    return padding


def _check_known(
    setting: Mapping[str, object], window: Mapping[str, int], what: str, user: str
) -> None:
    unknown = [axis for axis in setting if axis not in window]
    if unknown:
        raise ValueError(
            f"{user}: {what} may only name axes of the window {tuple(window)}, but names {unknown}."
            f"{near_misses(unknown, window)} Remove them or add them to the window."
        )


def paddings(
    padding: Padding,
    sizes: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Pairs:
    """(low, high) for each window axis of an input of these sizes."""
    if not isinstance(padding, str):
        return padding
    spans = [(size - 1) * step for size, step in zip(window, dilation, strict=True)]
    if padding == "VALID":
        return ((0, 0),) * len(spans)
    if padding == "CAUSAL":
        return tuple((span, 0) for span in spans)
    pairs = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        # The last window starts at (⌈size / stride⌉ - 1) · stride and reaches `span` further.
        total = max((-(-size // stride) - 1) * stride + span + 1 - size, 0)
        pairs.append((total // 2, total - total // 2))
    return tuple(pairs)


def transpose_cuts(
    padding: Padding, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Pairs:
    """What a transposed convolution cuts off its full result: (low, high) for each window axis."""
    if not isinstance(padding, str):
        return padding
    if padding == "VALID":
        return ((0, 0),) * len(window)
    pairs = []
    for size, stride, step in zip(window, strides, dilation, strict=True):
        # The full result has (n - 1) · stride + span + 1 entries; n · stride are kept.
        total = (size - 1) * step + 1 - stride
        low = 0 if padding == "CAUSAL" else max(total, 0) // 2
        pairs.append((low, total - low))
    return tuple(pairs)
