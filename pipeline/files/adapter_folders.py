"""Folders that hold an adapter alone, in PEFT's format, and where the model is that it belongs to.

    adapter/adapter_config.json         {"base_model_name_or_path": "Qwen/Qwen2.5-1.5B", "r": 32, …}
    adapter/adapter_model.safetensors

Whoever starts from such a folder starts from the model that base and adapter make together.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"
MERGED = "merged"
"""In a stage's scratch folder: the models of the adapters that it starts from."""


class AdapterFolderError(ValueError):
    """An adapter that belongs to no model that is known; the message names the file and the fix."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def config_of(folder: Path) -> dict[str, Any]:
    """An adapter's config.

    Raises:
        AdapterFolderError: it is no JSON, or the adapter is no LoRA.
    """
    path = folder / CONFIG
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        raise AdapterFolderError(f"{path} is not the config of a LoRA adapter (peft_type: LORA)")
    if not (folder / WEIGHTS).is_file():
        raise AdapterFolderError(f"{folder} has no {WEIGHTS}: the adapter is incomplete")
    return said


def base_of(folder: Path) -> str:
    """Folder or hub id of the model that an adapter belongs to; a relative path is read against the adapter's folder.

    Raises:
        AdapterFolderError: it names none, or a folder that is not there.
    """
    named = config_of(folder).get(BASE)
    if not isinstance(named, str) or not named:
        raise AdapterFolderError(f"{folder / CONFIG} names no base model: set {BASE} to its folder or hub id")
    local = folder / named
    if local.is_dir() and is_adapter(local):
        raise AdapterFolderError(
            f"{folder / CONFIG}: its base {named} is an adapter as well: make a model of that one first"
            f" (`zero2r1 export {named} FOLDER`), and set {BASE} to it"
        )
    if local.is_dir():
        return str(local.resolve())
    if named.startswith((".", "/", "~")) or named.count("/") > 1:
        raise AdapterFolderError(
            f"{folder / CONFIG}: there is no folder {named}: set {BASE} to where its base model is"
        )
    return named


def base_folder(folder: Path) -> Path | None:
    """The folder of an adapter's base; `None` for a hub id, and where `base_of` would raise an error."""
    try:
        base = base_of(folder)
    except AdapterFolderError:
        return None
    return Path(base) if Path(base).is_absolute() else None


def merged_path(folder: Path, scratch: Path) -> Path:
    """Where a stage with this scratch folder has the model of an adapter and its base."""
    return scratch / MERGED / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
