"""Write docs/reference.md from configs, signatures and docstrings, so that the page cannot go stale.

python scripts/write_reference.py            # writes the page
python scripts/write_reference.py --check    # exits with 1 if it is not up to date

Every field of every part of a recipe gets a row: its name, its default, and the sentence of its docstring.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.data.corpus import BUILTIN as CORPORA
from pipeline.data.corpus import check as corpus_class
from pipeline.recipe import Header, TaskDefinition
from pipeline.schema.adapter import AdaptedConfig, AdapterSpec
from pipeline.schema.health import Health
from pipeline.schema.launch import Launch, ProcessSpec
from pipeline.schema.pieces import PromptedConfig, RewardSpec, RolloutSpec, StageConfig, TrainingConfig
from pipeline.schema.strict import Strict
from pipeline.schema.task import TaskSpec
from pipeline.schema.track import Track
from pipeline.search.writer import SteppedConfig
from pipeline.stages.registry import KINDS, config_class
from pipeline.tasks.base import BUILTIN as TASKS
from pipeline.tasks.base import check as task_class
from pipeline.training.finetune import FinetuneConfig
from pipeline.training.held_out.fields import KeepSpec, StopSpec, WatchedConfig, WatchSpec
from rewards.registry import BUILTIN as REWARDS
from rewards.registry import find

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
HEAD = """# Recipe fields

Every field of a recipe with its default. [The guides](guides/recipes.md) explain how the parts work together. Times are
in seconds, lengths in tokens, and shares between 0 and 1, unless a row says otherwise. `trainer:` takes every field of
TRL's config class by its own name; each stage kind lists the fields for which its default is not TRL's.
`python scripts/write_reference.py` writes this page.
"""
SHARED: Mapping[str, tuple[type[Strict], ...]] = {
    "The top level": (Header, TaskDefinition, Track),
    "What every stage has": (StageConfig, Launch, PromptedConfig),
    "What every training stage has": (TrainingConfig, Health),
    "What every stage has that trains an existing model": (AdaptedConfig, AdapterSpec),
    "What every stage has whose model answers problems": (WatchedConfig, WatchSpec, KeepSpec, StopSpec),
    "What every stage has that works on the steps of an answer": (SteppedConfig,),
    "Pieces that several kinds share": (RolloutSpec, ProcessSpec, TaskSpec, RewardSpec, FinetuneConfig),
}
"""Heading -> parts of a recipe that are described once."""
ENTRY = re.compile(r"^    ([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*): (.*)$")
REQUIRED = "must be given"


class Documented(NamedTuple):
    """A docstring: its text, and the sentence of each name under `Attributes:` or `Args:`."""

    text: str
    named: Mapping[str, str]


def documented(thing: object) -> Documented:
    """Take a docstring apart."""
    text, _, rest = re.sub(r"\n(Attributes|Args):\n", "\0", f"\n{inspect.getdoc(thing) or ''}\n", count=1).partition(
        "\0"
    )
    named: dict[str, str] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if found := ENTRY.match(line):
            names = found[1].split(", ")
            named |= dict.fromkeys(names, found[2])
        elif line.startswith("        "):
            named |= {name: f"{named[name]} {line.strip()}" for name in names}
        elif line.strip():
            break  # the next section
    return Documented(text.strip(), named)


def sentence(cls: type, name: str) -> str:
    """What the docstring of a class, or of the nearest of its bases that knows the name, says of it."""
    for base in cls.__mro__:
        if base.__doc__ and name in (named := documented(base).named):
            return named[name]
    return ""


def pieces(annotation: object) -> Iterator[type[Strict]]:
    """Every part of a recipe that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        yield annotation
    for inner in get_args(annotation):
        yield from pieces(inner)


def parts(kind: str) -> Iterator[type[Strict]]:
    """The config of a stage kind and every part that it may hold, each once."""
    seen: list[type[Strict]] = [config_class(kind)]
    for part in seen:
        seen += [p for field in part.model_fields.values() for p in pieces(field.annotation) if p not in seen]
    yield from seen


