"""Reading side inputs."""

from __future__ import annotations

from typing import Any

from pz_nn._axes import near_misses


def required(side_inputs: dict[str, Any], name: Any, user: str) -> Any:
    """The side input called `name`.

    Raises:
        KeyError: If the caller did not pass it; the message names it, the layer and what was passed.
    """
    if name not in side_inputs:
        raise KeyError(
            f"{user}: the side input {name!r} is missing; given were {sorted(side_inputs)}."
            f"{near_misses([name], side_inputs)} Pass it to the model: `model(x, {name}=...)`."
        )
    return side_inputs[name]
