"""Text generation as one compiled program.

    answer = generate(model, "Once upon a time", tokenizer=tokenizer, max_new_tokens=64)
    answer.text, answer.tokens, answer.log_probabilities

Prefill is one program, all steps of decoding are one `while_loop` with the caches updated in
place, ending when every sequence has. Prompts are padded to a bucket (16, 32, 64, … tokens) and
caches grow by doubling, so that a second prompt of the same bucket compiles nothing and a step
costs what is filled, not what there is room for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.variables import freeze_params, unbind_state_vars
from pz_models import _decoding
from pz_models._prompts import as_rows
from pz_models.errors import PromptError
from pz_models.tokenizer import Tokenizer
from pz_models.transformer.model_parts import TransformerLM

__all__ = ["Generation", "generate"]

_SMALLEST_BUCKET = 16
_SMALLEST_CAPACITY = 256  # below this, attention to the cache costs little beside the weights
_STOP_IDS_AT_ONCE = 8
_CHUNK_FOR_STOP_STRINGS = 16


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a model added to one prompt.

    Attributes:
      tokens: The new tokens; a token that ended the sequence is the last of them.
      log_probabilities: The model's log-probability of each, at temperature 1.
      stopped: Whether the sequence ended by itself, rather than at `max_new_tokens`.
      text: The new text, without special tokens and stop strings; None without a tokenizer.
    """

    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    stopped: bool
    text: str | None = None


def generate(
    model: TransformerLM,
    prompt: Any,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    tokenizer: Tokenizer | None = None,
    stop: Iterable[int | str] = (),
    capacity: int | None = None,
    stream: Callable[[Any], object] | None = None,
    stream_every: int = 8,
    rope_length: int | None = None,
) -> Any:
    """Continues one prompt, or several at once.

    Args:
      model: The model: stacked or not, edited or not. It is not changed; state variables in it
        other than caches are read, and what is written to them is dropped.
      prompt: Text, or token ids (a sequence of integers, or an array {seq}); or a sequence of
        those, or an array {batch, seq}. Rows may differ in length.
      max_new_tokens: Most tokens to add, 1 or more.
      temperature: What logits are divided by before sampling; 0 takes the likeliest token.
      key: Random key; needed if `temperature` is not 0.
      tokenizer: Encodes text prompts, decodes the results, and ends sequences at its `eos`.
      stop: Further token ids or strings that end a sequence. Strings need a tokenizer.
      capacity: Most tokens that prompt and continuation may have together; by default what they
        need. Room costs nothing until it is filled.
      stream: Called with each new piece of text (of token ids, without a tokenizer) as it comes;
        for a single prompt. Text that may be the beginning of a stop string waits until it is not.
      stream_every: How many tokens are decoded between calls of `stream`.
      rope_length: Length that rotary frequencies assume where they depend on it (dynamic scaling,
        LongRoPE), the same from the first token to the last; by default that of each prompt and
        `max_new_tokens` together.

    Returns:
      A `Generation` for one prompt, a list of them for several.

    Raises:
      PromptError: A prompt is empty, holds no token ids, or does not fit `capacity` or the model's
        learned positions.
      ValueError: Another argument is out of range or missing.
    """
    rows, single = as_rows(prompt, tokenizer, model.metadata.vocab_size)
    _check_numbers(max_new_tokens, temperature, key, stream_every)
    _check_room(
        rows, max_new_tokens, capacity, getattr(model.metadata.config, "max_positions", None)
    )
    if stream is not None and not single:
        raise ValueError(f"generate: stream= is for a single prompt; received {len(rows)}.")
    stop_ids, stop_strings = _split_stops(stop, tokenizer)
    lengths = [len(row) + max_new_tokens if rope_length is None else rope_length for row in rows]
    run = _Run(model, rows, max_new_tokens, temperature, key, stop_ids, lengths)
    emit = None if stream is None else _Stream(stream, tokenizer is not None, stop_strings)
    every = stream_every if stream else _CHUNK_FOR_STOP_STRINGS if stop_strings else max_new_tokens
    while True:
        finished = run.advance(every)
        results = [_cut(result, tokenizer, stop_strings) for result in run.results()]
        finished = finished or all(result.stopped for result in results)
        if emit is not None:
            emit(results[0], finished)
        if finished:
            return results[0] if single else results


def _check_numbers(
    max_new_tokens: int, temperature: float, key: jax.Array | None, stream_every: int
) -> None:
    if max_new_tokens < 1 or stream_every < 1 or not temperature >= 0:
        raise ValueError(
            "generate: max_new_tokens and stream_every should be 1 or more and temperature 0 or"
            f" more; received {max_new_tokens}, {stream_every} and {temperature}."
        )
    if temperature > 0 and key is None:
        raise ValueError(
            f"generate: sampling at temperature={temperature} needs a random key; pass"
            " key=jax.random.key(0), or temperature=0 for the likeliest token."
        )


def _check_room(
    rows: list[list[int]], max_new_tokens: int, capacity: int | None, positions: int | None
) -> None:
    longest = max(map(len, rows))
    if positions is not None and longest + max_new_tokens - 1 > positions:
        raise PromptError(
            f"generate: a prompt of {longest} tokens and max_new_tokens={max_new_tokens} need"
            f" {longest + max_new_tokens - 1} positions (the last token is not read); the model has"
            f" learned {positions}. Shorten the prompt, or lower max_new_tokens."
        )
    if capacity is not None and longest + max_new_tokens > capacity:
        raise PromptError(
            f"generate: a prompt of {longest} tokens and max_new_tokens={max_new_tokens} need room"
            f" for {longest + max_new_tokens} tokens; capacity={capacity}. Shorten the prompt, or"
            " raise capacity."
        )


