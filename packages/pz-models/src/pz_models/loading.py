"""Checkpoint in, model out.

    model = load("SmolLM2-135M-Instruct.Q4_1.gguf")
    model = load("Llama-3.2-1B/", dtype=jnp.bfloat16, use_layer_stack=True)

Every source takes the same way: read the header, check that configuration and tensors fit the
family, build the tree with empty slots, then stream the tensors into their places.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from pz_core.variables import bind_variables
from pz_models import _streaming
from pz_models.checkpoints import Checkpoint
from pz_models.config_reader import ConfigReader
from pz_models.errors import CheckpointError
from pz_models.families import Family, family_of
from pz_models.gguf import GGUFCheckpoint
from pz_models.huggingface_folder import HuggingFaceFolder
from pz_models.parameter_plan import PlannedRead, plan_reads
from pz_nn.parameters import assert_no_parameter_slots

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["load", "model_from_checkpoint"]


def load(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    upcast_activations_to_float32: bool = False,
    use_layer_stack: bool = False,
    progress: bool | None = None,
) -> TransformerLM:
    """Loads a model from a file or folder.

    Args:
      path: A HuggingFace folder (`config.json`, `model.safetensors` or shards with their index),
        or a `.gguf` file.
      dtype: Dtype of parameters and activations; by default that of most weights (float32 for
        GGUF, whose quantised weights are dequantised).
      upcast_activations_to_float32: Whether activations are float32 whatever the parameters are.
      use_layer_stack: Whether the blocks become one `LayerStack`: compiles many times faster, and
        edits of one block need a mask over the axis "blocks".
      progress: Whether to show a progress bar; None shows one when loading takes over a second.

    Returns:
      The model, its parameters labelled "transformer/…".

    Raises:
      FileNotFoundError: There is nothing at `path`.
      CheckpointError: What is there cannot be read as the model it claims to be.
      UnsupportedConfigError: The model is of a kind that is not known.
    """
    return model_from_checkpoint(
        _open(pathlib.Path(path)),
        dtype=dtype,
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
        progress=progress,
    )


def _open(path: pathlib.Path) -> Checkpoint:
    if not path.exists():
        raise FileNotFoundError(
            f"load: there is no file or folder {str(path)!r}"
            f" (looked in {pathlib.Path.cwd()!s} if it is relative)."
        )
    if path.is_dir():
        return HuggingFaceFolder(path)
    if path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    raise CheckpointError(
        f"load: {path}: expected a folder with config.json and safetensors, or a .gguf file."
    )


def model_from_checkpoint(
    checkpoint: Checkpoint,
    *,
    dtype: Any = None,
    upcast_activations_to_float32: bool = False,
    use_layer_stack: bool = False,
    progress: bool | None = None,
) -> TransformerLM:
    """Builds the model that an opened checkpoint holds; arguments as in `load`.

    Raises:
      CheckpointError: Tensors are missing, surplus or of the wrong shape.
      UnsupportedConfigError: The configuration is of a kind that is not known.
    """
    family = family_of(checkpoint.config, checkpoint.name)
    reader = ConfigReader(checkpoint.config, checkpoint.name)
    config = family.read_config(reader)
    reader.finish()
    parameter_dtype = jnp.dtype(checkpoint.dtype if dtype is None else dtype)
    config = dataclasses.replace(
        config,
        parameter_dtype=parameter_dtype,
        activation_dtype=jnp.dtype(
            jnp.float32 if upcast_activations_to_float32 else parameter_dtype
        ),
        use_layer_stack=use_layer_stack,
    )
    reads, n_blocks = _fitting_reads(family, config, checkpoint)
    tied = not any(read.key == "lm_head.weight" for read in reads)

    def is_ignored(key: str) -> bool:
        # A tied head is stored beside the embedding by some files and in memory.
        return family.is_ignored(key) or (tied and key == "lm_head.weight")

    _streaming.check_plan(checkpoint, reads, is_ignored)
    slots = family.build(config)
    parameters = _streaming.read_parameters(
        checkpoint,
        reads,
        name="transformer",
        n_blocks=n_blocks,
        stacked=use_layer_stack,
        dtype=parameter_dtype,
        progress=progress,
    )
    model: TransformerLM = bind_variables(slots, parameters)
    assert_no_parameter_slots(model)
    return model


def _fitting_reads(
    family: Family, config: Any, checkpoint: Checkpoint
) -> tuple[list[PlannedRead], int]:
    """Reads for the layout that most of the checkpoint's names belong to, and how many blocks."""
    plans = []
    for layout in (family.parameters, *family.other_layouts):
        outer, blocks = layout(config)
        reads = plan_reads(outer, blocks)
        plans.append((reads, len(blocks)))
        if all(read.key in checkpoint.tensors for read in reads):
            break
    return max(plans, key=lambda plan: sum(read.key in checkpoint.tensors for read in plan[0]))
