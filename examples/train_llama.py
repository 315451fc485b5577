"""Trains a small Llama from scratch until it predicts a book far better than letter counts can.

    ./hatchw run train              # about two minutes on two cores
    ./hatchw run train --short      # a smaller model and fewer steps: some fifteen seconds

The book is "Alice's Adventures in Wonderland" by Lewis Carroll (1865, in the public domain; see
`examples/alice.md`), the tokens are its characters. Whoever knows only how often each character
occurs needs the unigram entropy per character, about 3 nats; the model has to get 1 nat below that on
the last tenth of the book, which it is not trained on, or the program fails (the smaller model: 0.3).
Read `main` first.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pz_models
from penzai import pz
from penzai.models.transformer.model_parts import TransformerLM
from penzai.models.transformer.variants import llamalike_common
from pz_toolshed import saving
from pz_toolshed.basic_training import StatefulTrainer
from pz_toolshed.losses import next_token_loss
from pz_toolshed.metric_writers import JsonLinesWriter
from pz_toolshed.optimizers import adamw_with_warmup
from pz_toolshed.parameter_averaging import ExponentialMovingAverage
from pz_toolshed.training_loop import EarlyStopping, evaluate, evaluating, fit

TEXT = pathlib.Path(__file__).parent / "alice.txt"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How large the model is and how long it is trained."""

    blocks: int = 4
    width: int = 128
    length: int = 128  # characters that the model sees at once
    batch: int = 16
    steps: int = 300
    learning_rate: float = 3e-3
    validate_every: int = 50
    wanted_gain: float = 1.0  # nats per character below the unigram entropy


SHORT = Settings(blocks=2, width=64, length=64, steps=150, wanted_gain=0.3)


@dataclasses.dataclass(frozen=True)
class Characters:
    """A vocabulary: the characters of a text, in alphabetical order."""

    symbols: str

    @classmethod
    def of(cls, text: str) -> Characters:
        """The vocabulary of a text."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> np.ndarray:
        """The number of each character."""
        numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        return np.array([numbers[character] for character in text], np.int32)

    def decode(self, numbers: Any) -> str:
        """The text again."""
        return "".join(self.symbols[number] for number in numbers)


def unigram_entropy(tokens: np.ndarray) -> float:
    """What a token costs, in nats, for one who knows the frequencies alone."""
    counts = np.bincount(tokens)
    frequencies = counts[counts > 0] / len(tokens)
    return float(-(frequencies * np.log(frequencies)).sum())


def build_model(settings: Settings, vocabulary: Characters) -> TransformerLM:
    """A Llama with random parameters."""
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=settings.width,
        projection_dim=settings.width // 4,
        mlp_hidden_dim=3 * settings.width,
        num_decoder_blocks=settings.blocks,
        vocab_size=len(vocabulary.symbols),
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
        use_layer_stack=True,
    )
    return llamalike_common.build_llamalike_transformer(config, init_base_rng=jax.random.key(0))


def batch_of(rows: np.ndarray) -> dict[str, Any]:
    """Rows of tokens as the keyword arguments of the loss and of the metrics."""
    return {"tokens": pz.nx.wrap(jnp.asarray(rows), "batch", "seq")}


def random_windows(tokens: np.ndarray, settings: Settings) -> Iterator[dict[str, Any]]:
    """Training batches without end: pieces from anywhere in the text."""
    random = np.random.default_rng(0)
    while True:
        starts = random.integers(0, len(tokens) - settings.length, settings.batch)
        yield batch_of(tokens[starts[:, None] + np.arange(settings.length)])


def all_windows(tokens: np.ndarray, settings: Settings) -> list[dict[str, Any]]:
    """The whole text once, piece after piece; the rest that fills no batch is left out."""
    size = settings.batch * settings.length
    whole = tokens[: len(tokens) // size * size]
    return [batch_of(rows) for rows in whole.reshape(-1, settings.batch, settings.length)]


def loss_fn(*, model: TransformerLM, state: None, rng: jax.Array, tokens: Any) -> Any:
    """What the trainer minimises: the mean loss of the next token."""
    del rng  # nothing is random here
    return next_token_loss(model(tokens), tokens).mean, state, {}


def token_metrics(model: TransformerLM, tokens: Any) -> dict[str, Any]:
    """What is evaluated: the same loss as a sum and a count."""
    loss = next_token_loss(model(tokens), tokens)
    return {"loss": (loss.total, loss.count)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a training run; losses and entropy in nats per character."""

    entropy: float
    first_loss: float
    last_loss: float
    steps: int

    @property
    def gain(self) -> float:
        """How far the validation loss is below the unigram entropy."""
        return self.entropy - self.last_loss


