"""Models by name, from the HuggingFace hub.

    folder = download("HuggingFaceTB/SmolLM2-135M", revision="main")
    model = pz_models.load("HuggingFaceTB/SmolLM2-135M")       # the same, and loads it

Fetching, caching and access rights are the business of the library `huggingface_hub`; what has been
fetched once is found without a network. Needs the extra `hub` (`pip install 'pz-models[hub]'`).
"""

from __future__ import annotations

import pathlib
import re

from pz_models.errors import CheckpointError

__all__ = ["download", "is_hub_name"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# No pickles, and no second copy of the weights in another library's layout.
_FILES = ["*.json", "*.jinja", "model.safetensors", "model-*.safetensors", "tokenizer.model"]


def is_hub_name(path: str) -> bool:
    """Whether a text has the form of a name on the hub: "organisation/model"."""
    return _NAME.fullmatch(path) is not None and not path.endswith(".gguf")


def download(name: str, *, revision: str | None = None) -> pathlib.Path:
    """Fetches a model's configuration, weights and tokenizer, or finds them in the local cache.

    Args:
      name: Its name on the hub, "organisation/model".
      revision: A branch, tag or commit; by default the newest state of the main branch.

    Returns:
      The folder they are in.

    Raises:
      ImportError: `huggingface_hub` is not installed.
      CheckpointError: There is no such model, no access to it, or no connection.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    except ImportError as exc:
        raise ImportError(
            f"load: there is no file or folder {name!r} here; fetching a model of that name from"
            " the HuggingFace hub needs the library huggingface_hub: pip install 'pz-models[hub]'"
        ) from exc
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES)
        )
    # Its errors about missing repositories, revisions and rights are HfHubHTTPErrors; those about
    # the connection are OSErrors, whatever HTTP library it uses.
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as exc:
        at = "" if revision is None else f" at revision {revision!r}"
        raise CheckpointError(
            f"load: {name!r} is no local file or folder, and could not be fetched from the"
            f" HuggingFace hub{at}: {_first_line(exc)} Without a connection, fetch it beforehand"
            " (pz_models.hub.download) or copy its folder here; a restricted model needs access"
            " and `hf auth login`."
        ) from exc


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if text.endswith(".") else f"{text}."
