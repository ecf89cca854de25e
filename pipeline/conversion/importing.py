"""Foreign models become complete Hugging Face folders whose tokenizer, chat template and stop tokens agree.

Only data is read of them; see `pipeline.conversion.folder`, whose `check` comes before everything here.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.conversion.folder import (
    CODE,
    CONFIG,
    GENERATION,
    HEADER_BYTES,
    INDEX,
    KEPT,
    WEIGHTS,
    ModelFolderError,
    check,
    check_file,
    check_format,
    files,
    read_json,
    unsaveable,
)
from pipeline.prompts.templates import PROMPTING, encode, set_chat_template

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer_config.json"
SHARD = "5GB"
"""Largest file of weights: what the hub's clients download well."""


def copied(source: str, target: Path, revision: str | None) -> None:
    """Take a model as it is.

    Files of the hub's cache, which are never written again, are linked; a local folder is copied, because whoever
    owns it may overwrite its files in place. Weights that are not safetensors are converted.

    Args:
        source: a local folder or a hub id.
        target: the folder to make.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: the folder holds no model, or what must not be read.
    """
    local = Path(source).is_dir()
    folder = located(source, revision)
    if not any(path.suffix == WEIGHTS for path in folder.iterdir()):
        converted(str(folder), target, "auto")
        return
    target.mkdir(parents=True)
    for path in files(folder):
        _place(path.resolve(), target / path.name, link=not local and path.suffix == WEIGHTS)


def located(source: str, revision: str | None) -> Path:
    """The folder of a model, downloaded if it is not on this machine, with nothing in it that must not be read.

    Raises:
        ModelFolderError: it holds no model, or what is refused.
        ValueError: transformers does not know the architecture, whose own code is not run.
    """
    folder = Path(source) if Path(source).is_dir() else _downloaded(source, revision)
    check(folder)
    check_format(folder, torchtitan=False)
    _check_architecture(folder)
    return folder


def converted(source: str, target: Path, dtype: str, revision: str | None = None, shard: str = SHARD) -> None:
    """Load a model and save it in another precision (`auto`: its own), in files of at most `shard` bytes (`5GB`)."""
    import torch
    from transformers import AutoTokenizer

    from model.modeling import load  # keeps a DeepSeek-V3's prediction blocks, which transformers' class leaves out

    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    folder = located(source, revision)
    try:
        model = load(str(folder), dtype=wanted)
    except UnpicklingError as error:  # torch goes on with advice to read it whatever it is
        raise ModelFolderError(f"{folder}: a file of weights holds more than tensors, and is not read") from error
    for name in _told(unsaveable(model.generation_config.to_dict()), folder):
        setattr(model.generation_config, name, None)
    model.save_pretrained(target, max_shard_size=shard)
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(target)


def is_fp8(source: str, revision: str | None) -> bool:
    """Whether a model's weights are block-wise FP8, as DeepSeek-V3 is published; its config alone is read."""
    from model import fp8

    if Path(source).is_dir():
        check(Path(source))
        return fp8.is_fp8(Path(source))
    from huggingface_hub import hf_hub_download

    return fp8.is_fp8(Path(hf_hub_download(source, CONFIG, revision=revision)).parent)


def from_fp8(source: str, target: Path, dtype: str, revision: str | None) -> None:
    """Dequantise a block-wise FP8 checkpoint, one of its files after another."""
    import torch

    from model import fp8

    folder = located(source, revision)
    _companions(folder, target)
    fp8.read(folder, target, getattr(torch, dtype))


def to_fp8(source: str, target: Path) -> None:
    """Write a model with block-wise FP8 weights, as DeepSeek-V3 is published."""
    from model import fp8

    _companions(Path(source), target)
    if incomplete := fp8.write(Path(source), target):
        log.warning(
            "%d matrices, such as %s, do not divide into blocks of %d: transformers dequantises them wrongly on a CPU;"
            " import_model and GPU kernels do not",
            len(incomplete),
            incomplete[0],
            fp8.BLOCK,
        )


def from_torchtitan(source: str, target: Path, dtype: str | None) -> None:
    """Bring a checkpoint of torchtitan's DeepSeek-V3 under the official names.

    Raises:
        ValueError: it is no such checkpoint; or config and tokenizer, which torchtitan keeps elsewhere, do not lie
            beside it.
    """
    from model.parallel import torchtitan

    if not (Path(source) / CONFIG).is_file():
        raise ValueError(f"{source} has no {CONFIG}: copy the model's config and tokenizer there")
    check(Path(source))
    check_format(Path(source), torchtitan=True)
    _companions(Path(source), target)
    torchtitan.read(Path(source), target, dtype)
    if dtype is not None:
        _rewrite(target / CONFIG, {"dtype": dtype})


def to_torchtitan(source: str, target: Path) -> None:
    """Write a model as torchtitan's `checkpoint.initial_load_path` wants it, config and tokenizer beside it."""
    from model.parallel import torchtitan

    _companions(Path(source), target)
    torchtitan.write(Path(source), target)


def _companions(folder: Path, target: Path) -> None:
    """Copy what belongs to a model beside its weights."""
    target.mkdir(parents=True)
    for path in files(folder):
        if path.suffix != WEIGHTS and not path.name.endswith(f"{WEIGHTS}{INDEX}"):
            shutil.copyfile(path, target / path.name)


