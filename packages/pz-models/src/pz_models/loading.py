"""Checkpoint in, model out.

    model = load("SmolLM2-135M-Instruct.Q4_1.gguf")
    model = load("Llama-3.2-1B/", dtype=jnp.bfloat16, use_layer_stack=True)
    model = load("HuggingFaceTB/SmolLM2-135M", revision="main")     # from the hub

Every source takes the same way: read the header, check that configuration and tensors fit the
family, build the tree with empty slots, then stream the tensors into their places.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from pz_core.variables import Parameter, bind_variables
from pz_models import _streaming, hub
from pz_models._placement import placement_on
from pz_models.checkpoints import Checkpoint
from pz_models.config_reader import ConfigReader
from pz_models.errors import CheckpointError
from pz_models.families import Family, family_of
from pz_models.gguf import GGUFCheckpoint
from pz_models.huggingface_folder import HuggingFaceFolder, pickle_refusal
from pz_models.parameter_plan import PlannedRead, Stacking, plan_reads
from pz_models.text_part import text_part
from pz_named.mesh_axes import AxisRules
from pz_nn.parameters import assert_no_parameter_slots

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["load", "model_from_checkpoint", "read_config", "with_parameters"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COUNTS = ("num_hidden_layers", "n_layer", "num_experts", "num_local_experts")


def load(
    path: str | os.PathLike[str],
    *,
    dtype: Any = None,
    upcast_activations_to_float32: bool = False,
    use_layer_stack: bool = False,
    mesh: Any = None,
    axis_name_to_mesh_name: AxisRules | None = None,
    revision: str | None = None,
    progress: bool | None = None,
) -> TransformerLM:
    """Loads a model from a file or folder, or by its name on the HuggingFace hub.

    Args:
      path: A HuggingFace folder (`config.json`, `model.safetensors` or shards with their index),
        a `.gguf` file, or a name such as "HuggingFaceTB/SmolLM2-135M", which is fetched from the
        hub where nothing of that name lies here (extra `hub`).
      dtype: Dtype of parameters and activations; by default that of most weights (float32 for
        GGUF, whose quantised weights are dequantised). A model has one dtype, as in transformers:
        tensors of a mixed file that have another are cast. `dtype=jnp.float32` keeps every digit of
        bfloat16, float16 and float32 alike.
      upcast_activations_to_float32: Whether activations are float32 whatever the parameters are.
      use_layer_stack: Whether the blocks become one `LayerStack`: compiles many times faster, and
        edits of one block need a mask over the axis "blocks".
      mesh: Mesh of devices that parameters are put on, each straight onto its shards; by default
        everything goes to JAX's default device.
      axis_name_to_mesh_name: For each axis name the mesh axis (or tuple of them) that it is spread
        over; axes without a rule are whole on every device. By default axis names are the names of
        mesh axes. `pz_toolshed.sharding_util.transformer_rules` makes useful ones.
      revision: Branch, tag or commit, for a name on the hub.
      progress: Whether to show a progress bar; None shows one when loading takes over a second.

    Returns:
      The model, its parameters labelled "transformer/…".

    Raises:
      FileNotFoundError: There is nothing at `path`.
      CheckpointError: What is there cannot be read as the model it claims to be.
      UnsupportedConfigError: The model is of a kind that is not known.
      ValueError: The sharding rules do not fit the mesh or a parameter.
    """
    return model_from_checkpoint(
        _open(os.fspath(path), revision),
        dtype=dtype,
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
        mesh=mesh,
        axis_name_to_mesh_name=axis_name_to_mesh_name,
        progress=progress,
    )


def _open(name: str, revision: str | None) -> Checkpoint:
    path = pathlib.Path(name)
    if not path.exists() and hub.is_hub_name(name):
        path = hub.download(name, revision=revision)
    elif not path.exists():
        raise FileNotFoundError(
            f"load: there is no file or folder {name!r}"
            f" (looked in {pathlib.Path.cwd()!s} if it is relative)."
        )
    elif revision is not None:
        raise ValueError(
            f"load: revision={revision!r} is for a name on the HuggingFace hub; {name!r} is a file"
            " or folder here. Leave it out."
        )
    if path.is_dir():
        return HuggingFaceFolder(path)
    if path.suffix == ".gguf":
        return GGUFCheckpoint(path)
    if path.suffix in _PICKLES:
        raise CheckpointError(f"load: {path} holds pickled weights; {pickle_refusal(path.parent)}")
    hint = " Pass the folder that it is in." if path.suffix == ".safetensors" else ""
    raise CheckpointError(
        f"load: {path}: expected a folder with config.json and safetensors, or a .gguf file.{hint}"
    )


def model_from_checkpoint(
    checkpoint: Checkpoint,
    *,
    dtype: Any = None,
    upcast_activations_to_float32: bool = False,
    use_layer_stack: bool = False,
    mesh: Any = None,
    axis_name_to_mesh_name: AxisRules | None = None,
    progress: bool | None = None,
) -> TransformerLM:
    """Builds the model that an opened checkpoint holds; arguments as in `load`.

    Raises:
      CheckpointError: Tensors are missing, surplus or of the wrong shape.
      UnsupportedConfigError: The configuration is of a kind that is not known.
      ValueError: The sharding rules do not fit the mesh or a parameter.
    """
    checkpoint = text_part(checkpoint)
    _check_counts(checkpoint)
    family, config = read_config(
        checkpoint.config,
        checkpoint.name,
        parameter_dtype=checkpoint.dtype if dtype is None else dtype,
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
    )
    reads, n_blocks = _fitting_reads(family, config, checkpoint)
    tied = not any(read.key == "lm_head.weight" for read in reads)

    def is_ignored(key: str) -> bool:
        # A tied head is stored beside the embedding by some files and in memory.
        return family.is_ignored(key) or (tied and key == "lm_head.weight")

    _streaming.check_plan(checkpoint, reads, is_ignored)
    # Configurations whose blocks can be of several kinds say how many make a super-block.
    period = getattr(config, "super_block_size", 1) if use_layer_stack else 0
    form: dict[str, Any] = {"name": "transformer", "stacking": Stacking(n_blocks, period)}
    place = None
    if mesh is not None:
        shapes = _streaming.parameter_shapes(reads, **form)
        place = placement_on(mesh, axis_name_to_mesh_name, shapes)
    slots = family.build(config)
    parameters = _streaming.read_parameters(
        checkpoint, reads, **form, dtype=config.parameter_dtype, place=place, progress=progress
    )
    return with_parameters(slots, parameters, checkpoint.config)


def _check_counts(checkpoint: Checkpoint) -> None:
    """Refuses more blocks or experts than there can be, before lists of that length are made."""
    rows = (tensor.shape[0] for tensor in checkpoint.tensors.values() if tensor.shape)
    most = max(len(checkpoint.tensors), *rows, 0)
    for field in _COUNTS:
        count = checkpoint.config.get(field)
        if isinstance(count, int) and count > most:
            raise CheckpointError(
                f"{checkpoint.name}: {field!r} is {count}, but there are only"
                f" {len(checkpoint.tensors)} tensors."
            )


def read_config(
    huggingface: Mapping[str, Any],
    source: str,
    *,
    parameter_dtype: Any,
    upcast_activations_to_float32: bool,
    use_layer_stack: bool,
) -> tuple[Family, Any]:
    """The family of a configuration and what its builder takes.

    Args:
      huggingface: The configuration, in HuggingFace's spelling.
      source: What to call it in messages.
      parameter_dtype: Dtype of parameters.
      upcast_activations_to_float32: Whether activations are float32 whatever the parameters are.
      use_layer_stack: Whether the blocks become one `LayerStack`.

    Raises:
      UnsupportedConfigError: The configuration is of a kind that is not known.
    """
    family = family_of(huggingface, source)
    reader = ConfigReader(huggingface, source)
    config = family.read_config(reader)
    reader.finish()
    parameter_dtype = jnp.dtype(parameter_dtype)
    return family, dataclasses.replace(
        config,
        parameter_dtype=parameter_dtype,
        activation_dtype=jnp.dtype(
            jnp.float32 if upcast_activations_to_float32 else parameter_dtype
        ),
        use_layer_stack=use_layer_stack,
    )


def with_parameters(
    slots: TransformerLM, parameters: Iterable[Parameter[Any]], huggingface: Mapping[str, Any]
) -> TransformerLM:
    """A built model with its parameters, which remembers the configuration it came with."""
    model: TransformerLM = bind_variables(slots, parameters)
    assert_no_parameter_slots(model)
    metadata = dataclasses.replace(model.metadata, huggingface_config=dict(huggingface))
    return dataclasses.replace(model, metadata=metadata)


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
