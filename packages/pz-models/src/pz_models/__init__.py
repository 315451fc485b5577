"""Transformer models from real checkpoints, as editable Penzai layers."""

from pz_models.comparison import compare_to_reference as compare_to_reference
from pz_models.errors import CheckpointError as CheckpointError
from pz_models.errors import ExportError as ExportError
from pz_models.errors import MissingTensorError as MissingTensorError
from pz_models.errors import PromptError as PromptError
from pz_models.errors import UnsupportedConfigError as UnsupportedConfigError
from pz_models.generation import Generation as Generation
from pz_models.generation import generate as generate
from pz_models.huggingface import from_huggingface as from_huggingface
from pz_models.loading import load as load
from pz_models.saving import save_huggingface as save_huggingface
from pz_models.tokenizer import Tokenizer as Tokenizer

__all__ = [
    "CheckpointError",
    "ExportError",
    "Generation",
    "MissingTensorError",
    "PromptError",
    "Tokenizer",
    "UnsupportedConfigError",
    "compare_to_reference",
    "from_huggingface",
    "generate",
    "load",
    "save_huggingface",
]