def from_gguf(source: str, target: Path, dtype: str) -> None:
    """Dequantise a GGUF file.

    transformers gives such a tokenizer its BOS token as EOS and may lose the padding token; both are taken from the
    file itself. A model loaded from GGUF counts as quantised and refuses to be saved, so a plain one takes its weights.

    Raises:
        ModuleNotFoundError: the package `gguf` is not installed.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(source)
    check_file(path)
    wanted = getattr(torch, dtype)
    place, name = path.parent, path.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=wanted, trust_remote_code=False)
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=wanted)
    model.load_state_dict(loaded.state_dict())
    fields = GGUFReader(path).fields
    for name, key in (("eos", "eos"), ("pad", "padding")):
        if (field := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            number = int(field.contents())
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(number))
            setattr(model.config, f"{name}_token_id", number)
            setattr(model.generation_config, f"{name}_token_id", number)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def settle(folder: Path, template: str | Path | None) -> dict[str, Any]:
    """Set the chat template and make tokenizer, template and generation config agree on where a turn ends.

    Args:
        folder: a model's folder; its tokenizer and configs are rewritten.
        template: name of a chat template of ours, a Jinja file, or `None` to keep the model's own.

    Returns:
        Metrics: parameters, precision, context, and what ends a turn.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token, or the template never ends a turn.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    for path in (folder / CONFIG, folder / TOKENIZER, folder / GENERATION):
        _rewrite(path, {}, without=CODE)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    generation = folder / GENERATION
    _rewrite(generation, {}, without=_told(unsaveable(read_json(generation) if generation.exists() else {}), folder))
    stops = _stops(GenerationConfig.from_pretrained(folder) if generation.exists() else config)
    if isinstance(template, Path):
        tokenizer.init_kwargs.pop(PROMPTING, None)  # it was meant for the earlier template
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    elif template is not None:
        set_chat_template(tokenizer, template)
    if tokenizer.chat_template:
        _end_turns(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token: give the model a chat_template that ends turns")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *stops]))
    agreed = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": tokenizer.pad_token_id}
    _rewrite(generation, agreed)
    _rewrite(folder / CONFIG, {**agreed, "eos_token_id": tokenizer.eos_token_id})
    _check_saving(folder)
    total, precision = weights(folder)
    return {
        "parameters": total,
        "dtype": precision,
        "context": getattr(config.get_text_config(), "max_position_embeddings", None),
        "end_of_turn": tokenizer.eos_token,
        "chat_template": bool(tokenizer.chat_template),
    }


def _end_turns(tokenizer: Any) -> None:
    """Make EOS the token with which the chat template ends the assistant's turn."""
    said = "zero2r1"
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    _, _, after = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(said)
    ids = encode(tokenizer, [after.lstrip()])[0]
    if not ids:
        raise ValueError("the chat template never ends the assistant's turn: a model could not learn to stop")
    if ids[0] == tokenizer.eos_token_id:
        return
    token = tokenizer.convert_ids_to_tokens(ids[0])
    if token not in tokenizer.get_added_vocab():
        raise ValueError(f"the chat template ends the assistant's turn with {token!r}, which is not a special token")
    log.warning("the tokenizer's EOS was %r, but turns end with %r: corrected", tokenizer.eos_token, token)
    tokenizer.eos_token = token


def _stops(config: Any) -> list[int]:
    eos = getattr(config, "eos_token_id", None)
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


def _rewrite(path: Path, values: Mapping[str, Any], without: Collection[str] = ()) -> None:
    """Set some values of a JSON file, and leave some out; a file that is not there is made for values only."""
    old = read_json(path) if path.exists() else {}
    new = {name: value for name, value in {**old, **values}.items() if name not in without}
    if new != old:
        path.write_text(json.dumps(new, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _told(names: list[str], folder: Path) -> list[str]:
    """The same, after a line about them."""
    if names:
        log.warning("%s: %s has no effect beside the other settings: left out", folder / GENERATION, ", ".join(names))
    return names


def _check_saving(folder: Path) -> None:
    """Make sure that a model trained from this folder can be saved.

    Raises:
        ModelFolderError: transformers would refuse its configs.
    """
    from transformers import AutoConfig, GenerationConfig

    with TemporaryDirectory() as place:
        try:
            AutoConfig.from_pretrained(folder, trust_remote_code=False).save_pretrained(place)
            GenerationConfig.from_pretrained(folder).save_pretrained(place)
        except ValueError as error:
            raise ModelFolderError(f"the model's configs can be read, but could not be saved again: {error}") from error


def _check_architecture(folder: Path) -> None:
    from transformers import CONFIG_MAPPING

    kind = read_json(folder / CONFIG).get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelFolderError(
            f"{folder / CONFIG}: transformers has no architecture {kind!r}, and a model's own code is not run"
        )


def weights(folder: Path) -> tuple[int, str]:
    """Number of weights, and their most frequent type (such as `BF16`), read from the files' headers."""
    by_type: dict[str, int] = {}
    for name, entry in headers(folder):
        if not name.endswith("_scale_inv"):  # FP8 scales are no weights
            by_type[entry["dtype"]] = by_type.get(entry["dtype"], 0) + math.prod(entry["shape"])
    return sum(by_type.values()), max(by_type, key=by_type.__getitem__)


def headers(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name, `dtype` and `shape` of every tensor in a folder's safetensors files, whose headers alone are read."""
    for path in sorted(folder.glob(f"*{WEIGHTS}")):
        with path.open("rb") as source:
            header = json.loads(source.read(int.from_bytes(source.read(HEADER_BYTES), "little")))
        yield from ((name, entry) for name, entry in header.items() if name != "__metadata__")


def _downloaded(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted, inner = [f"*{ending}" for ending in KEPT], ["*/*"]
    folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted, ignore_patterns=inner))
    if not any(path.suffix == WEIGHTS for path in folder.iterdir()):  # published before safetensors were
        snapshot_download(hub_id, revision=revision, allow_patterns=["pytorch_model*"], ignore_patterns=inner)
    return folder


def _place(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            log.info("%s is on another device: copied", source)
    shutil.copyfile(source, target)
