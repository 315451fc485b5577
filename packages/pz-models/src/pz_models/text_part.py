"""The language model inside a checkpoint that also reads images.

Gemma 3 (4B and larger) and Ministral 3 are published together with a vision tower. What stands
here shows the text part of such a checkpoint as a checkpoint of its own: the nested configuration,
and the tensors under the names that they have in a text-only file. Tensors of the vision tower and
its projector are left out on purpose; any other is passed on, and refused by the family.

    text_part(HuggingFaceFolder("gemma-3-4b-it/")).config["model_type"]      # 'gemma3_text'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pz_models.checkpoints import Checkpoint
from pz_models.config_reader import ConfigReader

__all__ = ["text_part"]


@dataclasses.dataclass(frozen=True)
class _Composite:
    """A family of models that read images and text.

    Attributes:
      text: What the nested configuration means where it says nothing.
      understood: Fields of the outer configuration, which shape the vision tower only.
    """

    text: Mapping[str, Any]
    understood: tuple[str, ...]


_IMAGES = ("vision_config", "image_token_index", "image_token_id")
_COMPOSITES = {
    "gemma3": _Composite(
        text={
            "model_type": "gemma3_text",
            "vocab_size": 262_208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
        understood=(
            *_IMAGES,
            "mm_tokens_per_image",
            *(f"{end}_token_{kind}" for end in ("boi", "eoi") for kind in ("index", "id")),
        ),
    ),
    "mistral3": _Composite(
        text={"model_type": "mistral"},
        understood=(
            *_IMAGES,
            "projector_hidden_act",
            "vision_feature_layer",
            "multimodal_projector_bias",
            "spatial_merge_size",
        ),
    ),
}
# Beginnings of names in memory and in files; None leaves a tensor out.
_RENAMED = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.vision_tower.": None,
    "model.multi_modal_projector.": None,
    "vision_tower.": None,
    "multi_modal_projector.": None,
}


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """The text part of a checkpoint; the checkpoint itself where it is nothing but text.

    Raises:
      UnsupportedConfigError: The outer configuration has a field that is not understood.
    """
    name = checkpoint.config.get("model_type")
    kind = _COMPOSITES.get(name) if isinstance(name, str) else None
    return checkpoint if kind is None else _TextPart(checkpoint, kind)


class _TextPart(Checkpoint):
    """A view of another checkpoint."""

    def __init__(self, whole: Checkpoint, kind: _Composite):
        reader = ConfigReader(whole.config, whole.name)
        stated = reader.require("text_config", dict)
        for field in kind.understood:
            reader.get(field, object)
        tied = reader.get("tie_word_embeddings", bool, True)
        reader.finish()
        self._whole = whole
        self._names = {name: key for key in whole.tensors if (name := _text_name(key)) is not None}
        self.name, self.dtype = whole.name, whole.dtype
        self.tensors = {name: whole.tensors[key] for name, key in self._names.items()}
        self.config = {**kind.text, **stated}
        # Versions of transformers look at the outer field or the inner one, and leave either out.
        own_head = "lm_head.weight" in self.tensors
        tied = tied and stated.get("tie_word_embeddings", tied)
        self.config["tie_word_embeddings"] = bool(tied or not own_head)

    def read_into(self, key: str, out: np.ndarray) -> None:
        """Reads tensor `key`, by its name in a text-only file."""
        self._whole.read_into(self._names[key], out)

    def describe(self, key: str) -> str:
        """As the whole checkpoint calls it."""
        return self._whole.describe(self._names.get(key, key))


def _text_name(key: str) -> str | None:
    """The name in a text-only file; None for a tensor of the vision part."""
    for beginning, ours in _RENAMED.items():
        if key.startswith(beginning):
            return None if ours is None else ours + key.removeprefix(beginning)
    return key
