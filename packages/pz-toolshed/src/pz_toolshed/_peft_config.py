"""The folder of adapters of HuggingFace's `peft`, and the file `adapter_config.json` in it."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from pz_toolshed.checkpoint_errors import AdapterFormatError

__all__ = [
    "CONFIG_FILE",
    "TENSORS_FILE",
    "alpha_of",
    "config_of",
    "read_config",
    "require_files",
]

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

# Options, and the only value of each that is supported.
_UNSUPPORTED: Mapping[str, Any] = {
    "bias": "none",
    "modules_to_save": None,
    "fan_in_fan_out": False,
    "layer_replication": None,
    "lora_bias": False,
    "trainable_token_indices": None,
    "target_parameters": None,
}
# Variants that compute something else from the same matrices. Not written, as older versions of peft do
# not know all of them.
_VARIANTS: Mapping[str, Any] = dict.fromkeys(
    (
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "use_bdlora",
        "use_qalora",
    )
)


def config_of(
    ranks: dict[str, int],
    alphas: dict[str, float],
    dropouts: dict[str, float],
    base_model: str | None,
    use_dora: bool,
) -> dict[str, Any]:
    """What `adapter_config.json` says of the adapters.

    Args:
      ranks: Rank of each module's adapter.
      alphas: Its alpha.
      dropouts: Its dropout rate.
      base_model: Name or path of the base model.
      use_dora: Whether they have magnitudes.

    Returns:
      The config, with the commonest rank and alpha as defaults and the others as patterns.
    """
    rank = collections.Counter(ranks.values()).most_common(1)[0][0]
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": max(dropouts.values()),
        "target_modules": sorted(ranks),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "use_rslora": False,
        "use_dora": use_dora,
        **_UNSUPPORTED,
    }


def require_files(folder: pathlib.Path) -> None:
    """Looks for the two files.

    Args:
      folder: Where they should be.

    Raises:
      FileNotFoundError: If one is missing.
    """
    missing = [name for name in (CONFIG_FILE, TENSORS_FILE) if not (folder / name).is_file()]
    if not missing:
        return
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        shown = f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "nothing"
        found = f"it holds {shown}"
    else:
        found = "that is a file" if folder.exists() else "there is no such folder"
    raise FileNotFoundError(
        f"load_adapters: there is no {' and no '.join(missing)} in {folder}; {found}. Give the folder "
        f"that was given to save_adapters, which writes {CONFIG_FILE} and {TENSORS_FILE}."
    )


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Reads `adapter_config.json`.

    Args:
      path: The file.

    Returns:
      The config.

    Raises:
      FileNotFoundError: If it is missing.
      AdapterFormatError: If it is damaged, or asks for what is not supported.
    """
    try:
        config: dict[str, Any] = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise AdapterFormatError(f"{path} is damaged ({error}). Copy the file again.") from error
    if config.get("peft_type") != "LORA":
        raise AdapterFormatError(
            f"{path}: peft_type is {config.get('peft_type')!r}; only 'LORA' is supported. Merge "
            "such adapters with peft and load the merged weights."
        )
    for option, supported in {**_UNSUPPORTED, **_VARIANTS}.items():
        if config.get(option) not in (supported, None, [], {}, False):
            raise AdapterFormatError(
                f"{path}: {option}={config[option]!r} is not supported (only {supported!r}). Merge "
                "such adapters with peft and load the merged weights."
            )
    patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
    named = {f"alpha_pattern[{name!r}]": value for name, value in patterns.items()}
    for option, alpha in {"lora_alpha": config.get("lora_alpha"), **named}.items():
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not (is_number and math.isfinite(alpha) and alpha):
            raise AdapterFormatError(
                f"{path}: {option} must be a finite number other than 0, got {alpha!r}. Copy the file "
                "again."
            )
    return config


def alpha_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The alpha of a module's adapter, by which ours scales with `alpha / rank`."""
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    # Rank-stabilised adapters scale by alpha / sqrt(rank), ours by alpha / rank.
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
