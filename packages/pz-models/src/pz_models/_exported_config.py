"""The configuration that a model is saved with: the one it was loaded with, or one made for it.

A loaded model keeps its configuration as it was read, cosmetic fields included. Edits that a
configuration can express (blocks taken out or repeated, another vocabulary, a head of its own) are
entered; then the family reads the result, which must describe the model that is saved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from pz_core.selectors import select
from pz_models.config_reader import ConfigReader
from pz_models.errors import ExportError, UnsupportedConfigError
from pz_models.families import Family, family_of, known_families
from pz_nn.embeddings import EmbeddingDecode, EmbeddingTable
from pz_nn.layer_stack import LayerStack

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["ExportedConfig", "exported_config"]

# Builder's field -> what HuggingFace's families call it.
_EDITABLE = {
    "num_decoder_blocks": ("num_hidden_layers", "n_layer"),
    "vocab_size": ("vocab_size",),
    "tie_embedder_and_logits": ("tie_word_embeddings",),
}
# Left out, they would be those of the published models, which may lie outside of the vocabulary.
_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
_CHOSEN_WHEN_LOADING = ("parameter_dtype", "activation_dtype", "use_layer_stack")


@dataclasses.dataclass(frozen=True)
class ExportedConfig:
    """What is written, and what it stands for.

    Attributes:
      family: The family.
      huggingface: The contents of `config.json`, but for dtype and architecture.
      builder: The builder's configuration, as the family reads it from `huggingface`.
    """

    family: Family
    huggingface: dict[str, Any]
    builder: Any


def exported_config(model: TransformerLM, model_type: str | None) -> ExportedConfig:
    """The configuration of a model.

    Args:
      model: The model.
      model_type: The family to write it as; None for the one it was loaded as.

    Raises:
      ExportError: No configuration of the family describes the model, or the family is not known.
    """
    metadata = model.metadata
    if metadata.config is None:
        raise ExportError(
            "save_huggingface: model.metadata.config is None, so what the model was built from is"
            " not known. Build it with a family's builder, or put the configuration there."
        )
    builder = _as_it_is_now(model)
    source = metadata.huggingface_config
    if source is None or model_type not in (None, source["model_type"]):
        return _made_for(builder, model_type)
    huggingface = _with_edits(source, metadata.config, builder)
    family = family_of(huggingface, "save_huggingface")
    if differences := _misread(family, huggingface, builder):
        raise ExportError(
            f"save_huggingface: the configuration that the model was loaded with does not describe"
            f" it any more: {differences}. A {family.model_type} file cannot express that, or"
            " model.metadata.config was changed by hand."
        )
    return ExportedConfig(family, huggingface, builder)


def _as_it_is_now(model: TransformerLM) -> Any:
    """The builder's configuration, with edits that show in the tree entered."""
    from pz_models.transformer.model_parts import TransformerBlock

    config = model.metadata.config
    stacks = select(model.body).at_instances_of(LayerStack).get_sequence()
    stacked = sum(select(stack).at_instances_of(TransformerBlock).count() for stack in stacks)
    single = select(model.body).at_instances_of(TransformerBlock).count() - stacked
    tables = select(model.body).at_instances_of(EmbeddingTable).get_sequence()
    changes: dict[str, Any] = {
        "use_layer_stack": bool(stacks),
        "num_decoder_blocks": single + sum(stack.stack_axis_size for stack in stacks),
    }
    if tables:
        shape = tables[0].embeddings.value.named_shape
        changes["vocab_size"] = shape.get("vocabulary", config.vocab_size)
    if getattr(config, "tie_embedder_and_logits", False):
        heads = select(model.body).at_instances_of(EmbeddingDecode)
        changes["tie_embedder_and_logits"] = not heads.is_empty()
        # Scaling must not change along with it.
        changes["scale_embeddings"] = getattr(config, "embeddings_are_scaled", None)
    known = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in changes.items() if k in known})


