"""Rotary settings of HuggingFace configurations, in the spelling of transformers 4 and 5."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pz_models.config_reader import ConfigReader, is_float32
from pz_models.errors import UnsupportedConfigError
from pz_nn.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    RoPEScaling,
    YarnScaling,
)

__all__ = ["RotarySettings", "read_rotary", "rotary_from_mapping", "written_rotary"]


@dataclasses.dataclass(frozen=True)
class RotarySettings:
    """How positions enter a model.

    Attributes:
      source: What to call the configuration in messages.
      base: The longest wavelength over 2π.
      scaling: Rule that stretches the frequencies; None for none.
      fraction: Share of a head's entries that are rotated.
      extra: Settings that only one family understands.
    """

    source: str
    base: float
    scaling: RoPEScaling | None
    fraction: float = 1.0
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rotated(self, head: int) -> int:
        """How many entries of a head of this size are rotated.

        Raises:
          UnsupportedConfigError: They are more than there are, or do not make pairs.
        """
        count = int(head * self.fraction)
        if count % 2 or not 0 <= count <= head:
            raise UnsupportedConfigError(
                f"{self.source}: the entries of a head are rotated in pairs, so their number should"
                f" be even and at most the size of a head; with 'head_dim' {head} and"
                f" 'partial_rotary_factor' {self.fraction} it is {count}."
            )
        return count


def read_rotary(
    reader: ConfigReader, default_base: float = 10_000.0, default_fraction: float = 1.0
) -> RotarySettings:
    """Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (4)."""
    base = reader.get("rope_theta", float, default_base)
    settings = dict(reader.get("rope_scaling", dict, {}))
    settings |= reader.get("rope_parameters", dict, {})
    settings.setdefault("rope_theta", base)
    longest = reader.get("max_position_embeddings", int, 0)
    original = reader.get("original_max_position_embeddings", int)
    if original is not None:  # Phi-3 states it outside, and that wins
        settings["original_max_position_embeddings"] = original
    fraction = reader.get("partial_rotary_factor", float, default_fraction)
    settings.setdefault("partial_rotary_factor", fraction)
    return rotary_from_mapping(settings, longest, reader.source)


def rotary_from_mapping(settings: Mapping[str, Any], longest: int, source: str) -> RotarySettings:
    """Settings from one mapping of keys as in `rope_parameters`.

    Args:
      settings: The mapping, `rope_theta` included.
      longest: `max_position_embeddings`.
      source: What to call the configuration in messages.

    Raises:
      UnsupportedConfigError: The type is unknown, or a key of it missing or not understood.
    """
    left = {key: value for key, value in settings.items() if value is not None}
    kind = left.pop("rope_type", left.pop("type", "default"))
    left.pop("type", None)
    if not isinstance(kind, str) or kind not in _READERS:
        raise UnsupportedConfigError(
            f"{source}: rotary scaling of type {kind!r} is not supported; supported are"
            f" {', '.join(_READERS)}."
        )
    try:
        base = _finite(left.pop("rope_theta"))
        fraction = _finite(left.pop("partial_rotary_factor", 1.0))
        scaling = _READERS[kind](left, longest)
    except KeyError as exc:
        raise UnsupportedConfigError(
            f"{source}: rotary scaling of type {kind!r} needs the key {exc}; there are"
            f" {sorted(settings)}."
        ) from exc
    except (TypeError, ValueError, ArithmeticError) as exc:
        raise UnsupportedConfigError(
            f"{source}: rotary scaling of type {kind!r} has a setting that is no number, or not a"
            f" possible one ({exc}): {dict(settings)}."
        ) from exc
    # The last is the configuration's own field once more (Ministral 3 writes it twice).
    known_extra = {
        "llama_4_scaling_beta",
        "original_max_position_embeddings",
        "max_position_embeddings",
    }
    unknown = {key: value for key, value in left.items() if key not in known_extra}
    if unknown:
        raise UnsupportedConfigError(
            f"{source}: rotary scaling of type {kind!r} has settings that are not understood:"
            f" {unknown}."
        )
    return RotarySettings(source, base, scaling, fraction, left)


def _finite(value: Any) -> float:
    number = float(value)
    if not is_float32(number):
        raise ValueError(f"{number} is not a finite float32")
    return number


def _default(keys: dict[str, Any], longest: int) -> None:
    keys.pop("factor", None)  # some files keep one that "default" ignores


def _linear(keys: dict[str, Any], longest: int) -> RoPEScaling:
    return LinearScaling(_finite(keys.pop("factor")))


def _dynamic(keys: dict[str, Any], longest: int) -> RoPEScaling:
    return DynamicScaling(_finite(keys.pop("factor")), longest)


def _llama3(keys: dict[str, Any], longest: int) -> RoPEScaling:
    return Llama3Scaling(
        factor=_finite(keys.pop("factor")),
        low_freq_factor=_finite(keys.pop("low_freq_factor")),
        high_freq_factor=_finite(keys.pop("high_freq_factor")),
        original_max_position_embeddings=int(keys.pop("original_max_position_embeddings")),
    )


def _yarn(keys: dict[str, Any], longest: int) -> RoPEScaling:
    original = int(keys.get("original_max_position_embeddings", longest))
    factor = keys.pop("factor", None)
    optional = {
        name: keys.pop(name)
        for name in (
            "beta_fast",
            "beta_slow",
            "truncate",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
        )
        if name in keys
    }
    return YarnScaling(
        factor=longest / original if factor is None else _finite(factor),
        original_max_position_embeddings=original,
        **optional,
    )


def _longrope(keys: dict[str, Any], longest: int) -> RoPEScaling:
    original = int(keys.pop("original_max_position_embeddings"))
    factor = keys.pop("factor", None)
    return LongRoPEScaling(
        short_factor=tuple(map(_finite, keys.pop("short_factor"))),
        long_factor=tuple(map(_finite, keys.pop("long_factor"))),
        original_max_position_embeddings=original,
        factor=longest / original if factor is None else _finite(factor),
        attention_factor=keys.pop("attention_factor", None),
    )


_READERS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}

_NAMES: dict[type[RoPEScaling], str] = {
    LinearScaling: "linear",
    DynamicScaling: "dynamic",
    Llama3Scaling: "llama3",
    YarnScaling: "yarn",
    LongRoPEScaling: "longrope",
}


def written_rotary(base: float, scaling: RoPEScaling | None) -> dict[str, Any]:
    """The fields that `read_rotary` reads as these settings, in the spelling of transformers 4.

    A scaling of another kind is named by its class, which no reader knows.
    """
    fields: dict[str, Any] = {"rope_theta": base}
    if scaling is None:
        return fields
    kind = _NAMES.get(type(scaling), type(scaling).__name__)
    stated: dict[str, Any] = vars(scaling).copy()
    if "max_position_embeddings" in stated:
        fields["max_position_embeddings"] = stated.pop("max_position_embeddings")
    settings = {key: value for key, value in stated.items() if value is not None}
    return fields | {"rope_scaling": {"rope_type": kind, **settings}}
