"""Reads HuggingFace configurations and refuses what it does not understand.

One idea: a reader remembers which fields were asked for. When a family has read all it knows,
`finish` looks at what is left: a field that cannot change the computation passes, any other is an
error that names it, so that no model is computed wrongly in silence.

    reader = ConfigReader({"model_type": "llama", "hidden_size": 64, "use_cache": True}, "config.json")
    reader.require("hidden_size", int)      # 64
    reader.finish()                         # fine: use_cache is cosmetic

Fields are read in the spelling of transformers 4 and 5 alike (`rope_theta`/`rope_parameters`, …).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, overload

from pz_models.errors import UnsupportedConfigError

__all__ = ["ConfigReader", "is_float32"]

T = TypeVar("T")
_LARGEST_FLOAT32, _SMALLEST_FLOAT32 = (2 - 2**-23) * 2.0**127, 2.0**-126

# What no forward pass of these models reads: bookkeeping, generation defaults, training-only rates.
_COSMETIC = frozenset(
    """
    model_type architectures auto_map _name_or_path name_or_path transformers_version
    torch_dtype dtype _attn_implementation _attn_implementation_autoset attn_implementation
    _experts_implementation _commit_hash id2label label2id problem_type task_specific_params
    use_cache return_dict output_hidden_states output_attentions torchscript initializer_range
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id unk_token_id
    max_position_embeddings attention_dropout attention_probs_dropout_prob hidden_dropout
    hidden_dropout_prob classifier_dropout classifier_dropout_prob embd_pdrop resid_pdrop
    attn_pdrop embd_dropout embedding_dropout resid_dropout
    is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size
    tie_encoder_decoder tf_legacy_loss use_bfloat16 finetuning_task tokenizer_class prefix
    chunk_size_feed_forward pruned_heads max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens cache_implementation is_llama_config rope_interleaved
    quantization_config_none type_vocab_size transformers.js_config
    """.split()
)


def is_float32(value: float) -> bool:
    """Whether a number is finite, also as a float32; JSON files may hold others."""
    return abs(value) <= _LARGEST_FLOAT32


class ConfigReader:
    """A configuration that knows which of its fields have been understood.

    Attributes:
      source: What to call it in messages.
    """

    def __init__(self, config: Mapping[str, Any], source: str):
        self._config = config
        self._understood: set[str] = set()
        self.source = source

    @property
    def read(self) -> frozenset[str]:
        """The fields that have been asked for so far."""
        return frozenset(self._understood)

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self._config.get(field) is not None

    def require(self, field: str, kind: type[T]) -> T:
        """The value of a field that must be there.

        Raises:
          UnsupportedConfigError: It is missing, null, or of another type.
        """
        if not self.has(field):
            raise UnsupportedConfigError(
                f"{self.source}: the configuration has no {field!r}, which a"
                f" {self._config.get('model_type')!r} model needs."
            )
        return self.get(field, kind)

    @overload
    def get(self, field: str, kind: type[T], default: T) -> T: ...
    @overload
    def get(self, field: str, kind: type[T]) -> T: ...
    def get(self, field: str, kind: type[T], default: Any = None) -> Any:
        """The value of a field, or `default` where it is absent or null.

        Raises:
          UnsupportedConfigError: It is of another type.
        """
        self._understood.add(field)
        value = self._config.get(field)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and abs(value) < 1 << 1000:
            value = value if isinstance(value, bool) else float(value)
        is_usable = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
        if not is_usable or (isinstance(value, float) and not is_float32(value)):
            raise UnsupportedConfigError(
                f"{self.source}: {field!r} should be of type {kind.__name__}, it is {value!r}."
            )
        return value

    def nullable(self, field: str, kind: type[T], default: T | None) -> T | None:
        """The value of a field whose null means "off": `default` only where it is absent.

        Raises:
          UnsupportedConfigError: It is of another type.
        """
        if field in self._config and self._config[field] is None:
            self._understood.add(field)
            return None
        return self.get(field, kind, default) if default is not None else self.get(field, kind)

    def positive(self, field: str, default: int | None = None) -> int:
        """An integer of at least 1.

        Raises:
          UnsupportedConfigError: It is something else, or missing without a default.
        """
        value = self.require(field, int) if default is None else self.get(field, int, default)
        if value < 1:
            raise UnsupportedConfigError(
                f"{self.source}: {field!r} should be 1 or more, it is {value}."
            )
        return value

    def positive_float(self, field: str, default: float) -> float:
        """A number above 0.

        Raises:
          UnsupportedConfigError: It is something else.
        """
        value = self.get(field, float, default)
        if value < _SMALLEST_FLOAT32:
            raise UnsupportedConfigError(
                f"{self.source}: {field!r} should be a positive number, it is {value}."
            )
        return value

    def expect(self, field: str, *allowed: Any) -> None:
        """Declares that a field is understood only with one of these values, or absent.

        Raises:
          UnsupportedConfigError: It has another value.
        """
        self._understood.add(field)
        value = self._config.get(field)
        if value is not None and value not in allowed:
            raise UnsupportedConfigError(
                f"{self.source}: {field!r} is {value!r}, which is not supported here; supported:"
                f" {', '.join(map(repr, allowed))}."
            )

    def finish(self) -> None:
        """Checks that nothing that shapes the computation was left unread.

        Raises:
          UnsupportedConfigError: Fields are left that may shape the computation.
        """
        left = {
            field: value
            for field, value in self._config.items()
            if field not in self._understood
            and field not in _COSMETIC
            and value is not None
            and value is not False
        }
        if left:
            raise UnsupportedConfigError(
                f"{self.source}: the configuration has fields that the family"
                f" {self._config.get('model_type')!r} does not understand and that may change what"
                f" the model computes: {left}. If they cannot, remove them; else the family needs"
                ' to be taught (CONTRIBUTING.md, "Adding a family").'
            )
