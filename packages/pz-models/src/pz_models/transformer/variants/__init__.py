"""The families of transformers, one module each."""

from pz_models.transformer.variants import llama as llama
from pz_models.transformer.variants import llamalike_common as llamalike_common

__all__ = ["llama", "llamalike_common"]
