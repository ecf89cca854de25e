"""One engine for several models, one after another: the next model's weights replace those of the one before.

Starting vLLM takes longer than a short evaluation: libraries, memory profiling, graphs. An engine that is open already
only reads weights, if the next model differs in nothing else that an engine has of a model: its config, its tokenizer
and the tokens that end a completion. Prompts are rendered by whoever samples, with each model's own chat template.

Where an engine has to make room for another one, each has a process of its own. In one process, vLLM with compiled
graphs does not give all of the GPU's memory back (vLLM 0.26 on an H200), and the second engine finds too little.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.files import finite
from pipeline.files.compiled import NOT_OF_THE_SHAPE
from pipeline.rollout import VLLM, engine_name, open_engine
from pipeline.rollout.base import Engine, RolloutError
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec

log = logging.getLogger(__name__)

CONFIG, TOKENIZER_CONFIG, GENERATION = "config.json", "tokenizer_config.json", "generation_config.json"
STORED_TYPE = frozenset({"dtype", "torch_dtype"})
"""Entries of a config that an engine follows, though they are not part of the shape."""
TOKENIZER = (".json", ".txt", ".model", ".tiktoken")
"""How the names of files end that a tokenizer is read from."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
WEIGHTS = ".safetensors"
ADAPTER = "adapter_config.json"


class Engines:
    """Opens an engine for a model, or puts the model's weights into the one that is open.

    Args:
        rollout: how to sample.
        seed: seed of every engine.
        models: those that will be asked for, as far as that is known; folders or hub ids.

    Attributes:
        started: how many engines were opened.
    """

    def __init__(self, rollout: RolloutSpec, seed: int, models: Sequence[str] = ()) -> None:
        self.rollout, self.seed = rollout, seed
        if engine_name(rollout) == VLLM and not rollout.separate_process and self._several(models):
            self.rollout = rollout.model_copy(update={"process": ProcessSpec()})
        self.started = 0
        self._engine: Any = None
        self._model = self._kind = ""

    def of(self, model: str) -> Engine:
        """The engine, with this model's weights.

        Args:
            model: folder or hub id.

        Raises:
            RolloutError: it does not start, or a folder that no stage has published holds weights that are not finite.
        """
        if self._engine is not None and self._model == model:
            return self._engine  # type: ignore[no-any-return]
        _check_weights(Path(model))
        kind = self._reloadable(model)
        if self._engine is not None and kind and kind == self._kind:
            log.info("reading the weights of %s into the engine that is open", model)
            from pipeline.rollout.weights import weights_of_folder  # brings torch along

            put: Callable[..., None] = getattr(self._engine, "push", None) or self._engine.load_weights
            put(weights_of_folder(Path(model)))
        else:
            self.close()
            log.info("loading %s with %s", model, engine_name(self.rollout))
            self._engine = open_engine(self.rollout, model, self.seed)
            _ = self._engine.dtype  # waits for one in a process of its own
            self.started += 1
        self._model, self._kind = model, kind
        return self._engine  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the model, if one was loaded."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _several(self, models: Sequence[str]) -> bool:
        """Whether one engine cannot serve them all."""
        kinds = {self._reloadable(model) for model in models}
        return len(set(models)) > 1 and (len(kinds) > 1 or "" in kinds)

    def _reloadable(self, model: str) -> str:
        """What an engine has of a model besides its weights; empty if it cannot be given others."""
        return kind_of(Path(model)) if engine_name(self.rollout) == VLLM and reloads(self.rollout) else ""


def _check_weights(folder: Path) -> None:
    """Refuse weights with NaN, with which any engine samples something; those that a stage published were looked at."""
    if (folder.parent / artifacts.MANIFEST).exists():
        return
    try:
        finite.check(folder)
    except ValueError as error:
        raise RolloutError(f"{folder}: {error}") from error


def reloads(rollout: RolloutSpec) -> bool:
    """Whether a vLLM engine can take the weights of another model: not while it drafts or quantises."""
    return rollout.speculative is None and not rollout.engine_options.keys() & {"quantization", "speculative_config"}


def kind_of(folder: Path) -> str:
    """A hash of all in a model's folder that an engine reads but for weights; empty if those alone cannot be read.

    Chat templates do not count, which engines do not use, nor what a generation config says besides tokens that end a
    completion: engines here take no defaults from it.
    """
    quantised = "quantization_config" in _json(folder / CONFIG)
    if quantised or (folder / ADAPTER).exists() or not any(folder.glob(f"*{WEIGHTS}")):
        return ""
    config, tokenizer = _json(folder / CONFIG), _json(folder / TOKENIZER_CONFIG)
    noise = NOT_OF_THE_SHAPE - STORED_TYPE
    digest = hashlib.sha256()
    for part in (
        {name: value for name, value in config.items() if name not in noise},
        {name: value for name, value in tokenizer.items() if name != "chat_template"},
        _json(folder / GENERATION).get("eos_token_id"),
    ):
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    told = {CONFIG, TOKENIZER_CONFIG, GENERATION, *TEMPLATES}
    for file in sorted(folder.iterdir()):
        if file.suffix in TOKENIZER and file.name not in told and not file.name.endswith(f"{WEIGHTS}.index.json"):
            digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
