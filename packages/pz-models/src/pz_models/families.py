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
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pz_models._suggestions import near_misses
from pz_models.config_reader import ConfigReader
from pz_models.errors import UnsupportedConfigError
from pz_models.parameter_plan import StoredParameter

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["ENTRY_POINT_GROUP", "Family", "family_of", "known_families"]

ENTRY_POINT_GROUP = "pz_models.families"

_VARIANTS = "pz_models.transformer.variants"
_ONE_A_MODULE = ("gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
_BUILT_IN = {name: f"{_VARIANTS}.{name}:FAMILY" for name in _ONE_A_MODULE} | {
    "gemma": f"{_VARIANTS}.gemma:GEMMA",
    "gemma2": f"{_VARIANTS}.gemma:GEMMA_2",
    "gemma3_text": f"{_VARIANTS}.gemma:GEMMA_3",
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
      parameters: That dataclass -> parameters outside of blocks, and a list of them per block.
      is_ignored: Tells stored tensors that are no parameter (buffers that old files hold).
      aliases: Name of a stored tensor -> another name that some versions of transformers use.
    """

    model_type: str
    architecture: str
    read_config: Callable[[ConfigReader], Any]
    build: Callable[[Any], TransformerLM]
    parameters: Callable[
        [Any], tuple[Sequence[StoredParameter], Sequence[Sequence[StoredParameter]]]
    ]
    is_ignored: Callable[[str], bool] = lambda key: False
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)


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