def _split_stops(
    stop: Iterable[int | str], tokenizer: Tokenizer | None
) -> tuple[list[int], list[str]]:
    """Ids and strings that end a sequence; the tokenizer's own end comes first."""
    given = [stop] if isinstance(stop, int | str) else list(stop)
    ids = [int(item) for item in given if not isinstance(item, str)]
    strings = [item for item in given if isinstance(item, str)]
    if strings and tokenizer is None:
        raise ValueError(
            f"generate: stop strings ({strings!r}) need tokenizer=; or pass token ids."
        )
    if tokenizer is not None and tokenizer.special.eos is not None:
        ids.insert(0, tokenizer.special.eos)
    return ids, strings


class _Run:
    """One batch on its way: which program runs next, and what has come out."""

    def __init__(
        self,
        model: TransformerLM,
        rows: list[list[int]],
        max_new_tokens: int,
        temperature: float,
        key: jax.Array | None,
        stop_ids: list[int],
        rope_lengths: list[int],
    ):
        self._model, self._other_state = unbind_state_vars(freeze_params(model), freeze=True)
        self._rows, self._most = rows, max_new_tokens
        self._bucket = _power_of_two(max(map(len, rows)), _SMALLEST_BUCKET)
        self._capacity = _power_of_two(self._bucket + 1, _SMALLEST_CAPACITY)
        self._sampling = temperature > 0
        n_stops = max(1, -(-len(stop_ids) // _STOP_IDS_AT_ONCE)) * _STOP_IDS_AT_ONCE
        padded = stop_ids + [-1] * (n_stops - len(stop_ids))
        self._settings = _decoding.Settings(
            stop_ids=jnp.asarray(padded, jnp.int32),
            temperature=jnp.float32(temperature),
            key=jax.random.key(0) if key is None else key,
            rope_length=jnp.asarray(rope_lengths, jnp.int32),
        )
        self._progress: _decoding.Progress | None = None
        self._made = 0

    def advance(self, count: int) -> bool:
        """Makes up to `count` more tokens for each row; returns whether that was all."""
        if self._progress is None:
            tokens = np.zeros((len(self._rows), self._bucket), np.int32)
            for row, ids in zip(tokens, self._rows, strict=True):
                row[: len(ids)] = ids
            lengths = np.array([len(ids) for ids in self._rows], np.int32)
            self._progress = _decoding.prefill(
                self._model,
                self._other_state,
                tokens,
                lengths,
                self._settings,
                capacity=self._capacity,
                sampling=self._sampling,
            )
            self._made = 1
            count -= 1
        goal = min(self._made + count, self._most)
        while self._made < goal and not bool(jnp.all(self._progress.done)):
            # Measured from the bucket, not from the prompt, so that which programs run does not
            # depend on the prompt's own length.
            room = self._capacity - self._bucket
            if self._made > room:
                self._capacity *= 2
                self._progress = _decoding.grow(self._progress, capacity=self._capacity)
                continue
            self._made = min(goal, room + 1)
            self._progress = _decoding.decode(
                self._model,
                self._other_state,
                self._progress,
                jnp.int32(self._made),
                self._settings,
                capacity=self._capacity,
                sampling=self._sampling,
            )
        return self._made >= self._most or bool(jnp.all(self._progress.done))

    def results(self) -> list[Generation]:
        """What has come out for each row so far."""
        assert self._progress is not None
        done, counts, tokens, log_probabilities = jax.device_get(
            (
                self._progress.done,
                self._progress.counts,
                self._progress.tokens,
                self._progress.log_probabilities,
            )
        )
        return [
            Generation(
                tokens=tuple(tokens[row, :count].tolist()),
                log_probabilities=tuple(log_probabilities[row, :count].tolist()),
                stopped=bool(done[row]),
            )
            for row, count in enumerate(counts)
        ]


def _power_of_two(size: int, smallest: int) -> int:
    return max(smallest, 1 << (size - 1).bit_length())


def _cut(result: Generation, tokenizer: Tokenizer | None, stops: Sequence[str]) -> Generation:
    """Adds the text, and ends it before the first stop string."""
    if tokenizer is None:
        return result
    text = tokenizer.decode(result.tokens)
    if not any(stop in text for stop in stops):
        return dataclasses.replace(result, text=text)
    count = 1
    while not any(stop in tokenizer.decode(result.tokens[:count]) for stop in stops):
        count += 1
    text = tokenizer.decode(result.tokens[:count])
    first = min(text.index(stop) for stop in stops if stop in text)
    return Generation(result.tokens[:count], result.log_probabilities[:count], True, text[:first])


class _Stream:
    """Hands on what is new: text only in whole characters, and never a part of a stop string."""

    def __init__(self, receive: Callable[[Any], object], as_text: bool, stops: Sequence[str]):
        self._receive, self._as_text, self._stops = receive, as_text, stops
        self._sent = 0

    def __call__(self, result: Generation, is_last: bool) -> None:
        whole: Any = result.text if self._as_text else list(result.tokens)
        if self._as_text and not is_last:
            whole = whole.rstrip("\ufffd")  # bytes of a character that is still to come
            whole = whole[: len(whole) - _begun(whole, self._stops)]
        if len(whole) > self._sent:
            self._receive(whole[self._sent :])
            self._sent = len(whole)


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )
