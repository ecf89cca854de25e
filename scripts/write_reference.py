"""Write docs/reference.md from the docstrings of stage kinds, tasks and rewards, so that the page cannot go stale.

python scripts/write_reference.py            # writes the page
python scripts/write_reference.py --check    # exits with 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pipeline.schema.adapter import AdaptedConfig, AdapterSpec
from pipeline.schema.health import Health
from pipeline.schema.pieces import (
    Launch,
    ProcessSpec,
    PromptedConfig,
    RewardSpec,
    RolloutSpec,
    StageConfig,
    TrainingConfig,
)
from pipeline.schema.strict import Strict
from pipeline.schema.task import TaskSpec
from pipeline.stages.registry import KINDS, config_class
from pipeline.tasks.base import BUILTIN as TASKS
from pipeline.tasks.base import check as task_class
from pipeline.training.finetune import FinetuneConfig
from pipeline.training.watching import KeepSpec, StopSpec, WatchedConfig, WatchSpec
from rewards.registry import BUILTIN as REWARDS
from rewards.registry import find

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """# Reference

Stage kinds, tasks and rewards, as their docstrings say it. [The guides](guides/recipes.md) explain how they work
together.
This page is written by `python scripts/write_reference.py`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## What every stage has\n", _code(StageConfig), _code(Launch), _code(PromptedConfig)]
    parts += ["## What every training stage has\n", _code(TrainingConfig), _code(Health)]
    parts += ["## What every stage has that trains an existing model\n", _code(AdaptedConfig), _code(AdapterSpec)]
    parts += ["## What every stage has whose model answers problems\n", _code(WatchedConfig)]
    parts += map(_code, (watched := [WatchSpec, KeepSpec, StopSpec]))
    pieces: list[object] = [*watched, Launch, Health, AdapterSpec, RolloutSpec, ProcessSpec, TaskSpec, RewardSpec]
    parts += ["## Pieces that several kinds share\n", *map(_code, [*pieces[6:], FinetuneConfig])]
    parts.append("## Stage kinds\n")
    for kind in sorted(KINDS):
        config = config_class(kind)
        parts += [f"### {kind}\n", _text(importlib.import_module(config.__module__)), _code(config)]
        own = [piece for field in config.model_fields.values() for piece in _pieces(field.annotation)]
        own = [piece for piece in dict.fromkeys(own) if piece not in pieces]
        parts += map(_code, own)
        pieces += own
    parts += ["## Tasks\n", *_entries((name, task_class(name, {})) for name in sorted(TASKS))]
    parts += ["## Rewards\n", *_entries((name, find(name).target) for name in sorted(REWARDS))]
    return "\n".join(parts)


def _pieces(annotation: object) -> Iterator[object]:
    """Every part of a recipe that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for inner in get_args(annotation):
        yield from _pieces(inner)


def _entries(named: Iterator[tuple[str, object]]) -> Iterator[str]:
    for name, target in named:
        yield f"### {name}\n"
        yield _code(target)


def _text(thing: object) -> str:
    return f"```text\n{inspect.getdoc(thing)}\n```\n"


def _code(thing: object) -> str:
    name = getattr(thing, "__name__", "")
    return f"`{name}`\n\n{_text(thing)}"


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
