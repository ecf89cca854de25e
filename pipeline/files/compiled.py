"""What compilers leave behind, kept from one stage to the next, and between runs.

vLLM files what it has compiled for a model under a key, and one part of the key is the model's path: every stage has
a path of its own, and would compile the same graphs again, for half a minute. So an engine reads its model by a link
whose name follows from the model's config alone. Types, lengths and versions are in vLLM's key by themselves.

    with stable_name("runs/r1/stages/zero/…/model") as name:    # ~/.cache/zero2r1/models/7ac2…-0.0
        vllm.LLM(model=name)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "ZERO2R1_CACHE"
"""Variable that names a folder for all that is compiled, by vLLM, torch and Triton."""
NOT_OF_THE_SHAPE = frozenset({"use_cache", "transformers_version", "_name_or_path", "dtype", "torch_dtype"})
"""Entries of a model's config that differ between stages which compile the same."""


def folder(environment: Mapping[str, str]) -> Path:
    """Where links to models lie: the folder that was named, or the user's."""
    if named := environment.get(FOLDER):
        return Path(named).expanduser()
    above = environment.get("XDG_CACHE_HOME")
    return (Path(above) if above else Path.home() / ".cache") / "zero2r1"


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What tells libraries to keep what they compile in the folder that was named; those that are set stay."""
    if not environment.get(FOLDER):
        return {}
    where = folder(environment).absolute()
    wanted = {
        FOLDER: where,
        "VLLM_CACHE_ROOT": where / "vllm",
        "TRITON_CACHE_DIR": where / "triton",
        "TORCHINDUCTOR_CACHE_DIR": where / "inductor",
        "FLASHINFER_WORKSPACE_BASE": where,
    }
    return {name: str(path) for name, path in wanted.items() if name == FOLDER or name not in environment}


def fault(environment: Mapping[str, str]) -> str | None:
    """Why nothing can be kept in the folder that was named; `None` if it can, or none was named."""
    if not environment.get(FOLDER):
        return None
    where = folder(environment)
    there = next(path for path in (where, *where.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"nothing can be kept in {where}: {there} is {'not writable' if there.is_dir() else 'no folder'}"


@contextmanager
def stable_name(model: str) -> Iterator[str]:
    """A name of a model that is the same for every model of its config; as long as it is held, no other has it.

    Engines of one model share a name. One that meets another model of its shape under way takes a second name, and
    compiles once for that. The number of the process's GPU is part of the name, since compiled code holds it.

    Args:
        model: a local folder, or a hub id, which stays as it is.
    """
    target = Path(model)
    try:
        settings = json.loads((target / "config.json").read_text(encoding="utf-8"))
        shape = json.dumps({key: settings[key] for key in sorted(settings.keys() - NOT_OF_THE_SHAPE)})
        where = folder(os.environ) / "models"
        where.mkdir(parents=True, exist_ok=True)
        base = where / f"{hashlib.sha256(shape.encode()).hexdigest()[:16]}-{os.environ.get('LOCAL_RANK', '0')}"
        name, held = _taken(base, target.resolve())
    except (OSError, ValueError) as error:
        if target.is_dir():
            log.warning("what is compiled for %s will not be found again: %s", model, error)
        yield model
        return
    try:
        yield str(name)
    finally:
        os.close(held)


def _taken(base: Path, target: Path) -> tuple[Path, int]:
    """A link to a model, and the descriptor that holds it: one that is there already, or the first that is free.

    Raises:
        OSError: the folder cannot be written, or knows no locks.
    """
    for number in count():
        name = base.with_name(f"{base.name}.{number}")
        descriptor = os.open(f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(BlockingIOError):  # somebody has it: perhaps for the same model
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _aim(name, target)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # nobody has it alone for longer than it takes to aim
        if name.readlink() == target:
            return name, descriptor
        os.close(descriptor)
    raise AssertionError("there is always a further number")


def _aim(name: Path, target: Path) -> None:
    partial = name.with_name(f"{name.name}.{os.getpid()}.part")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(name)
