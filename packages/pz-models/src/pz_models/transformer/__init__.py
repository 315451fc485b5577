"""Decoder-only transformers: parts, families, cached sampling."""

from pz_models.transformer import model_parts as model_parts
from pz_models.transformer import sampling_mode as sampling_mode
from pz_models.transformer import simple_decoding_loop as simple_decoding_loop
from pz_models.transformer import variants as variants

__all__ = ["model_parts", "sampling_mode", "simple_decoding_loop", "variants"]