def _with_edits(source: Mapping[str, Any], before: Any, now: Any) -> dict[str, Any]:
    """The configuration as loaded, with the fields that an edit of the model changes."""
    found = dict(source)
    for field, names in _EDITABLE.items():
        value = getattr(now, field, None)
        if value == getattr(before, field, None):
            continue
        name = next((name for name in names if name in found), names[0])
        found[name] = value
        if field == "num_decoder_blocks" and len(set(found.get("layer_types") or ())) == 1:
            found["layer_types"] = found["layer_types"][:1] * value
    return found


def _made_for(builder: Any, model_type: str | None) -> ExportedConfig:
    """A configuration for a model that was built here."""
    if model_type is None:
        fitting = [name for name, *_ in _writers_of(builder)]
        raise ExportError(
            "save_huggingface: the model was not loaded from a file, so its family has to be said:"
            f" pass model_type=… ({', '.join(fitting) or 'no family can express it'})."
        )
    if model_type not in known_families():
        family_of({"model_type": model_type}, "save_huggingface")  # says which there are
    for name, family, huggingface, differences in _writers_of(builder, only=model_type):
        if not differences:
            return ExportedConfig(family, huggingface | _NO_TOKENS, builder)
        raise ExportError(
            f"save_huggingface: a {name} configuration cannot express the model: {differences}."
            f" Families that can: {', '.join(n for n, *_ in _writers_of(builder)) or 'none'}."
        )
    raise ExportError(
        f"save_huggingface: the family {model_type!r} cannot write a {type(builder).__name__}; it is"
        " built from another kind of configuration, or only saves what was loaded."
    )


def _writers_of(
    builder: Any, only: str | None = None
) -> Iterable[tuple[str, Family, dict[str, Any], str]]:
    """Families with what they would write; all that fit, or `only` that one with its differences."""
    for name in sorted(known_families()) if only is None else [only]:
        family = family_of({"model_type": name}, "save_huggingface")
        written = None if family.write_config is None else family.write_config(builder)
        if written is None:
            continue
        huggingface = _understood(family, {"model_type": name, **written})
        differences = _misread(family, huggingface, builder)
        if only is not None or not differences:
            yield name, family, huggingface, differences


def _understood(family: Family, written: dict[str, Any]) -> dict[str, Any]:
    """Those of the fields that the family reads."""
    reader = ConfigReader(written, "save_huggingface")
    try:
        family.read_config(reader)
    except UnsupportedConfigError:
        return written  # `_misread` tells why
    return {key: value for key, value in written.items() if key in {"model_type", *reader.read}}


def _misread(family: Family, huggingface: Mapping[str, Any], builder: Any) -> str:
    """In what the family reads the configuration otherwise than intended; empty if in nothing."""
    reader = ConfigReader(huggingface, "save_huggingface")
    try:
        read = family.read_config(reader)
        reader.finish()
    except UnsupportedConfigError as exc:
        return str(exc)
    if type(read) is not type(builder):
        return f"it is read as a {type(read).__name__}, the model has a {type(builder).__name__}"
    chosen = {name: getattr(builder, name) for name in _CHOSEN_WHEN_LOADING}
    read = dataclasses.replace(read, **chosen)
    differences = []
    for field in dataclasses.fields(builder):
        mine, theirs = getattr(builder, field.name), getattr(read, field.name)
        if not _means_the_same(field.name, mine, theirs, builder, read):
            differences.append(f"{field.name} is {mine!r}, a file would say {theirs!r}")
    return "; ".join(differences)


def _means_the_same(name: str, mine: Any, theirs: Any, builder: Any, read: Any) -> bool:
    if name == "scale_embeddings":  # None means "when tied"
        return bool(builder.embeddings_are_scaled == read.embeddings_are_scaled)
    if name == "query_scaling_factor":
        default = builder.projection_dim**-0.5
        mine, theirs = (default if x == "default" else x for x in (mine, theirs))
        return bool(jnp.float32(mine) == jnp.float32(theirs))
    if name == "attention_type":
        mine, theirs = (
            _for_each_block(types, builder.num_decoder_blocks) for types in (mine, theirs)
        )
    return bool(mine == theirs)


def _for_each_block(types: Any, count: int) -> list[Any]:
    types = list(types) if isinstance(types, tuple | list) else [types]
    return [types[index % len(types)] for index in range(count)]
