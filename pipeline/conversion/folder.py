"""A model's folder as data: which of its files count, and what in it is refused before anything reads it.

A folder that somebody else made may hold more than a model: code, pickles that run code when they are read, links to
files elsewhere, configs that name code to fetch. Only files of known kinds count, none is reached through a link that
leaves the folder, and what asks for code is refused by name. Nothing heavy is imported here: whole recipes are checked
with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import hub

WEIGHTS = ".safetensors"
HEADER_BYTES = 8
"""Bytes of a file of safetensors that give the length of its header."""
CONFIG = "config.json"
ADAPTER = "adapter_config.json"
GENERATION = "generation_config.json"
INDEX = ".index.json"
"""How a file ends that says which weights lie in which file."""
KEPT = (".json", ".txt", ".model", ".jinja", ".tiktoken", WEIGHTS)
"""Endings of what belongs to a model: weights as safetensors, configs, tokenizer; no code and no pickles."""
TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
"""Files of which a tokenizer has one at least."""
METADATA = ".metadata"
"""The index of torch's distributed checkpoints."""
READ = (*KEPT, ".bin", ".gguf", ".distcp", METADATA)
"""Endings of all that is ever read: torch's own weights are converted by its reader of plain tensors."""
TEMPLATES = "additional_chat_templates"
"""The one folder within a model's folder that transformers reads."""
CODE = ("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "custom_generate")
"""Keys of configs by which transformers finds code outside of itself."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "temperature": (None, 1.0),
    "top_p": (None, 1.0),
    "top_k": (None, 50),
    "min_p": (None,),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}
"""Settings of sampling -> the values that `GenerationConfig.save_pretrained` takes without `do_sample: true`."""
BEAMS: Mapping[str, tuple[Any, ...]] = {"early_stopping": (None, False), "length_penalty": (None, 1.0)}
"""The same of beam search, without `num_beams` above 1."""
_KERNEL = re.compile(r"[^/]+/[^/]+")


class ModelFolderError(ValueError):
    """A folder that is no model, or holds what must not be read; the message names the file and the fix."""


def files(folder: Path) -> list[Path]:
    """The files of a model, by name; call `check` first."""
    return sorted(path for path in folder.iterdir() if path.name.endswith(KEPT) and path.is_file())


def check(folder: Path) -> None:
    """Refuse a folder that is no model, or that `check_data` refuses.

    Raises:
        ModelFolderError: names the file, and what mends it.
    """
    check_data(folder)
    if not (folder / CONFIG).is_file():
        raise ModelFolderError(f"{folder} holds no model: there is no {CONFIG} in it")


def lacking(folder: Path) -> list[str]:
    """The parts of a model that a folder does not have: config, weights, tokenizer."""
    return absent([path.name for path in folder.iterdir()])


def absent(names: Collection[str]) -> list[str]:
    """The parts of a model that are not among the names of its files."""
    if ADAPTER in names:
        return []  # it names its base, which has all of these
    parts = {
        CONFIG: CONFIG in names,
        f"weights (*{WEIGHTS})": any(name.endswith((WEIGHTS, ".bin", ".gguf", METADATA)) for name in names),
        f"tokenizer ({TOKENIZERS[0]})": not {*TOKENIZERS}.isdisjoint(names) or any(".tiktoken" in n for n in names),
    }
    return [part for part, there in parts.items() if not there]


def cut_off(folder: Path) -> Iterator[str]:
    """Files of weights that hold less than they say, as an interrupted copy leaves them; only headers are read."""
    for path in sorted(folder.glob(f"*{WEIGHTS}")):
        size = path.stat().st_size
        with path.open("rb") as source:
            length = int.from_bytes(source.read(HEADER_BYTES), "little")
            header = source.read(length) if length <= size else b""
        try:
            entries = json.loads(header) if header else {}
            end = max(
                (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            yield f"{path} is not a file of safetensors, or a damaged one: copy it again"
            continue
        whole = HEADER_BYTES + length + end
        if not header or size < whole:
            yield f"{path} is cut off: it has {size} bytes, and says that it has {whole}: copy it again"


def unread(path: str, error: Exception) -> str:
    """Why a model's tokenizer could not be read, in one line; libraries say it in several."""
    if Path(path).is_dir() and (absent := lacking(Path(path))):
        return f"the folder has no {', and no '.join(absent)}"
    if "connect" in str(error).lower() or "offline" in str(error).lower():
        return hub.UNREACHABLE
    return " ".join(str(error).split())


def check_data(folder: Path) -> None:
    """Refuse a folder whose files lie elsewhere, or that asks for code.

    Raises:
        ModelFolderError: names the file, and what mends it.
    """
    _check_links(folder)
    for path in files(folder):
        if path.name.endswith(f"{WEIGHTS}{INDEX}") or path.name.endswith(f".bin{INDEX}"):
            _check_index(path)
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    for value in _values(config, CODE[1:]):
        if isinstance(value, str) and _KERNEL.search(value):
            raise ModelFolderError(f"{folder / CONFIG} asks for code from {value!r}, which is not run: take it out")


def check_file(path: Path) -> None:
    """Refuse a model that is one file (GGUF), if it or what lies beside it is a link out of its folder.

    Raises:
        ModelFolderError: names the link.
    """
    _check_link(path, path.parent)
    _check_links(path.parent)


def check_format(folder: Path, torchtitan: bool) -> None:
    """Make sure that a folder is what a recipe calls it: a distributed checkpoint is a pickle, and read if asked for.

    Raises:
        ModelFolderError: it is the other kind.
    """
    there = (folder / METADATA).is_file()
    if torchtitan and not there:
        raise ModelFolderError(f"{folder} holds no distributed checkpoint: there is no {METADATA} in it")
    if not torchtitan and there and not any(path.name.endswith(WEIGHTS) for path in folder.iterdir()):
        raise ModelFolderError(f"{folder} holds a distributed checkpoint: say `format: torchtitan` to read it as one")


def unsaveable(values: Mapping[str, Any]) -> list[str]:
    """The settings of a generation config that have no effect beside the others, so that it could not be saved."""
    beside = [] if values.get("do_sample") is True else [NEUTRAL]
    beside += [] if values.get("num_beams") not in (None, 1) else [BEAMS]
    return [name for table in beside for name, neutral in table.items() if values.get(name) not in neutral]


def check_generation(folder: Path) -> None:
    """Refuse a generation config that the first save of a trained model would refuse.

    Raises:
        ModelFolderError: names the settings.
    """
    path = folder / GENERATION
    if path.is_file() and (names := unsaveable(read_json(path))):
        raise ModelFolderError(
            f"{path}: {', '.join(names)} has no effect without do_sample or num_beams, and so the trained model could"
            " not be saved: take it out, or bring the model in by a stage of kind import_model, which leaves it out"
        )


def config(folder: Path) -> dict[str, Any]:
    """What the config of a model says; empty where there is none that can be read, which is told elsewhere."""
    path = folder / CONFIG
    try:
        return read_json(path) if path.is_file() else {}
    except (OSError, ValueError):  # also text that could be no path
        return {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        ModelFolderError: it does not.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelFolderError(f"{path} holds no mapping")
    return found


def _check_links(folder: Path) -> None:
    for path in [folder / TEMPLATES, *(folder / TEMPLATES).glob("*"), *folder.iterdir()]:
        if path.name.endswith(READ) or TEMPLATES in (path.name, path.parent.name):
            _check_link(path, folder)
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ModelFolderError(f"{path} is a pipe or a device, and not read: put a file there")


def _check_link(path: Path, folder: Path) -> None:
    if not path.is_symlink():
        return
    home, target = folder.resolve(), path.resolve()
    # a snapshot in the hub's cache links to the blobs of its repository: models--x--y/{snapshots/<commit>,blobs}
    blobs = home.parents[1] / "blobs" if len(home.parents) > 1 and home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.parent == blobs):
        raise ModelFolderError(
            f"{path} is a link to {target}, outside of the model's folder, and not followed: put the file itself there"
        )


def _check_index(path: Path) -> None:
    homes = read_json(path).get("weight_map")
    if not isinstance(homes, dict) or not all(isinstance(name, str) for name in homes.values()):
        raise ModelFolderError(f"{path} has no weight_map from names of weights to files")
    for name in sorted(set(homes.values())):
        if Path(name).name != name:
            raise ModelFolderError(f"{path} names {name!r}, which is not a file of this folder")
        if not (path.parent / name).is_file():
            raise ModelFolderError(f"{path} names {name!r}, which is not there: the model is incomplete")


def _values(config: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key in keys:
                yield from value.values() if isinstance(value, dict) else [value]
            yield from _values(value, keys)
    elif isinstance(config, list):
        for item in config:
            yield from _values(item, keys)