def main(argv: list[str] | None = None) -> Outcome:
    """The story.

    Raises:
      SystemExit: With a message, so that the program fails, if the model learned less than is wanted.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a smaller model, fewer steps")
    parser.add_argument("--folder", type=pathlib.Path, help="where to save (default: nowhere)")
    arguments = parser.parse_args(argv)
    settings = SHORT if arguments.short else Settings()

    print("\n1. The text: what the frequencies of characters are worth")
    text = TEXT.read_text("utf-8")
    vocabulary = Characters.of(text)
    tokens = vocabulary.encode(text)
    entropy = unigram_entropy(tokens)
    print(f"  {len(tokens):,} characters, {len(vocabulary.symbols)} different ones")
    print(f"  unigram entropy {entropy:.3f} nats per character")
    training, validation = np.split(tokens, [len(tokens) * 9 // 10])
    validation_batches = all_windows(validation, settings)

    print("\n2. The model: a Llama with random parameters")
    model = build_model(settings, vocabulary)
    average = ExponentialMovingAverage.of(model, decay=0.95)

    def validate() -> dict[str, float]:
        return evaluate(average.averaged(model), token_metrics, validation_batches)

    first_loss = validate()["loss"]
    print(f"  {settings.blocks} blocks of width {settings.width}, loss {first_loss:.3f}")

    print(
        "\n3. Training: AdamW with warmup and cosine decay; what is validated is a moving average"
    )
    trainer = StatefulTrainer.build(
        root_rng=jax.random.key(1),
        model=model,
        optimizer_def=adamw_with_warmup(
            peak_learning_rate=settings.learning_rate,
            total_steps=settings.steps,
            warmup_steps=settings.steps // 20,
        ),
        loss_fn=loss_fn,
        donate_states=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or pathlib.Path(temporary)
        steps = fit(
            trainer,
            random_windows(training, settings),
            steps=settings.steps,
            callbacks=[
                lambda event: average.update(model),
                evaluating(validate, every=settings.validate_every),
                JsonLinesWriter(folder / "log.jsonl"),
                EarlyStopping("validation/loss", patience=2),
            ],
        )
        smooth = average.averaged(model)
        saving.save(folder, smooth, step=steps)
        smooth = saving.load(folder, like=build_model(settings, vocabulary))
    outcome = Outcome(entropy, first_loss, validate()["loss"], steps)
    print(f"  validation loss {outcome.last_loss:.3f} nats per character after {steps} steps:")
    print(f"  {outcome.gain:.3f} below the unigram entropy of {entropy:.3f}")

    print("\n4. What it writes")
    answer = pz_models.generate(
        smooth,
        vocabulary.encode("Alice was").tolist(),
        max_new_tokens=200,
        temperature=0.7,
        key=jax.random.key(2),
    )
    print(f"Alice was{vocabulary.decode(answer.tokens)}")
    if not outcome.gain >= settings.wanted_gain:  # NaN is no gain either
        raise SystemExit(
            f"The gain of {outcome.gain:.3f} nats is short of the {settings.wanted_gain} wanted."
        )
    return outcome


if __name__ == "__main__":
    main()
