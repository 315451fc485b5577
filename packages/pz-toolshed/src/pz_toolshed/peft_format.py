"""Saves and loads low-rank adapters in the format of HuggingFace's `peft` library.

    peft_format.save_adapters("adapters", adapted_model)        # also for peft.PeftModel
    adapted = peft_format.load_adapters("adapters", freeze_params(model))

The format is a folder with `adapter_config.json` and `adapter_model.safetensors`, in which the
adapter of the module `m` has the matrices `base_model.model.<m>.lora_A.weight` (rank x in) and
`...lora_B.weight` (out x rank), and with DoRA the vector `...lora_magnitude_vector` (out). Which
module a linear layer is goes by the label of its weight; `llama_module_name` knows the labels of
Llama-like transformers. Neither torch nor peft is needed.

Reference: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from pz_core.selectors import select
from pz_core.variables import Parameter, bind_variables
from pz_named.named_axes import NamedArray
from pz_nn.dropout import StochasticDropout
from pz_nn.layer_stack import layerstack_axes_from_keypath
from pz_nn.linear_and_affine import ConstantRescale, Linear
from pz_toolshed._low_rank_update import low_rank_matrices
from pz_toolshed._peft_config import (
    CONFIG_FILE,
    TENSORS_FILE,
    alpha_of,
    config_of,
    read_config,
    require_files,
)
from pz_toolshed._safetensors_file import TensorsFile, read_header, write_atomically
from pz_toolshed.checkpoint_errors import AdapterFormatError as AdapterFormatError
from pz_toolshed.lora import LowRankAdapter

__all__ = [
    "AdapterFormatError",
    "ModuleName",
    "llama_module_name",
    "load_adapters",
    "save_adapters",
]

_Array: TypeAlias = np.ndarray[Any, Any]

ModuleName: TypeAlias = Callable[[str, int | None], str | None]
"""From the label of a weight, and the block's number where blocks are stacked, to the module's name
in the other library; None where it has none."""

_LLAMA_MODULES = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "mlp/gating_linear": "mlp.gate_proj",
    "mlp/value_linear": "mlp.up_proj",
    "mlp/out_linear": "mlp.down_proj",
}
_BLOCK_LABEL = re.compile(r"(?:.*/)?(?:blocks|block_(\d+))/([^/]+/[^/]+)\.weights")
# What an adapter's tensors are called; the last one is DoRA's.
_KINDS = ("lora_A", "lora_B", "lora_magnitude_vector")
_TENSOR = re.compile(rf"base_model\.model\.(.+)\.({'|'.join(_KINDS)})(?:\.default)?(?:\.weight)?")
# Several axes become one in this order, first varying slowest.
_FLATTENED_FIRST = ("head_groups", "heads", "query_heads", "projection")


def llama_module_name(label: str, block: int | None) -> str | None:
    """The module of a weight in HuggingFace's Llama and its relatives (Mistral, Qwen 2, SmolLM).

    Args:
      label: Label of the weight, e.g. `transformer/block_3/attention/query.weights`.
      block: The block's number, where blocks are stacked.

    Returns:
      E.g. `model.layers.3.self_attn.q_proj`; None for a weight outside of blocks.
    """
    match = _BLOCK_LABEL.fullmatch(label)
    if match is None or match[2] not in _LLAMA_MODULES:
        return "lm_head" if label.endswith("/lm_head.weights") else None
    number = match[1] if block is None else block
    return None if number is None else f"model.layers.{number}.{_LLAMA_MODULES[match[2]]}"


@dataclasses.dataclass(frozen=True)
class _Module:
    """One adapter of the other library, which may be a slice of a stacked one of ours.

    Attributes:
      name: The module.
      indices: Which slice, by stack axis.
    """

    name: str
    indices: dict[str, int]


def _modules(path: Any, linear: Linear, module_name: ModuleName) -> list[_Module]:
    """The modules that a linear layer stands for, one per layer of the stacks around it."""
    label = getattr(linear.weights, "label", None)
    if not isinstance(label, str):
        return []
    axes = layerstack_axes_from_keypath(path)
    modules = []
    for numbers in itertools.product(*map(range, axes.values())):
        block = int(np.ravel_multi_index(numbers, tuple(axes.values()))) if axes else None
        name = module_name(label, block)
        if name is not None:
            modules.append(_Module(name, dict(zip(axes, numbers, strict=True))))
    return modules


def _in_flattening_order(names: Sequence[Any]) -> list[Any]:
    first = [name for name in _FLATTENED_FIRST if name in names]
    return first + [name for name in names if name not in first]


# --- saving ----------------------------------------------------------------------------------------


def save_adapters(
    directory: str | os.PathLike[str],
    model: Any,
    *,
    module_name: ModuleName = llama_module_name,
    base_model: str | None = None,
) -> None:
    """Saves a model's adapters, and nothing else of it.

    Args:
      directory: Folder for the two files.
      model: A model with adapters.
      module_name: Which module of the other library a weight is.
      base_model: Name or path of the base model, noted in the config.

    Raises:
      ValueError: If there are no adapters, one has no module, or some are DoRA adapters and some not.
      CheckpointWriteError: If the system refuses to write.
    """
    adapters = select(model).at_instances_of(LowRankAdapter)
    if adapters.is_empty():
        raise ValueError(
            "save_adapters: the model has no LowRankAdapter, so there is nothing to save. Adapt it "
            "with loraify_linears_in_selection first."
        )
    tensors: dict[str, _Array] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    dropouts: dict[str, float] = {}
    use_dora = _use_dora(adapters.get_sequence())
    for path, adapter in adapters.get_by_path().items():
        modules = _modules(path, adapter.pretrained, module_name)
        if not modules:
            raise ValueError(
                "save_adapters: the other library has no module for the weight "
                f"{getattr(adapter.pretrained.weights, 'label', None)!r}. Give a `module_name` "
                "function that names it."
            )
        parts = _parts(adapter)
        rank = _rank(parts[1])
        for module in modules:
            for kind, part in zip(_KINDS, parts, strict=False):
                matrix = _as_matrix(part, module.indices).T
                name = f"base_model.model.{module.name}.{kind}"
                if part.in_axis_names:
                    tensors[f"{name}.weight"] = matrix
                else:
                    tensors[name] = matrix[:, 0]
            ranks[module.name] = rank
            alphas[module.name] = _alpha(adapter, rank)
            dropouts[module.name] = _dropout(adapter)
    folder = pathlib.Path(directory)
    config = config_of(ranks, alphas, dropouts, base_model, use_dora)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    write_atomically(
        folder / TENSORS_FILE,
        {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()},
        tensors.__getitem__,
        {"format": "pt"},
    )


def _use_dora(adapters: Sequence[LowRankAdapter]) -> bool:
    count = sum(adapter.magnitude is not None for adapter in adapters)
    if 0 < count < len(adapters):
        raise ValueError(
            f"save_adapters: {count} of {len(adapters)} adapters are DoRA adapters (use_dora), but a "
            "folder holds adapters of one kind only. Save the parts of the model apart."
        )
    return count > 0


def _parts(adapter: LowRankAdapter) -> list[Linear]:
    """A and B, and with DoRA the magnitudes as the weight of a layer without inputs."""
    matrices = low_rank_matrices(adapter.update)
    if adapter.magnitude is None:
        return [*matrices]
    return [*matrices, Linear(adapter.magnitude, (), adapter.pretrained.out_axis_names)]


def _rank(matrix_b: Linear) -> int:
    return math.prod(matrix_b.input_axes.values())


def _alpha(adapter: LowRankAdapter, rank: int) -> float:
    scales = [x.by for x in adapter.update.sublayers if isinstance(x, ConstantRescale)]
    return float(rank) * math.prod(float(scale) for scale in scales)


def _dropout(adapter: LowRankAdapter) -> float:
    rates = [x.drop_rate for x in adapter.update.sublayers if isinstance(x, StochasticDropout)]
    return float(rates[0]) if rates else 0.0


def _as_matrix(linear: Linear, indices: Mapping[str, int]) -> _Array:
    """The weight as (in, out), of one layer of the stacks around it."""
    weights = linear.weights.value
    weights = weights[dict(indices)] if indices else weights
    ins, outs = (
        _in_flattening_order(names) for names in (linear.in_axis_names, linear.out_axis_names)
    )
    parallel = [name for name in weights.named_shape if name not in (*ins, *outs)]
    if parallel:
        raise ValueError(
            f"save_adapters: the weight {getattr(linear.weights, 'label', None)!r} has the parallel "
            f"axes {parallel}; an adapter of the other library is one matrix. Merge this adapter "
            "instead."
        )
    rows = math.prod(weights.named_shape[name] for name in ins)
    return np.asarray(weights.unwrap(*ins, *outs)).reshape(rows, -1)


# --- loading ---------------------------------------------------------------------------------------


def load_adapters(
    directory: str | os.PathLike[str], model: Any, *, module_name: ModuleName = llama_module_name
) -> Any:
    """Puts saved adapters into a model.

    Args:
      directory: Folder with `adapter_config.json` and `adapter_model.safetensors`.
      model: The base model, without adapters. Freeze its parameters first if only the adapters are
        to be trained.
      module_name: Which module of the other library a weight is.

    Returns:
      The model with the adapters, whose labels are made of the labels of the adapted weights.

    Raises:
      FileNotFoundError: If one of the two files, or the folder, is missing.
      CheckpointFormatError: If the file of the matrices is damaged.
      AdapterFormatError: If the config is damaged or asks for what is not supported, or a matrix is
        missing.
      ValueError: If an adapter has no place in the model, does not fit there, or is lacking in some
        of several stacked blocks; or if the model has adapters already.
    """
    folder = pathlib.Path(directory)
    require_files(folder)
    config = read_config(folder / CONFIG_FILE)
    file = read_header(folder / TENSORS_FILE)
    available = _read_adapters(file, bool(config.get("use_dora")))
    if select(model).at_instances_of(LowRankAdapter).count():
        raise ValueError(
            "load_adapters: the model has adapters already. Merge them first (merge_adapters), or "
            "load into the base model."
        )
    linears = select(model).at_instances_of(Linear)
    places = {path: _modules(path, x, module_name) for path, x in linears.get_by_path().items()}
    known = {module.name for modules in places.values() for module in modules}
    unknown = [name for name in available if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise ValueError(
            f"load_adapters: {folder} has adapters for another model: nothing in this one is "
            f"{unknown[:3]}{f'; the nearest is {near[0]!r}' if near else ''}. It has {len(known)} "
            "modules. Load the adapters into the model that they were trained on, or give a "
            "`module_name` function for its labels."
        )

    def adapt(path: Any, linear: Linear) -> Any:
        names = [module.name for module in places[path]]
        present = [name in available for name in names]
        if not any(present):
            return linear
        if not all(present):
            raise ValueError(
                "load_adapters: the model's blocks are stacked, so all or none must be adapted; the "
                f"file lacks {[n for n, there in zip(names, present, strict=True) if not there]}. "
                "Load into an unstacked model."
            )
        return _adapted(linear, places[path], available, config)

    return linears.where(lambda path, _: bool(places[path]), with_keypath=True).apply(
        adapt, with_keypath=True
    )


def _read_adapters(file: TensorsFile, use_dora: bool) -> dict[str, list[_Array]]:
    """By module, the matrices (rank, in) and (out, rank), with DoRA also the magnitudes (out, 1)."""
    found: dict[str, dict[str, _Array]] = collections.defaultdict(dict)
    for name in file.tensors:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterFormatError(
                f"{file.path}: the tensor {name!r} is no part of a LoRA adapter. Only LoRA and DoRA "
                "are supported; merge others with peft and load the merged weights."
            )
        tensor = file.read(name)
        found[match[1]][match[2]] = tensor[:, None] if tensor.ndim == 1 else tensor
    wanted = _KINDS if use_dora else _KINDS[:2]
    for module, tensors in found.items():
        if missing := [kind for kind in wanted if kind not in tensors]:
            raise AdapterFormatError(
                f"{file.path}: the adapter of {module!r} lacks {missing[0]}. Copy the file again."
            )
        if len(tensors) > len(wanted):
            raise AdapterFormatError(
                f"{file.path}: the adapter of {module!r} has a {_KINDS[2]}, but adapter_config.json "
                "says use_dora=False: one of the files is of other adapters. Copy both again."
            )
    return {module: [tensors[kind] for kind in wanted] for module, tensors in found.items()}


def _adapted(
    linear: Linear,
    modules: list[_Module],
    available: Mapping[str, Sequence[_Array]],
    config: Mapping[str, Any],
) -> LowRankAdapter:
    names = [module.name for module in modules]
    first = available[names[0]]
    found = [{name: available[name][i] for name in names} for i in range(len(first))]
    label: str = getattr(linear.weights, "label", "")
    ranks = {matrix.shape[0] for matrix in found[0].values()}
    alphas = {alpha_of(config, name, a.shape[0]) for name, a in found[0].items()}
    if len(ranks) > 1 or len(alphas) > 1:
        raise ValueError(
            f"load_adapters: the stacked blocks of {label!r} have adapters of different ranks "
            f"{sorted(ranks)} or alphas {sorted(alphas)}. Load into an unstacked model."
        )
    adapter = LowRankAdapter.from_linear(
        linear,
        f"LoRA:{label.removesuffix('.weights')}",
        None,
        ranks.pop(),
        alpha=alphas.pop(),
        dropout=config.get("lora_dropout") or None,
        dtype=first[0].dtype,
        use_dora=len(first) == len(_KINDS),
    )
    sizes = {**linear.weights.value.named_shape, "lowrank": first[0].shape[0]}
    stack_axes = list(modules[0].indices)
    parameters = [
        Parameter(
            label=getattr(part.weights, "label", None),
            value=_stacked_weight(part, matrices, stack_axes, sizes),
        )
        for part, matrices in zip(_parts(adapter), found, strict=True)
    ]
    bound: LowRankAdapter = bind_variables(adapter, parameters)
    return bound


def _stacked_weight(
    layer: Linear,
    matrices: Mapping[str, _Array],
    stack_axes: Sequence[str],
    sizes: Mapping[Any, int],
) -> NamedArray:
    """A weight from the matrices (out, in) of all layers of the stacks around it."""
    ins, outs = (_in_flattening_order(n) for n in (layer.in_axis_names, layer.out_axis_names))
    rows, columns = (math.prod(sizes[name] for name in names) for names in (outs, ins))
    for module, matrix in matrices.items():
        if matrix.shape != (rows, columns):
            raise ValueError(
                f"load_adapters: a matrix of {module!r} has shape {matrix.shape}, but its place in "
                f"the model needs ({rows}, {columns}), the sizes of {outs} and {ins}. Load the "
                "adapters into the model that they were trained on."
            )
    shape = collections.OrderedDict((name, sizes[name]) for name in (*stack_axes, *ins, *outs))
    stacked = np.stack([matrix.T for matrix in matrices.values()]).reshape(tuple(shape.values()))
    return NamedArray(shape, jnp.asarray(stacked))
