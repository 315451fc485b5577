"""The optimizer that most small runs want, put together from optax.

Clipping, schedules and accumulation are optax's; this is the one chain that is written again and
again, with its parts in the right order:

    from pz_toolshed import optimizers

    optimizer = optimizers.adamw_with_warmup(
        peak_learning_rate=3e-4, total_steps=10_000, warmup_steps=500, accumulate=4
    )
"""

from __future__ import annotations

from typing import Any

from pz_toolshed.trainable import ParameterFilter, optax_mask, with_labels

try:
    import optax
except ImportError as error:
    raise ImportError(
        "pz_toolshed.optimizers needs optax: pip install 'pz-toolshed[training]'"
    ) from error

__all__ = ["adamw_with_warmup"]

# Biases and the scales of norms are not decayed.
_DECAYED = with_labels("*.weights", "*.embeddings")
_NOT_DECAYED = with_labels("*/scale.weights", "*norm*")


def _is_decayed(parameter: Any) -> bool:
    return _DECAYED(parameter) and not _NOT_DECAYED(parameter)


def adamw_with_warmup(
    *,
    peak_learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    final_fraction: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.1,
    decayed: ParameterFilter = _is_decayed,
    clip_norm: float | None = 1.0,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """AdamW with linear warmup, cosine decay, gradient clipping and gradient accumulation.

    Args:
      peak_learning_rate: Learning rate at the end of the warmup.
      total_steps: How many updates the schedule covers, warmup included.
      warmup_steps: Updates over which the learning rate rises from 0.
      final_fraction: Learning rate at the end, as a fraction of the peak.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      weight_decay: Factor of the decoupled weight decay.
      decayed: Which parameters decay. Default: weights and embeddings, but no scales of norms.
      clip_norm: Gradients are scaled down to this global norm; None does not clip.
      accumulate: Average the gradients of this many steps for each update.

    Returns:
      The optimizer.

    Raises:
      ValueError: If `accumulate` is below 1 or the warmup is longer than the schedule.
    """
    if accumulate < 1 or warmup_steps > total_steps:
        raise ValueError(
            "adamw_with_warmup: accumulate must be at least 1 and warmup_steps at most total_steps; "
            f"got accumulate={accumulate}, warmup_steps={warmup_steps}, total_steps={total_steps}."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else peak_learning_rate,
        peak_learning_rate,
        warmup_steps,
        total_steps,
        final_fraction * peak_learning_rate,
    )
    optimizer = optax.chain(
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=optax_mask(decayed)),
    )
    if accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, accumulate).gradient_transformation()
