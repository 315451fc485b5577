"""Gemma's Flax checkpoints: what lies where, and the configuration that their shapes imply.

The arrays say nearly everything: the number of blocks, all sizes, the generation (2 has norms after
attention and feed-forward, 3 also norms of queries and keys), in which order a gate is stored. What
they do not say (windows, scalings, how queries are scaled) comes from the published models.

Source: https://github.com/google-deepmind/gemma and the Gemma 2 and 3 reports.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pz_core.variables import Parameter
from pz_models._placement import with_automatic_axes
from pz_models._suggestions import near_misses
from pz_models.errors import CheckpointError, MissingTensorError
from pz_named import named_axes as nx

__all__ = ["PRESETS", "GemmaArrays", "Preset", "restore_with_orbax"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """What a published model has beside its arrays.

    Attributes:
      generation: 1, 2 or 3.
      blocks: Number of blocks, by which the model is recognised.
      width: Size of the residual stream, where the number of blocks does not tell.
      window: Window of local blocks.
      rope_factor: What positions of global blocks are divided by; None for 1.
      scaled_by_width: Whether queries are scaled by (width / heads)^-0.5, not by (head size)^-0.5.
      gate_is_transposed: Whether gates are stored as {neurons, embedding}; asked for only where
        both sizes are equal.
    """

    generation: int
    blocks: int
    width: int
    window: int | None = None
    rope_factor: float | None = None
    scaled_by_width: bool = False
    gate_is_transposed: bool = True


PRESETS: dict[str, Preset] = {
    "gemma_2b": Preset(1, 18, 2048, gate_is_transposed=False),
    "gemma_7b": Preset(1, 28, 3072, gate_is_transposed=False),
    "gemma2_2b": Preset(2, 26, 2304, 4096, gate_is_transposed=False),
    "gemma2_9b": Preset(2, 42, 3584, 4096),
    "gemma2_27b": Preset(2, 46, 4608, 4096, scaled_by_width=True),
    "gemma3_270m": Preset(3, 18, 640, 512),
    "gemma3_1b": Preset(3, 26, 1152, 512),
    "gemma3_4b": Preset(3, 34, 2560, 1024, 8.0),
    "gemma3_12b": Preset(3, 48, 3840, 1024, 8.0),
    "gemma3_27b": Preset(3, 62, 5376, 1024, 8.0, scaled_by_width=True),
}
_MODEL_TYPES = {1: "gemma", 2: "gemma2", 3: "gemma3_text"}
_LOCAL_PERIOD = 6  # Gemma 3: five local blocks, then a global one
_TEXT = ("embedder", "final_norm", "layer_")  # other parts of a checkpoint see images


class GemmaArrays:
    """The arrays of a checkpoint by their path, without what is no part of the language model.

    Args:
      tree: Nested dictionaries, or one with paths joined by "/" as keys.

    Raises:
      MissingTensorError: An array that every Gemma has is missing.
    """

    def __init__(self, tree: Mapping[str, Any]):
        found = dict(_flattened(tree))
        self._arrays = {
            path: array
            for path, array in ((_normalised(path), array) for path, array in found.items())
            if path.startswith(_TEXT) and not path.startswith("embedder/mm_")
        }
        self._taken: set[str] = set()
        self.blocks = 0
        parts = {path.split("/")[0] for path in self._arrays}
        while f"layer_{self.blocks}" in parts:
            self.blocks += 1
        if not self.blocks:
            raise MissingTensorError(
                "gemma_from_pretrained_checkpoint: there is no 'transformer/layer_0/…' in"
                f" the checkpoint; it has {', '.join(sorted(found)[:5]) or 'nothing'}."
                " Pass what orbax's PyTreeCheckpointer().restore(path) returns."
            )
        has_query_norm = "layer_0/attn/_query_norm/scale" in self._arrays
        has_post_norm = "layer_0/post_attention_norm/scale" in self._arrays
        self.generation = 3 if has_query_norm else 2 if has_post_norm else 1
        self.heads, self.head_size, self.width = self._shape("layer_0/attn/attn_vec_einsum", 3)
        self.neurons = self._shape("layer_0/mlp/linear", 2)[0]
        self.vocabulary = self._shape("embedder/input_embedding", 2)[0]
        fused = "layer_0/attn/qkv_einsum" in self._arrays
        self.kv_heads = self.heads if fused else self._shape("layer_0/attn/kv_einsum", 4)[1]
        self.dtype = self._array("layer_0/attn/attn_vec_einsum").dtype

    def preset(self, name: str) -> Preset:
        """The preset of a name, or for "auto" the one that the arrays fit best.

        Raises:
          KeyError: There is no preset of this name.
          ValueError: No preset has this many blocks.
        """
        if name != "auto":
            if name not in PRESETS:
                raise KeyError(
                    f"gemma_from_pretrained_checkpoint: preset_name must be 'auto' or one of"
                    f" {', '.join(PRESETS)}; received {name!r}.{near_misses(name, PRESETS)}"
                )
            return PRESETS[name]
        fitting = [
            preset
            for preset in PRESETS.values()
            if (preset.generation, preset.blocks) == (self.generation, self.blocks)
        ]
        if not fitting:
            raise ValueError(
                f"gemma_from_pretrained_checkpoint: no published model of Gemma {self.generation}"
                f" has {self.blocks} blocks (norms of queries and keys: {self.generation == 3})."
                f" Pass preset_name=… ({', '.join(PRESETS)}) to say whose windows and scalings it"
                " has; all sizes are taken from the arrays."
            )
        return min(fitting, key=lambda preset: preset.width != self.width)

    def huggingface_config(self, preset: Preset) -> dict[str, Any]:
        """The configuration, as HuggingFace's `config.json` would state it.

        Raises:
          CheckpointError: The preset is of another generation than the arrays.
        """
        if preset.generation != self.generation:
            raise CheckpointError(
                f"gemma_from_pretrained_checkpoint: the preset is a Gemma {preset.generation}, the"
                f" arrays are those of a Gemma {self.generation}. Leave preset_name='auto'."
            )
        config: dict[str, Any] = {
            "model_type": _MODEL_TYPES[self.generation],
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.neurons,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": True,
        }
        if self.generation == 1:
            return config | {"hidden_act": "gelu_pytorch_tanh"}
        scale = self.width // self.heads if preset.scaled_by_width else self.head_size
        config |= {"query_pre_attn_scalar": scale, "sliding_window": preset.window}
        if self.generation == 2:
            return config | {
                "final_logit_softcapping": 30.0,
                "attn_logit_softcapping": 50.0,
                "layer_types": self._layer_types(2),
            }
        factor = preset.rope_factor
        return config | {
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "rope_scaling": factor and {"rope_type": "linear", "factor": factor},
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "layer_types": self._layer_types(_LOCAL_PERIOD),
        }

    def _layer_types(self, period: int) -> list[str]:
        return [
            "full_attention" if (index + 1) % period == 0 else "sliding_attention"
            for index in range(self.blocks)
        ]

    def parameters(self, *, stacked: bool, preset: Preset) -> list[Parameter[nx.NamedArrayBase]]:
        """All parameters, each on the devices that its array is on.

        Raises:
          MissingTensorError: An array is missing.
          CheckpointError: An array is of an unexpected shape, or no part of the model.
        """
        outer: dict[str, nx.NamedArrayBase] = {
            "embedder.embeddings": self._named("embedder/input_embedding", "vocabulary embedding"),
            "final_norm/scale.weights": self._named("final_norm/scale", "embedding"),
        }
        blocks = [self._block(f"layer_{index}", preset) for index in range(self.blocks)]
        if surplus := sorted(self._arrays.keys() - self._taken):
            raise CheckpointError(
                f"gemma_from_pretrained_checkpoint: {len(surplus)} arrays are no part of a Gemma"
                f" {self.generation} with {self.blocks} blocks: {', '.join(surplus[:5])}."
            )
        if stacked:
            outer |= {
                f"blocks/{label}": nx.stack([block[label] for block in blocks], "blocks")
                for label in blocks[0]
            }
        else:
            for index, block in enumerate(blocks):
                outer |= {f"block_{index}/{label}": value for label, value in block.items()}
        return [Parameter(label=f"transformer/{name}", value=v) for name, v in outer.items()]

    def _block(self, layer: str, preset: Preset) -> dict[str, nx.NamedArray]:
        values = {
            f"{ours}/scale.weights": self._named(f"{layer}/{theirs}/scale", axis)
            for ours, theirs, axis in self._norms()
        }
        values |= {f"attention/{k}.weights": v for k, v in self._attention(layer).items()}
        values["mlp/out_linear.weights"] = self._named(f"{layer}/mlp/linear", "neurons embedding")
        gate = self._array(f"{layer}/mlp/gating_einsum")
        if self.neurons == self.width:  # the shape does not tell
            is_transposed = preset.gate_is_transposed
        else:
            is_transposed = tuple(gate.shape[1:]) == (self.neurons, self.width)
        axes = "neurons embedding" if is_transposed else "embedding neurons"
        for index, part in enumerate(("gating_linear", "value_linear")):
            values[f"mlp/{part}.weights"] = self._named(f"{layer}/mlp/gating_einsum", axes, index)
        return values

    def _norms(self) -> list[tuple[str, str, str]]:
        """Our name, theirs, and the axis of each norm of a block."""
        found = [(name, name, "embedding") for name in ("pre_attention_norm", "pre_ffw_norm")]
        if self.generation > 1:
            found += [
                (name, name, "embedding") for name in ("post_attention_norm", "post_ffw_norm")
            ]
        if self.generation > 2:
            found += [
                (f"attention/{part}_norm", f"attn/_{part}_norm", "projection")
                for part in ("query", "key")
            ]
        return found

    def _attention(self, layer: str) -> dict[str, nx.NamedArray]:
        many = self.heads // self.kv_heads
        if many == 1:
            query, shared = "heads", "heads"
        elif self.kv_heads == 1:
            query, shared = "query_heads", ""
        else:
            query, shared = "head_groups query_heads", "head_groups"
        output = self._named(f"{layer}/attn/attn_vec_einsum", f"{query} projection embedding")
        if f"{layer}/attn/qkv_einsum" in self._arrays:
            path = f"{layer}/attn/qkv_einsum"
            parts = [self._named(path, "heads embedding projection", i) for i in range(3)]
        else:
            path, axes = f"{layer}/attn/kv_einsum", f"{shared} embedding projection"
            parts = [
                self._named(f"{layer}/attn/q_einsum", f"{query} embedding projection"),
                *(self._named(path, axes, index) for index in range(2)),
            ]
        return dict(zip(("query", "key", "value"), parts, strict=True)) | {"output": output}

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "vocabulary": self.vocabulary,
            "embedding": self.width,
            "neurons": self.neurons,
            "projection": self.head_size,
            "heads": self.heads,
            "head_groups": self.kv_heads,
            "query_heads": self.heads // self.kv_heads,
        }

    def _named(self, path: str, axes: str, index: int | None = None) -> nx.NamedArray:
        """An array, or one of those that it holds, with its axes named."""
        array = self._array(path)
        shape = tuple(array.shape if index is None else array.shape[1:])
        names = axes.split()
        sizes = tuple(self._sizes[name] for name in names)
        # Grouped query heads are stored as one axis, and a single key/value head as one of size 1.
        if shape not in (sizes, (1, *sizes), (math.prod(sizes[:2]), *sizes[2:])):
            raise CheckpointError(
                f"gemma_from_pretrained_checkpoint: {path!r} has the shape {tuple(array.shape)};"
                f" the other arrays ask for {dict(zip(names, sizes, strict=True))}"
                f"{'' if index is None else ' in each of its parts'}."
            )
        # JAX arrays stay on their devices; what is not one is copied, since its owner may change it.
        is_placed = isinstance(array, jax.Array)
        value = with_automatic_axes(array) if is_placed else jnp.array(array)
        value = value if index is None else value[index]
        return nx.wrap(value if shape == sizes else value.reshape(sizes), *names)

    def _array(self, path: str) -> Any:
        if path not in self._arrays:
            raise MissingTensorError(
                f"gemma_from_pretrained_checkpoint: the checkpoint has no 'transformer/{path}',"
                f" which a Gemma needs.{near_misses(path, self._arrays)}"
            )
        self._taken.add(path)
        return self._arrays[path]

    def _shape(self, path: str, ndim: int) -> tuple[int, ...]:
        shape = tuple(self._array(path).shape)
        if len(shape) != ndim or 0 in shape:
            raise CheckpointError(
                f"gemma_from_pretrained_checkpoint: {path!r} should have {ndim} axes, none of them"
                f" empty; its shape is {shape}."
            )
        return shape


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Paths joined by "/", and what is there, however much of the joining was done before."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{path}/")
        else:
            yield path, value


def _normalised(path: str) -> str:
    """A path without the scopes around the model and without the "w" of an einsum."""
    for scope in ("params/", "transformer/"):
        path = path.removeprefix(scope)
    return path.removesuffix("/w")


def restore_with_orbax(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Restores a folder that orbax has written.

    Raises:
      ImportError: Orbax is not installed.
      CheckpointError: There is no such folder, or orbax cannot read it.
    """
    folder = pathlib.Path(path).absolute()
    if not folder.is_dir():
        raise CheckpointError(f"gemma_from_pretrained_checkpoint: there is no folder {folder}.")
    try:
        import orbax.checkpoint
    except ImportError as exc:
        raise ImportError(
            "gemma_from_pretrained_checkpoint: reading a folder needs orbax: pip install"
            " 'pz-models[gemma]'"
        ) from exc
    try:
        tree: Mapping[str, Any] = orbax.checkpoint.PyTreeCheckpointer().restore(folder)
    except Exception as exc:  # orbax and tensorstore raise many kinds, for folders of other kinds
        first_line = str(exc).strip().splitlines()[:1] or [type(exc).__name__]
        raise CheckpointError(
            f"gemma_from_pretrained_checkpoint: orbax cannot read {folder}: {first_line[0]}"
        ) from exc
    return tree
