"""The loop around a trainer: batches, evaluation, early stop, a progress bar, callbacks.

The idea: a callback is any function of an event (which step, which metrics); what it returns true for
stops the training. Nothing else is a framework.

    validation = evaluating(lambda: evaluate(model, token_metrics, batches()), every=100)
    fit(trainer, training_batches(), steps=1000, callbacks=[
        validation, EarlyStopping("validation/loss", patience=3), JsonLinesWriter("log.jsonl"),
        every(500, lambda event: save("runs/1", trainer, step=event.step)),
    ])
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp

from pz_core.variables import variable_jit
from pz_toolshed.basic_training import StatefulTrainer

__all__ = [
    "Callback",
    "EarlyStopping",
    "TrainingEvent",
    "evaluate",
    "evaluating",
    "every",
    "fit",
]


@dataclasses.dataclass(frozen=True)
class TrainingEvent:
    """One step that was made.

    Attributes:
      step: How many steps the trainer has made, this one included.
      metrics: The loss and the scalars of the aux by name; a callback may add more, for those after
        it. Reading an array (`float`) waits for the step to end.
      trainer: The trainer.
    """

    step: int
    metrics: dict[str, Any]
    trainer: StatefulTrainer


Callback: TypeAlias = Callable[[TrainingEvent], Any]
"""Called after each step, in order; a true result stops the training after that step."""


def fit(
    trainer: StatefulTrainer,
    batches: Iterable[Mapping[str, Any]],
    *,
    steps: int | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> int:
    """Trains on batches until they end, the steps are made, or a callback says stop.

    Args:
      trainer: The trainer.
      batches: Keyword arguments of each step.
      steps: How many steps to make at most; default: one per batch.
      callbacks: Called after each step.
      progress: Show a progress bar with the loss and what callbacks last added to the metrics.

    Returns:
      How many steps the trainer has made in all.

    Warns:
      UserWarning: If an `EarlyStopping` among the callbacks never found its metric.
    """
    done = int(trainer.state.value.step)
    callbacks = list(callbacks)
    names: set[str] = set()
    bar = _progress_bar(steps) if progress else None
    shown: dict[str, str] = {}
    try:
        for batch in itertools.islice(batches, steps):
            loss, aux = trainer.step_with_loss(**batch)
            done += 1
            scalars = _scalars(aux)
            event = TrainingEvent(done, {"loss": loss, **scalars}, trainer)
            # A list, not a generator: a callback that stops does not keep the others from running.
            is_over = any([callback(event) for callback in callbacks])
            names.update(event.metrics)
            if bar is not None:
                added = {name: x for name, x in event.metrics.items() if name not in scalars}
                shown |= {name: f"{float(value):.4g}" for name, value in added.items()}
                bar.set_postfix(shown, refresh=False)
                bar.update()
            if is_over:
                break
    finally:
        if bar is not None:
            bar.close()
    _warn_of_unused(callbacks, names)
    return done


def _warn_of_unused(callbacks: list[Callback], names: set[str]) -> None:
    for callback in callbacks:
        if names and isinstance(callback, EarlyStopping) and not callback._has_looked:
            name = callback.metric
            problem = (
                f"EarlyStopping({name!r}) is called before the callback that adds this metric, so it "
                "never saw it. Put it after that one."
                if name in names
                else f"{_absence(name, names)} So it could not stop the training. Give one of these "
                "names, or train until the metric is evaluated."
            )
            warnings.warn(f"fit: {problem}", stacklevel=3)


def _absence(metric: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(metric, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"EarlyStopping({metric!r}): there is no such metric, only {sorted(names)}.{hint}"


def _progress_bar(steps: int | None) -> Any:
    try:
        import tqdm
    except ImportError as error:
        raise ImportError(
            "fit(progress=True) needs tqdm: pip install 'pz-toolshed[training]', or give "
            "progress=False"
        ) from error
    return tqdm.tqdm(total=steps, unit="step")


def _scalars(aux: Any) -> dict[str, Any]:
    if not isinstance(aux, Mapping):
        return {}
    return {
        str(name): value
        for name, value in aux.items()
        if jnp.ndim(value) == 0 and not hasattr(value, "named_shape")
    }


def every(steps: int, callback: Callback) -> Callback:
    """A callback that is called at every n-th step only.

    Args:
      steps: n.
      callback: The callback.

    Returns:
      The callback for `fit`.

    Raises:
      ValueError: If `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"every: steps must be at least 1, got {steps}.")
    return lambda event: callback(event) if event.step % steps == 0 else None


@dataclasses.dataclass
class EarlyStopping:
    """Stops the training when a metric no longer improves.

    Steps without the metric are passed over. But if it has never been there, an evaluation that gives
    other metrics of its prefix (what is before the last `/`) is an error; and if it has not come by the
    end of the training, `fit` warns.

    Attributes:
      metric: Name of the metric.
      patience: How often in a row it may fail to improve.
      min_delta: How much smaller it must be than the best so far to count as better.
      best: The best value so far.
      failures: How often in a row it has failed to improve.
    """

    metric: str
    patience: int
    min_delta: float = 0.0
    best: float = math.inf
    failures: int = 0

    @property
    def _has_looked(self) -> bool:
        return self.failures > 0 or self.best != math.inf

    def __call__(self, event: TrainingEvent) -> bool:
        """Looks at the metric; true when the patience is at its end.

        Raises:
          ValueError: If an evaluation gives other metrics of its prefix, and it has never been there.
        """
        if self.metric not in event.metrics:
            self._check_evaluation(event)
            return False
        value = float(event.metrics[self.metric])
        if value < self.best - self.min_delta:
            self.best, self.failures = value, 0
        else:
            self.failures += 1
        return self.failures > self.patience

    def _check_evaluation(self, event: TrainingEvent) -> None:
        prefix = self.metric[: self.metric.rfind("/") + 1]
        evaluated = [name for name in event.metrics if prefix and name.startswith(prefix)]
        if evaluated and not self._has_looked:
            raise ValueError(
                f"{_absence(self.metric, evaluated)} They were evaluated at step {event.step}. Give "
                "one of these names; or, if they are of another evaluation, give that a prefix of its "
                "own: evaluating(..., prefix=...)."
            )


MetricFunction: TypeAlias = Callable[..., Mapping[str, tuple[Any, Any]]]


def _call_metrics(function: MetricFunction, model: Any, batch: Any) -> Any:
    return dict(function(model, **batch))


_compiled_metrics = variable_jit(_call_metrics, static_argnums=(0,))


def evaluate(
    model: Any,
    metrics: MetricFunction,
    batches: Iterable[Mapping[str, Any]],
    *,
    jit: bool = True,
) -> dict[str, float]:
    """Averages metrics over batches.

    Args:
      model: The model.
      metrics: Called with the model and a batch's entries as keywords; returns for each metric a sum
        and a count (or weight), so that batches of different size average rightly.
      batches: Keyword arguments for `metrics`.
      jit: Compile it; kept by the function's identity, so do not make it anew.

    Returns:
      For each metric, the sum of its sums over the sum of its counts.

    Raises:
      TypeError: If a metric is no pair of a sum and a count.
      ValueError: If there is no batch, or nothing is counted.
    """
    function = _compiled_metrics if jit else _call_metrics
    totals: dict[str, tuple[Any, Any]] = {}
    for batch in batches:
        for name, pair in function(metrics, model, dict(batch)).items():
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(
                    f"evaluate: the metric {name!r} must be a pair (sum, count), got a "
                    f"{type(pair).__name__}. Return e.g. (losses.sum(), losses.size)."
                )
            total, count = pair
            before = totals.get(name, (0.0, 0.0))
            totals[name] = (before[0] + total, before[1] + count)
    if not totals:
        raise ValueError(
            "evaluate: there was no batch, so there is nothing to average. An iterator that was "
            "used up gives nothing more; make a new one for each evaluation."
        )
    nothing = [name for name, (_, count) in totals.items() if not float(count)]
    if nothing:
        raise ValueError(
            f"evaluate: nothing was counted for {nothing}, so there is no average. Look at the masks "
            "of these batches, or leave the metric out."
        )
    return {name: float(total) / float(count) for name, (total, count) in totals.items()}


def evaluating(
    run: Callable[[], Mapping[str, float]], *, every: int, prefix: str = "validation/"
) -> Callback:
    """A callback that evaluates now and then and adds the results to the metrics.

    Args:
      run: Makes one evaluation.
      every: At every how many steps.
      prefix: Put before the names of the metrics.

    Returns:
      The callback; put it before those that use its metrics.
    """

    def callback(event: TrainingEvent) -> None:
        if event.step % every == 0:
            event.metrics.update({prefix + name: value for name, value in run().items()})

    return callback
