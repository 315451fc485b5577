"""The families of models that checkpoints can be loaded into, and where to add one.

One idea: a family is four functions. From a configuration it reads what the builder needs; it
builds the tree; it says which parameters lie where in a checkpoint; and it knows which stored
tensors are no parameters. Readers of file formats, casting, stacking and sharding know nothing
of families.

    family_of({"model_type": "llama"}, "config.json").build

Other packages add families through the entry-point group `pz_models.families`: the entry's name
is the `model_type`, its object a `Family`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pz_models._suggestions import near_misses
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.parameter_plan import Layout

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["ENTRY_POINT_GROUP", "Family", "family_of", "known_families"]

ENTRY_POINT_GROUP = "pz_models.families"

_VARIANTS = "pz_models.transformer.variants"
_ONE_A_MODULE = (
    "gpt2 gpt_neox llama mistral mixtral olmo2 phi3 qwen2 qwen3 qwen3_moe smollm3".split()
)
_BUILT_IN = {name: f"{_VARIANTS}.{name}:FAMILY" for name in _ONE_A_MODULE} | {
    "gemma": f"{_VARIANTS}.gemma:GEMMA",
    "gemma2": f"{_VARIANTS}.gemma:GEMMA_2",
    "gemma3_text": f"{_VARIANTS}.gemma:GEMMA_3",
    "ministral": f"{_VARIANTS}.ministral:MINISTRAL",
    "ministral3": f"{_VARIANTS}.ministral:MINISTRAL_3",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How to read one `model_type`.

    Attributes:
      model_type: HuggingFace's name of the family.
      architecture: HuggingFace's class of the language model, such as "LlamaForCausalLM".
      read_config: Configuration -> a dataclass for `build` and `parameters`, with the fields
        `parameter_dtype`, `activation_dtype` and `use_layer_stack`.
      build: That dataclass -> the model with parameter slots.
      parameters: That dataclass -> where files keep each parameter.
      is_ignored: Tells stored tensors that are no parameter (buffers that old files hold).
      other_layouts: As `parameters`, for checkpoints that keep them elsewhere: models in memory,
        other versions of transformers. Files are written as `parameters` says.
      write_config: The way back from `read_config`, for models that were not loaded: that dataclass
        -> configuration fields (more than the family reads do no harm), or None for a dataclass of
        another kind. Without it only loaded models are saved.
    """

    model_type: str
    architecture: str
    read_config: Callable[[ConfigReader], Any]
    build: Callable[[Any], TransformerLM]
    parameters: Callable[[Any], Layout]
    is_ignored: Callable[[str], bool] = lambda key: False
    other_layouts: tuple[Callable[[Any], Layout], ...] = ()
    write_config: Callable[[Any], dict[str, Any] | None] | None = None


def known_families() -> dict[str, str]:
    """`model_type` -> "module:attribute" of every family, those of other packages included."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return {entry.name: entry.value for entry in entries} | _BUILT_IN


def family_of(config: Mapping[str, Any], source: str) -> Family:
    """The family that a configuration names.

    Args:
      config: The configuration, in HuggingFace's spelling.
      source: What to call it in messages.

    Raises:
      UnsupportedConfigError: It names none, or an unknown one.
    """
    name, families = config.get("model_type"), known_families()
    if not isinstance(name, str) or name not in families:
        raise UnsupportedConfigError(
            f"{source}: model_type is {name!r}; the supported families are"
            f" {', '.join(sorted(families))}.{near_misses(name, families)}"
        )
    module, _, attribute = families[name].partition(":")
    family: Family = getattr(importlib.import_module(module), attribute)
    return family