def page() -> str:
    """The whole page."""
    told, lines = set[type[Strict]](), [HEAD]
    for heading, shared in SHARED.items():
        lines.append(f"## {heading}\n")
        for part in shared:
            lines += _part(part)
            told.add(part)
    lines.append("## Stage kinds\n")
    for kind in sorted(KINDS):
        config = config_class(kind)
        lines += [f"### {kind}\n", _prose(inspect.getdoc(importlib.import_module(config.__module__)) or "")]
        for part in parts(kind):
            if part not in told:
                lines += _part(part)
                told.add(part)
            if part is config:
                lines += _trainer(config)
    lines += ["## Tasks\n", *_entries((name, task_class(name, {})) for name in sorted(TASKS))]
    lines += ["## Corpora\n", *_entries((name, corpus_class(name, {})) for name in sorted(CORPORA))]
    lines += ["## Rewards\n", *_entries((name, find(name).target) for name in sorted(REWARDS))]
    return "\n".join(lines)


def _part(part: type[Strict]) -> Iterator[str]:
    """A part of a recipe: what it is, and a row for each field that its own docstring has, or that is its own."""
    known = documented(part)
    own = [n for n in part.model_fields if n in known.named or n in inspect.get_annotations(part)]
    yield f"`{'recipe' if part is Header else part.__name__}`\n"
    yield _prose(known.text)
    yield from _table((_key(part, name), default(part.model_fields[name]), sentence(part, name)) for name in own)


def _key(part: type[BaseModel], name: str) -> str:
    return part.model_fields[name].alias or name


def default(field: FieldInfo) -> str:
    """A field's default as a recipe would write it."""
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True, validated_data={})
    return _shown({} if isinstance(value, BaseModel) else value)


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    as_it_is = isinstance(value, str) and value.isprintable()
    plain = str(value) if as_it_is else json.dumps(value, default=_plain, ensure_ascii=False)
    return f"`{plain}`" if plain else '`""`'


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else list(value)


def _table(rows: Iterator[tuple[str, str, str]]) -> Iterator[str]:
    lines = [f"| `{name}` | {default} | {_cell(told)} |" for name, default, told in rows]
    if lines:
        yield "\n".join(["| field | default | meaning |", "|---|---|---|", *lines, ""])


def _cell(told: str) -> str:
    return (told[:1].upper() + told[1:]).replace("|", "\\|")


def _trainer(config: type[StageConfig]) -> Iterator[str]:
    """Fields of TRL's config class for which a stage kind has defaults of its own."""
    defaults = getattr(config, "trainer_defaults", None)
    if not isinstance(defaults, Mapping) or not defaults:
        return
    yield f"`trainer:` where the default is not that of TRL's `{str(config.trainer_class).rpartition(':')[2]}`:\n"
    rows = [f"| `{name}` | {_shown(value)} |" for name, value in defaults.items()]
    yield "\n".join(["| field | default |", "|---|---|", *rows, ""])


def _entries(named: Iterator[tuple[str, Any]]) -> Iterator[str]:
    """Tasks, corpora or rewards: what each is, and a row for each option."""
    for name, target in named:
        yield f"### {name}\n"
        yield f"`{getattr(target, '__name__', name)}`\n"
        yield _prose(documented(target).text)
        yield from _table(options(target))


def options(target: Callable[..., Any]) -> Iterator[tuple[str, str, str]]:
    """The options of a task, corpus or reward: name, default, and what the docstring says."""
    for option in inspect.signature(target).parameters.values():
        if option.kind in (option.VAR_KEYWORD, option.VAR_POSITIONAL):
            continue
        told = (
            sentence(target, option.name) if isinstance(target, type) else documented(target).named.get(option.name, "")
        )
        yield option.name, REQUIRED if option.default is option.empty else _shown(option.default), told


def _prose(text: str) -> str:
    """A docstring as Markdown: paragraphs as they are, indented ones as blocks."""
    lines: list[str] = []
    for paragraph in re.split(r"\n{2,}", text.strip()):
        block = paragraph.splitlines()
        head = next((n for n, line in enumerate(block) if line.startswith("    ")), len(block))
        plain, code = block[:head], block[head:]
        if plain:
            lines += ["\n".join(plain).replace("::", ":"), ""]
        if code:
            body = inspect.cleandoc("\n".join(["", *code]))
            kind = "yaml" if re.match(r"[a-z_]+:", body) else "text"
            lines += [f"```{kind}", body, "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
