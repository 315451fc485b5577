"""The families of transformers, one module each."""

from pz_models.transformer.variants import gemma as gemma
from pz_models.transformer.variants import gpt_neox as gpt_neox
from pz_models.transformer.variants import llama as llama
from pz_models.transformer.variants import llamalike_common as llamalike_common
from pz_models.transformer.variants import mistral as mistral
from pz_models.transformer.variants import olmo2 as olmo2
from pz_models.transformer.variants import phi3 as phi3
from pz_models.transformer.variants import qwen2 as qwen2
from pz_models.transformer.variants import qwen3 as qwen3
from pz_models.transformer.variants import smollm3 as smollm3

__all__ = [
    "gemma",
    "gpt_neox",
    "llama",
    "llamalike_common",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
]
