"""The families of transformers, one module each."""

from pz_models.transformer.variants import experts as experts
from pz_models.transformer.variants import gemma as gemma
from pz_models.transformer.variants import gpt2 as gpt2
from pz_models.transformer.variants import gpt_neox as gpt_neox
from pz_models.transformer.variants import llama as llama
from pz_models.transformer.variants import llamalike_common as llamalike_common
from pz_models.transformer.variants import ministral as ministral
from pz_models.transformer.variants import mistral as mistral
from pz_models.transformer.variants import mixtral as mixtral
from pz_models.transformer.variants import olmo2 as olmo2
from pz_models.transformer.variants import phi3 as phi3
from pz_models.transformer.variants import qwen2 as qwen2
from pz_models.transformer.variants import qwen3 as qwen3
from pz_models.transformer.variants import qwen3_moe as qwen3_moe
from pz_models.transformer.variants import smollm3 as smollm3

__all__ = [
    "experts",
    "gemma",
    "gpt2",
    "gpt_neox",
    "llama",
    "llamalike_common",
    "ministral",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
]
