"""Rotary frequencies and the ways to stretch them to longer contexts, as data.

Rotary embeddings turn pair i of d/2 pairs by the angle position · f_i with f_i = w^(-2i/d) for the longest
wavelength w. A scaling changes the f_i, and some multiply cosines and sines by an attention factor a.
Scalings are small frozen dataclasses named after the `rope_type` of published configurations:

    ApplyRoPE("projection", 500_000.0, "token_positions",
              scaling=Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                    original_max_position_embeddings=8192))

References: Su et al., RoFormer (2021); Chen et al., Position Interpolation (2023); Peng et al., YaRN (2023);
Ding et al., LongRoPE (2024); bloc97's dynamic scaling (2023); the Llama 3.1 report (2024).
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = [
    "DefaultScaling",
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "RoPEScaling",
    "YarnScaling",
]


class RoPEScaling(abc.ABC):
    """A rule for rotary frequencies."""

    @property
    def needs_length(self) -> bool:
        """Whether the frequencies depend on the current length of the sequence."""
        return False

    @abc.abstractmethod
    def frequencies(self, size: int, max_wavelength: float, length: Any = None) -> Any:
        """Angle per position of each pair.

        Args:
            size: Number d of rotated features, even.
            max_wavelength: Base w of the wavelengths.
            length: Current length of the sequence, an integer or an integer scalar array; only read by
                scalings with `needs_length`.

        Returns:
            Array of shape (d/2,), float32: NumPy if it is known now, JAX if it depends on `length`.
        """

    def attention_scale(self) -> float:
        """Factor a of cosines and sines."""
        return 1.0


def _plain(size: int, max_wavelength: Any) -> Any:
    # In the steps and precision of the reference implementations: exponent, power and reciprocal are each
    # rounded to float32, which matters for angles at positions of 10⁵.
    exponents = np.arange(0, size, 2).astype(np.float32) / np.float32(size)
    return np.float32(1.0) / (np.float32(max_wavelength) ** exponents)


@dataclasses.dataclass(frozen=True)
class DefaultScaling(RoPEScaling):
    """No scaling: f_i = w^(-2i/d)."""

    def frequencies(self, size: int, max_wavelength: float, length: Any = None) -> Any:
        """Angle per position of each pair."""
        del length
        return _plain(size, max_wavelength)


@dataclasses.dataclass(frozen=True)
class LinearScaling(RoPEScaling):
    """Position interpolation: f_i / factor.

    Attributes:
        factor: At least 1.
    """

    factor: float

    def frequencies(self, size: int, max_wavelength: float, length: Any = None) -> Any:
        """Angle per position of each pair."""
        del length
        return _plain(size, max_wavelength) / np.float32(self.factor)


@dataclasses.dataclass(frozen=True)
class DynamicScaling(RoPEScaling):
    """Dynamic NTK scaling: the base grows with the sequence.

    With n = max(N, length) the base is w · (s·n/N - (s - 1))^(d/(d - 2)); up to N it is w itself.

    Attributes:
        factor: s.
        max_position_embeddings: N.
    """

    factor: float
    max_position_embeddings: int

    @property
    def needs_length(self) -> bool:
        """True: the base depends on the length."""
        return True

    def frequencies(self, size: int, max_wavelength: float, length: Any = None) -> Any:
        """Angle per position of each pair."""
        longest = jnp.maximum(length, self.max_position_embeddings)
        growth = self.factor * longest / self.max_position_embeddings - (self.factor - 1)
        base = max_wavelength * growth ** (size / (size - 2))
        exponents = np.arange(0, size, 2).astype(np.float32) / np.float32(size)
        return (1.0 / (base**exponents)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(RoPEScaling):
    """Llama 3.1: long wavelengths are divided by a factor, short ones kept, with a ramp between.

    With the wavelength λ = 2π/f: λ < O/hi keeps f, λ > O/lo gives f/s, otherwise
    (1 - t)·f/s + t·f with t = (O/λ - lo)/(hi - lo).

    Attributes:
        factor: s.
        low_freq_factor: lo.
        high_freq_factor: hi.
        original_max_position_embeddings: O, the context length before scaling.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def frequencies(self, size: int, max_wavelength: float, length: Any = None) -> Any:
        """Angle per position of each pair."""
        del length
        original = self.original_max_position_embeddings
        plain = _plain(size, max_wavelength)
        wavelengths = 2 * math.pi / plain
        ramp = (original / wavelengths - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = (1 - ramp) * plain / self.factor + ramp * plain
        scaled = np.where(
            wavelengths > original / self.low_freq_factor, plain / self.factor, between
        )
        kept = wavelengths < original / self.high_freq_factor
        return np.where(kept, plain, scaled).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class YarnScaling(RoPEScaling):
    """YaRN: interpolates pairs that turn rarely, keeps pairs that turn often.

    With c(r) = d·ln(O/(2πr)) / (2·ln w), the ramp over i runs from c(beta_fast) to c(beta_slow), and
    f = f_i·(1 - ramp) + f_i/s·ramp.

    Attributes:
        factor: s.
        original_max_position_embeddings: O, the context length before scaling.
        beta_fast: Turns within O above which a pair is kept.
        beta_slow: Turns within O below which a pair is interpolated.
        truncate: Whether the ends of the ramp are rounded outwards to whole pairs.
        attention_factor: a; by default it follows from the next two and s.
        mscale: With m for m in (mscale, mscale_all_dim) and g(m) = 0.1·m·ln s + 1, a is
            g(mscale)/g(mscale_all_dim) if both are given and not zero, else g(1).
        mscale_all_dim: See `mscale`.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def frequencies(self, size: int, max_wavelength: float, length: Any = None) -> Any:
        """Angle per position of each pair."""
        del length

        def pair_with_turns(turns: float) -> float:
            turn_length = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return size * math.log(turn_length) / (2 * math.log(max_wavelength))

        low, high = pair_with_turns(self.beta_fast), pair_with_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        if low == high:
            high += 0.001
        pairs = np.arange(size // 2, dtype=np.float32)
        ramp = np.clip((pairs - low) / (high - low), 0, 1).astype(np.float32)
        plain = _plain(size, max_wavelength)
        return (plain * (1 - ramp) + plain / np.float32(self.factor) * ramp).astype(np.float32)

    def attention_scale(self) -> float:
        """Factor a of cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor

        def gain(mscale: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return gain(self.mscale) / gain(self.mscale_all_dim)
        return gain(1.0)


@dataclasses.dataclass(frozen=True)
class LongRoPEScaling(RoPEScaling):
    """LongRoPE: each pair has a divisor of its own, one for short sequences and one for long.

    Attributes:
        short_factor: d/2 divisors for sequences up to O.
        long_factor: d/2 divisors for longer ones.
        original_max_position_embeddings: O.
        factor: s, the ratio of the new context length to O.
        attention_factor: a; by default √(1 + ln s / ln O), and 1 for s ≤ 1.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float
    attention_factor: float | None = None

    @property
    def needs_length(self) -> bool:
        """True: the divisors depend on the length."""
        return True

    def frequencies(self, size: int, max_wavelength: float, length: Any = None) -> Any:
        """Angle per position of each pair.

        Raises:
            ValueError: If there is not one divisor for each pair.
        """
        for name, factors in (
            ("short_factor", self.short_factor),
            ("long_factor", self.long_factor),
        ):
            if len(factors) != size // 2:
                raise ValueError(
                    f"LongRoPEScaling: {name} must have one entry for each of the {size // 2} rotated "
                    f"pairs, but has {len(factors)}. Check the size of the rotated axis ({size})."
                )
        exponents = np.arange(0, size, 2).astype(np.float32) / np.float32(size)
        powers = np.float32(max_wavelength) ** exponents
        short = np.float32(1.0) / (np.asarray(self.short_factor, np.float32) * powers)
        long = np.float32(1.0) / (np.asarray(self.long_factor, np.float32) * powers)
        return jnp.where(jnp.asarray(length) > self.original_max_position_embeddings, long, short)

    def attention_scale(self) -> float:
        """Factor a of cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(
            1 + math.log(self.factor) / math.log(self.original_max_position_embeddings)
        )
