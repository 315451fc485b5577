"""Where a model starts to differ from its HuggingFace reference, block by block.

    theirs = transformers.AutoModelForCausalLM.from_pretrained("my-llama/")
    print(compare_to_reference(ours, theirs, [1, 5, 2, 7]))

    stage       on its own   so far
    embeddings     0.0e+00  0.0e+00
    block 0        1.2e-07  1.2e-07
    block 1        3.1e-02  3.1e-02  <- differs at position 2
    block 2        2.1e-07  2.8e-02
    logits         1.5e-07  4.0e-02

The one idea: besides running both models, each block is also given what its counterpart received. An
error then shows in the block that makes it, and not in those that only pass it on.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from pz_core.selectors import select
from pz_models.transformer.model_parts import TransformerBlock
from pz_named import named_axes as nx
from pz_nn.layer_stack import LayerStack
from pz_nn.stack_surgery import unstack

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["Comparison", "StageDifference", "compare_to_reference"]

_TOLERANCE = 1e-4  # of float32
_TOLERANCE_OF_HALF = 5e-2  # of 16-bit floats, which round every sum of a block


@dataclasses.dataclass(frozen=True)
class StageDifference:
    """How far one stage of two models is apart.

    Both figures are the largest absolute difference over all positions and features, relative to
    the largest absolute value of the reference there.

    Attributes:
      name: "embeddings", "block 0", "block 1", …, "logits".
      own: When the stage is given the reference's input: what this stage adds.
      accumulated: When each model runs alone: what has come together so far.
      position: Position in the sequence at which `own` is found.
    """

    name: str
    own: float
    accumulated: float
    position: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The stages of two models, in order.

    Attributes:
      stages: One entry for embeddings, each block and the logits.
      tolerance: What counts as a difference.
    """

    stages: tuple[StageDifference, ...]
    tolerance: float

    @property
    def different(self) -> tuple[str, ...]:
        """Names of the stages that compute something else than their counterparts."""
        # Not "own > tolerance": a comparison with nan must not pass.
        return tuple(stage.name for stage in self.stages if not stage.own <= self.tolerance)

    @property
    def first_difference(self) -> str | None:
        """Name of the first stage that computes something else; None if all agree."""
        return next(iter(self.different), None)

    def __str__(self) -> str:
        width = max(len(stage.name) for stage in self.stages)
        lines = [f"{'stage':{width}}  on its own   so far"]
        for stage in self.stages:
            mark = f"  <- differs at position {stage.position}" * (stage.name in self.different)
            lines.append(f"{stage.name:{width}}  {stage.own:>10.1e}  {stage.accumulated:.1e}{mark}")
        return "\n".join(lines)


def compare_to_reference(
    model: TransformerLM,
    hf_model: Any,
    tokens: Sequence[int] | np.ndarray | nx.NamedArrayBase,
    *,
    tolerance: float | None = None,
) -> Comparison:
    """Runs a model and its HuggingFace reference and compares them block by block.

    Args:
      model: Our model; its blocks separate or in layer stacks.
      hf_model: A live transformers model. It is run without gradients and dropout, and left as it
        was.
      tokens: One sequence of token ids, {seq}.
      tolerance: Relative difference from which on a stage counts as different; by default 1e-4,
        or 5e-2 where one of the models computes in 16 bits.

    Returns:
      For each stage how far the models are apart there; prints as a table.

    Raises:
      ValueError: `tokens` is no single sequence, or the models differ in the number of blocks.
    """
    ids = _single_sequence(tokens)
    stages = _stages(model)
    reference = _run_reference(hf_model, ids, n_blocks=len(stages) - 2)
    positions = nx.arange("seq", len(ids))
    side_inputs = {"token_positions": positions, "rope_length": len(ids)}
    dtype = model.metadata.activation_dtype
    value: Any = nx.wrap(jnp.asarray(ids), "seq")
    found = []
    for index, (name, run) in enumerate(stages):
        given, wanted = reference.stages[index]
        alone = value if index == 0 else nx.wrap(jnp.asarray(given, dtype), "seq", "embedding")
        own, position = _difference(run(alone, side_inputs), wanted)
        value = run(value, side_inputs)
        found.append(StageDifference(name, own, _difference(value, wanted)[0], position))
    if tolerance is None:
        is_half = jnp.dtype(dtype).itemsize < 4 or reference.is_half
        tolerance = _TOLERANCE_OF_HALF if is_half else _TOLERANCE
    return Comparison(tuple(found), tolerance)


