"""Model in, HuggingFace folder out: the way back from `loading`.

    model = pz_models.load("Llama-3.2-1B/")
    pz_models.save_huggingface(edited(model), "my-llama/")
    transformers.AutoModelForCausalLM.from_pretrained("my-llama/")

What `parameter_plan` says about where each parameter lies in a file is read backwards, so every
family that can be loaded can be saved. Values are written as they are, bit by bit. Needs neither
torch nor transformers.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from pz_models._exported_config import ExportedConfig, exported_config
from pz_models._matching import DifferentModelError, parameters_like
from pz_models._replaced_folder import replaced_folder
from pz_models.errors import ExportError
from pz_models.parameter_plan import (
    PlannedRead,
    Stacking,
    StoredParameter,
    parameter_label,
    plan_reads,
)
from pz_nn.grouping import Sequential
from pz_nn.layer_stack import LayerStack
from pz_nn.stack_surgery import SuperBlock, unstack

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["save_huggingface"]

_MODEL_FILES = r"config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
_DTYPES = {
    np.dtype(np.float32): "float32",
    np.dtype(ml_dtypes.bfloat16): "bfloat16",
    np.dtype(np.float16): "float16",
    np.dtype(np.float64): "float64",
}


def save_huggingface(
    model: TransformerLM,
    folder: str | os.PathLike[str],
    *,
    model_type: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
) -> None:
    """Writes a model as `config.json` and safetensors, which transformers and `load` read.

    Edits are included: values of parameters, frozen or not; blocks taken out or repeated; a larger
    vocabulary; an output head of its own in place of a tied one. What a file of the family cannot
    express (a layer put in, another mask) is an error that says which part it is.

    Activations of another dtype than the parameters (`upcast_activations_to_float32`) are a way of
    running a model, which files do not hold.

    Args:
      model: The model. It does not change.
      folder: Where to write; made if need be. It appears as a whole or, if anything goes wrong,
        stays as it was. Other files in it, such as a tokenizer, are kept.
      model_type: The family to write, such as "llama", for a model that was built rather than
        loaded; by default the one it was loaded as.
      max_shard_bytes: The weights are split into files of at most this size (or one tensor).
      overwrite: Whether a model that is in the folder already may be replaced.

    Raises:
      TypeError: It is no `TransformerLM`.
      FileExistsError: There is a model in the folder, and `overwrite` is False.
      ExportError: A part of the model cannot be expressed.
    """
    from pz_models.transformer.model_parts import TransformerLM

    if not isinstance(model, TransformerLM):
        raise TypeError(
            "save_huggingface: expected a TransformerLM, as `load` returns it; received"
            f" {type(model).__name__}. Of a sampler, save the model it was made from."
        )
    folder = pathlib.Path(folder)
    if folder.exists() and not overwrite:
        present = [file.name for file in folder.iterdir() if _is_model_file(file.name)]
        if present:
            raise FileExistsError(
                f"save_huggingface: {folder} holds a model already ({', '.join(present[:3])})."
                " Pass overwrite=True to replace it."
            )
    model = _with_flat_body(model)
    config = exported_config(model, model_type)
    tensors = _Tensors(model, config)
    shards = _shards(tensors.sizes, max_shard_bytes)
    with replaced_folder(folder, _is_model_file) as fresh:
        for name, keys in shards.items():
            arrays = {key: tensors.read(key) for key in keys}
            # transformers refuses files that do not say which library's layout they have.
            safetensors.numpy.save_file(arrays, fresh / name, metadata={"format": "pt"})
        if len(shards) > 1:
            _write_json(fresh / "model.safetensors.index.json", _index(shards, tensors.sizes))
        _write_json(fresh / "config.json", _contents(config, tensors.dtype))


def _with_flat_body(model: TransformerLM) -> TransformerLM:
    """The model as families build it: blocks that were unstacked or restacked in one row."""

    def parts(layer: Any) -> list[Any]:
        if isinstance(layer, LayerStack) and isinstance(layer.stacked_sublayers, SuperBlock):
            layer = unstack(layer)
        if type(layer) is Sequential:
            return [part for sublayer in layer.sublayers for part in parts(sublayer)]
        return [layer]

    return dataclasses.replace(model, body=Sequential(parts(model.body)))


def _is_model_file(name: str) -> bool:
    """Whether a file is part of a model as it is written here; adapters and others are not."""
    return re.fullmatch(_MODEL_FILES, name) is not None


class _Tensors:
    """The tensors of a model's file, each put together when it is asked for."""

    def __init__(self, model: TransformerLM, config: ExportedConfig):
        builder, family = config.builder, config.family
        try:
            self._values = parameters_like(model.body, family.build(builder).body)
        except DifferentModelError as exc:
            raise ExportError(
                f"save_huggingface: in model.body, {exc}. A {family.model_type} file cannot express"
                " that; fold it into the parameters, or save the model with pz-toolshed."
            ) from exc
        outer, blocks = family.parameters(builder)
        self._reads = {read.key: read for read in plan_reads(outer, blocks)}
        # Super-blocks have been taken apart.
        self._stacking = Stacking(len(blocks), int(builder.use_layer_stack))
        self.sizes = {key: self._checked_size(read) for key, read in self._reads.items()}
        bytes_of: collections.Counter[Any] = collections.Counter()
        for key, size in self.sizes.items():
            bytes_of[self._dtype(key)] += size
        self.dtype = bytes_of.most_common(1)[0][0]

    def _value(self, block: int | None, entry: StoredParameter) -> Any:
        return self._values[parameter_label("transformer", block, entry, self._stacking)]

    def _dtype(self, key: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._value(*self._reads[key].parts[0]).dtype)
        return dtype

    def _checked_size(self, read: PlannedRead) -> int:
        """Bytes of one tensor, whose parameters are looked at first."""
        dtype = self._dtype(read.key)
        for block, entry in read.parts:
            value = self._value(block, entry)
            in_stack = block is not None and self._stacking.size > 0
            stack = {"blocks": self._stacking.size} if in_stack else {}
            expected = stack | entry.element_axes | dict(entry.axes)
            if value.named_shape != expected or value.positional_shape:
                raise ExportError(
                    f"save_huggingface: the parameter {entry.label!r} of {_block_name(block)} has"
                    f" the named shape {dict(value.named_shape)}; a file with this configuration"
                    f" holds {expected}."
                )
            if value.dtype != dtype or dtype not in _DTYPES:
                raise ExportError(
                    f"save_huggingface: the parameter {entry.label!r} of {_block_name(block)} has"
                    f" the dtype {value.dtype}; tensors are of one of {', '.join(_DTYPES.values())}"
                    f" ({read.key!r}: {dtype})."
                )
        return math.prod(read.shape) * dtype.itemsize

    def read(self, key: str) -> np.ndarray:
        """One tensor in the file's layout."""
        read = self._reads[key]
        tensor = np.empty(read.shape, self._dtype(key))
        for block, entry in read.parts:
            value = self._value(block, entry)
            index = dict(zip(entry.element_axes, entry.element_index, strict=True))
            if block is not None and self._stacking.size:
                index["blocks"] = block
            array = np.asarray((value[index] if index else value).unwrap(*entry.axes))
            target = tensor.reshape(entry.view_shape)[entry.region]
            target[...] = array.reshape(target.shape)
        return tensor


def _block_name(block: int | None) -> str:
    return "the model" if block is None else f"block {block}"


def _shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """The files and which tensors each holds."""
    groups = list(_grouped(sizes, limit))
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _grouped(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    group: list[str] = []
    filled = 0
    for key, size in sizes.items():
        if group and filled + size > limit:
            yield group
            group, filled = [], 0
        group.append(key)
        filled += size
    yield group


def _index(shards: Mapping[str, list[str]], sizes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {key: name for name, keys in shards.items() for key in keys},
    }


def _contents(config: ExportedConfig, dtype: np.dtype[Any]) -> dict[str, Any]:
    """`config.json`, with what depends on the saved tensors."""
    # The older of the two spellings, which all versions of transformers read.
    stated = {key: value for key, value in config.huggingface.items() if key != "dtype"}
    return stated | {
        "architectures": [config.family.architecture],
        "torch_dtype": _DTYPES[dtype],
    }


def _write_json(path: pathlib.Path, contents: dict[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")
