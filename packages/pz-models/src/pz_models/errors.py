"""What goes wrong with checkpoints, prompts and configurations, as exceptions one can catch.

All are `ValueError`s, so code that catches those keeps working.

    try:
        model = pz_models.load("model.gguf")
    except pz_models.CheckpointError as problem:
        print(problem)          # names the file, the tensor or field, and what was expected
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ExportError",
    "MissingTensorError",
    "PromptError",
    "UnsupportedConfigError",
]


class CheckpointError(ValueError):
    """A checkpoint file cannot be read as the model it claims to be.

    Raised for a truncated or corrupt file, a missing, surplus or mis-shaped tensor, a storage
    type nobody taught the reader about. For example `load("half_downloaded.gguf")`; the repair is
    to fetch the file again.
    """


class MissingTensorError(CheckpointError, KeyError):
    """A checkpoint lacks tensors of the model that it claims to be.

    Also a `KeyError`, which Penzai raised here. For example a folder with one of two shards and an
    index of that one; the repair is to fetch the other.
    """

    def __str__(self) -> str:
        return ValueError.__str__(self)  # KeyError's would show the text in quotation marks


class UnsupportedConfigError(ValueError):
    """A configuration asks for a computation that the model builders do not know.

    Raised for an unknown model family, and for a field that shapes the computation and is not
    understood. For example `"hidden_act": "xielu"` in a Llama's `config.json`; the repair is a
    family module that handles the field (CONTRIBUTING.md, "Adding a family").
    """


class ExportError(ValueError):
    """A model has a part that a checkpoint of its family cannot express.

    Raised by `save_huggingface`, for example for a model with a layer put in between two blocks; the
    repair is to fold the edit into the parameters, or to save the model with pz-toolshed.
    """


class PromptError(ValueError):
    """A prompt that cannot be continued: empty, not made of integers, or too long for the cache.

    For example `generate(model, [], max_new_tokens=8)`; the repair is to give one token at least.
    """