def _single_sequence(tokens: Any) -> np.ndarray:
    ids = tokens.unwrap("seq") if nx.is_namedarray(tokens) else tokens
    array = np.asarray(ids)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "compare_to_reference: tokens should be one sequence of token ids, such as [1, 5, 2];"
            f" received {array.dtype} of shape {array.shape}."
        )
    return array


def _difference(mine: Any, theirs: np.ndarray) -> tuple[float, int]:
    """The largest difference relative to the largest value, and its position."""
    last = "vocabulary" if "vocabulary" in mine.named_shape else "embedding"
    ours = np.asarray(mine.unwrap("seq", last), np.float32)
    apart = np.abs(ours - theirs).max(axis=1)
    position = int(apart.argmax())
    return float(apart[position] / max(np.abs(theirs).max(), 1e-30)), position


# ------------------------------------------------------------------------------------- Our side

Stage = tuple[str, Callable[[Any, dict[str, Any]], Any]]


def _stages(model: TransformerLM) -> list[Stage]:
    """Embeddings, each block with what follows it, and the head."""
    layers = getattr(model.body, "sublayers", None)
    if not isinstance(layers, list):
        raise ValueError(
            "compare_to_reference: model.body should be a Sequential of layers, it is a"
            f" {type(model.body).__name__}. Compare the model as it was before it was wrapped."
        )
    flat = [part for layer in layers for part in _blocks_of(layer)]
    starts = [i for i, layer in enumerate(flat) if _has_block(layer)]
    if not starts:
        raise ValueError("compare_to_reference: there is no TransformerBlock in model.body.")
    last = starts[-1] + 1
    groups = [flat[a:b] for a, b in zip(starts, [*starts[1:], last], strict=True)]
    named = [("embeddings", flat[: starts[0]])]
    named += [(f"block {index}", group) for index, group in enumerate(groups)]
    named += [("logits", flat[last:])]
    return [(name, _runner(group)) for name, group in named]


def _blocks_of(layer: Any) -> list[Any]:
    """A layer, or the blocks of a layer stack, one by one."""
    if not isinstance(layer, LayerStack):
        return [layer]
    blocks = unstack(layer)
    return list(blocks.sublayers)


def _has_block(layer: Any) -> bool:
    return not select(layer).at_instances_of(TransformerBlock).is_empty()


def _runner(layers: list[Any]) -> Callable[[Any, dict[str, Any]], Any]:
    def run(value: Any, side_inputs: dict[str, Any]) -> Any:
        for layer in layers:
            value = layer(value, **side_inputs)
        return value

    return run


# ----------------------------------------------------------------------------------- Their side


@dataclasses.dataclass(frozen=True)
class _Reference:
    """For each stage its input and output; the embeddings' input is not kept."""

    stages: list[tuple[np.ndarray | None, np.ndarray]]
    is_half: bool


def _run_reference(hf_model: Any, ids: np.ndarray, n_blocks: int) -> _Reference:
    import torch

    # The outermost list of modules with one entry per block, whatever a family calls it.
    lists = [m for m in hf_model.modules() if isinstance(m, torch.nn.ModuleList)]
    blocks = next((m for m in lists if len(m) == n_blocks), None)
    if blocks is None:
        raise ValueError(
            f"compare_to_reference: the model has {n_blocks} blocks; {type(hf_model).__name__} has"
            f" lists of {sorted({len(m) for m in lists})} modules, none of them that long."
        )
    inputs: list[np.ndarray] = []
    outputs: list[np.ndarray] = []

    def keep_input(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(_row(args[0] if args else kwargs["hidden_states"]))

    def keep_output(_block: Any, _args: Any, output: Any) -> None:
        outputs.append(_row(output[0] if isinstance(output, tuple) else output))

    with contextlib.ExitStack() as stack:
        stack.enter_context(_evaluating(hf_model))
        stack.enter_context(torch.no_grad())
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(keep_output).remove)
        first = next(hf_model.parameters())
        batch = torch.tensor([ids.tolist()], device=first.device)
        logits = _row(hf_model(input_ids=batch, use_cache=False).logits)
    stages: list[tuple[np.ndarray | None, np.ndarray]] = [(None, inputs[0])]
    stages += list(zip(inputs, outputs, strict=True))
    stages.append((outputs[-1], logits))
    return _Reference(stages, first.element_size() < 4)


@contextlib.contextmanager
def _evaluating(hf_model: Any) -> Iterator[None]:
    was_training = hf_model.training
    hf_model.eval()
    try:
        yield
    finally:
        hf_model.train(was_training)


def _row(tensor: Any) -> np.ndarray:
    """The only sequence of a batch, as float32."""
    # A head or block may hand out (seq, features) without the batch axis of size 1.
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array.reshape(array.shape[-2:])
