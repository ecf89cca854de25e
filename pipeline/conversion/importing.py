"""Foreign models become complete Hugging Face folders whose tokenizer, chat template and stop tokens agree."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.templates import encode, set_chat_template

log = logging.getLogger(__name__)

WEIGHTS = ".safetensors"
KEPT = (".json", ".txt", ".model", ".jinja", ".tiktoken", WEIGHTS)
"""Endings of what belongs to a model: weights as safetensors, configs, tokenizer; no code and no pickles."""
CONFIG = "config.json"
INDEX = ".safetensors.index.json"
SHARD = "5GB"
"""Largest file of weights: what the hub's clients download well."""
HEADER_BYTES = 8
"""A safetensors file begins with the length of its header, in so many bytes."""


def copied(source: str, target: Path, revision: str | None) -> None:
    """Take a model as it is.

    Files of the hub's cache, which are never written again, are linked; a local folder is copied, because whoever
    owns it may overwrite its files in place. Weights that are not safetensors are converted.

    Args:
        source: a local folder or a hub id.
        target: the folder to make.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: the folder holds no model.
    """
    local = Path(source).is_dir()
    folder = Path(source) if local else _downloaded(source, revision)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source} holds no model: there is no config.json in it")
    if not any(path.suffix == WEIGHTS for path in folder.iterdir()):
        converted(str(folder), target, "auto")
        return
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in KEPT:
            _place(path.resolve(), target / path.name, link=not local and path.suffix == WEIGHTS)


def converted(source: str, target: Path, dtype: str, revision: str | None = None, shard: str = SHARD) -> None:
    """Load a model and save it in another precision (`auto`: its own), in files of at most `shard` bytes (`5GB`)."""
    import torch
    from transformers import AutoTokenizer

    from model.modeling import load  # keeps a DeepSeek-V3's prediction blocks, which transformers' class leaves out

    wanted = dtype if dtype == "auto" else getattr(torch, dtype)
    load(source, dtype=wanted, revision=revision).save_pretrained(target, max_shard_size=shard)
    AutoTokenizer.from_pretrained(source, revision=revision).save_pretrained(target)


def is_fp8(source: str, revision: str | None) -> bool:
    """Whether a model's weights are block-wise FP8, as DeepSeek-V3 is published; its config alone is read."""
    from model import fp8

    if Path(source).is_dir():
        return (Path(source) / CONFIG).is_file() and fp8.is_fp8(Path(source))
    from huggingface_hub import hf_hub_download

    return fp8.is_fp8(Path(hf_hub_download(source, CONFIG, revision=revision)).parent)


def from_fp8(source: str, target: Path, dtype: str, revision: str | None) -> None:
    """Dequantise a block-wise FP8 checkpoint, one of its files after another."""
    import torch

    from model import fp8

    folder = Path(source) if Path(source).is_dir() else _downloaded(source, revision)
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


def is_torchtitan(source: str) -> bool:
    """Whether a folder holds a distributed checkpoint, as torchtitan writes them."""
    return (Path(source) / ".metadata").is_file()


def from_torchtitan(source: str, target: Path, dtype: str | None) -> None:
    """Bring a checkpoint of torchtitan's DeepSeek-V3 under the official names.

    Raises:
        ValueError: config and tokenizer, which torchtitan keeps elsewhere, do not lie beside it.
    """
    from model.parallel import torchtitan

    if not (Path(source) / CONFIG).is_file():
        raise ValueError(f"{source} has no {CONFIG}: copy the model's config and tokenizer there")
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
    for path in folder.iterdir():
        if path.is_file() and path.suffix in KEPT and path.suffix != WEIGHTS and not path.name.endswith(INDEX):
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
    wanted = getattr(torch, dtype)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=wanted)
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

    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = _stops(GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else config)
    if isinstance(template, Path):
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
    _rewrite(folder / "generation_config.json", agreed)
    _rewrite(folder / "config.json", {**agreed, "eos_token_id": tokenizer.eos_token_id})
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
        raise ValueError(f"the chat template ends the assistant's turn with {token!r}, which is no special token")
    log.warning("the tokenizer's EOS was %r, but turns end with %r: mended", tokenizer.eos_token, token)
    tokenizer.eos_token = token


def _stops(config: Any) -> list[int]:
    eos = getattr(config, "eos_token_id", None)
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


def _rewrite(path: Path, values: dict[str, Any]) -> None:
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**old, **values}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def weights(folder: Path) -> tuple[int, str]:
    """Number of weights, and their most frequent type (such as `BF16`), read from the files' headers."""
    by_type: dict[str, int] = {}
    for path in sorted(folder.glob(f"*{WEIGHTS}")):
        with path.open("rb") as source:
            header = json.loads(source.read(int.from_bytes(source.read(HEADER_BYTES), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and not name.endswith("_scale_inv"):  # FP8 scales are no weights
                by_type[entry["dtype"]] = by_type.get(entry["dtype"], 0) + math.prod(entry["shape"])
    return sum(by_type.values()), max(by_type, key=by_type.__getitem__)


def _downloaded(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [f"*{ending}" for ending in KEPT]
    return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))


def _place(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            log.info("%s is on another device: copied", source)
    shutil.copyfile(source, target)
