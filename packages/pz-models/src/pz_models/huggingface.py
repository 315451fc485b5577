"""Live HuggingFace torch models, converted in memory.

    import transformers
    theirs = transformers.AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
    ours = from_huggingface(theirs)

Values are copied, so a later change of one model never shows in the other. Needs torch and
transformers only because the argument does; neither is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from pz_models.checkpoints import Checkpoint, StoredTensor, commonest_storage
from pz_models.errors import CheckpointError, UnsupportedConfigError
from pz_models.loading import model_from_checkpoint

if TYPE_CHECKING:
    from pz_models.transformer.model_parts import TransformerLM

__all__ = ["LiveModel", "from_huggingface"]

_DTYPES = {
    "torch.float32": np.dtype(np.float32),
    "torch.bfloat16": np.dtype(ml_dtypes.bfloat16),
    "torch.float16": np.dtype(np.float16),
    "torch.float64": np.dtype(np.float64),
}


class LiveModel(Checkpoint):
    """A torch model's configuration and state dict as a checkpoint.

    Raises:
      TypeError: The argument is no HuggingFace model, or one with adapters.
      CheckpointError: Its weights have a dtype that is not floating.
    """

    def __init__(self, model: Any):
        if not hasattr(model, "state_dict") or not hasattr(model, "config"):
            raise TypeError(
                "from_huggingface: expected a transformers model with `config` and `state_dict`;"
                f" received {type(model).__name__}. To load a folder use pz_models.load(path)."
            )
        if hasattr(model, "merge_and_unload"):
            raise TypeError(
                f"from_huggingface: {type(model).__name__} has adapters beside its weights. Merge"
                " them first: from_huggingface(model.merge_and_unload())."
            )
        self.name = type(model).__name__
        self.config = model.config.to_dict()
        self._state = model.state_dict()
        for key, tensor in self._state.items():
            if str(tensor.dtype) not in _DTYPES:
                raise CheckpointError(
                    f"{self.name}: tensor {key!r} has the dtype {tensor.dtype}; floating ones are"
                    f" converted ({', '.join(_DTYPES)})."
                )
        self.tensors = {
            key: StoredTensor(tuple(t.shape), str(t.dtype), t.numel() * t.element_size())
            for key, t in self._state.items()
        }
        # A class called on a config with dtype=bfloat16 still holds float32: ask the tensors.
        storage = commonest_storage(self.tensors.values())
        self.dtype = np.dtype(np.float32) if storage is None else _DTYPES[storage]

    def read_into(self, key: str, out: np.ndarray) -> None:
        """Copies tensor `key`."""
        tensor = self._state[key].detach().cpu()
        # NumPy has no bfloat16 of its own; float32 holds every value of it exactly.
        wide = tensor if str(tensor.dtype) in ("torch.float32", "torch.float64") else tensor.float()
        out[...] = wide.numpy()


def from_huggingface(
    model: Any,
    upcast_activations_to_float32: bool = False,
    use_layer_stack: bool = False,
) -> TransformerLM:
    """Converts a live model of any known family; subclasses and merged adapters included.

    Args:
      model: A transformers model for causal language modelling.
      upcast_activations_to_float32: Whether activations are float32 whatever the parameters are.
      use_layer_stack: Whether the blocks become one `LayerStack`.

    Raises:
      TypeError: The argument is no HuggingFace model, or one with adapters that are not merged.
      CheckpointError: The tensors are not those of the family.
      UnsupportedConfigError: The configuration is not understood.
    """
    return model_from_checkpoint(
        LiveModel(model),
        upcast_activations_to_float32=upcast_activations_to_float32,
        use_layer_stack=use_layer_stack,
        progress=False,
    )


def from_huggingface_of_type(
    model: Any, model_type: str, caller: str, **options: bool
) -> TransformerLM:
    """As `from_huggingface`, for one family.

    Raises:
      UnsupportedConfigError: The model is of another family.
    """
    found = getattr(getattr(model, "config", None), "model_type", None)
    if found != model_type:
        raise UnsupportedConfigError(
            f"{caller}: expected a model with model_type {model_type!r}; received"
            f" {type(model).__name__} with {found!r}. Use pz_models.from_huggingface(model)."
        )
    return from_huggingface(model, **options)
