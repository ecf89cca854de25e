"""The fields of TRL's config classes, read from their source without importing them.

Importing `GRPOConfig` takes seconds (torch, transformers); a recipe with a misspelt field should fail at once. So the
dataclass and its bases are found on disk and parsed, and what is checked is always the installed version.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards.registry import nearest

_ACCEPTS: Mapping[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "dict": (dict,),
    "list": (list,),
    "tuple": (list,),
    "None": (type(None),),
}
"""Name in an annotation -> types that YAML gives for it."""

_UNKNOWN = "there is no"
_SCHEDULES = "TYPE_TO_SCHEDULER_FUNCTION"
_GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
"""Arguments of a schedule that the trainer gives."""


@dataclass(frozen=True, slots=True)
class TrainerField:
    """A field of a dataclass, as its source has it.

    Attributes:
        annotation: its type.
        module: the module that defines it, which knows the names in the annotation.
        choices: the texts that its metadata allows; any if empty.
    """

    annotation: str
    module: str
    choices: tuple[str, ...] = ()


@lru_cache(maxsize=8)
def fields(where: str) -> Mapping[str, TrainerField]:
    """The fields of a dataclass and its bases, by name.

    Args:
        where: `module:class`, such as `trl.trainer.grpo_config:GRPOConfig`.

    Raises:
        LookupError: the module or class is not installed.
    """
    module, _, name = where.partition(":")
    node = class_of(module, name)
    inherited: dict[str, TrainerField] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := origin(base.id, module)):
            inherited |= fields(found)
    return inherited | dict(_own(node, module))


def mismatch(field: TrainerField, value: Any, choices: Iterable[str] = ()) -> str | None:
    """What is wrong with a value for a field, or `None` if it may do.

    Only what YAML can tell apart is checked: an enum is given by the text of a member, and an unknown annotation
    accepts anything.

    Args:
        field: the field.
        value: the recipe's value for it.
        choices: the texts that are allowed, where the field's class does not say it.
    """
    accepted: set[type] = set()
    allowed = [*field.choices, *choices]
    for alternative in field.annotation.split(" | "):
        types = _ACCEPTS.get(alternative.split("[", 1)[0])
        if types is None:
            if alternative == "Any" or "[" in alternative:
                return None
            types = (str,)
            allowed += _members(field.module, alternative)
        accepted.update(types)
    if type(value) not in accepted:
        given = "null" if value is None else f"{value!r} ({type(value).__name__})"
        return f"has to be {field.annotation}, not {given}"
    if allowed and isinstance(value, str) and value not in allowed:
        return f"{_UNKNOWN} {value!r}{nearest(value, allowed)}. Known: {', '.join(allowed)}"
    return None


def unknown_choice(field: TrainerField, value: Any) -> str | None:
    """What is wrong with an unknown value of a field that takes a few texts; `None` if nothing is."""
    fault = mismatch(field, value)
    return fault if isinstance(value, str) and fault is not None and fault.startswith(_UNKNOWN) else None


@lru_cache(maxsize=16)
def _members(module: str, name: str) -> tuple[str, ...]:
    """The texts of an enum that a module names; none for what is no enum, or cannot be found."""
    try:
        if (found := origin(name, module)) is None:
            return ()
        node = class_of(*found.split(":"))
    except LookupError:
        return ()
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return ()
    values = [statement.value for statement in node.body if isinstance(statement, ast.Assign)]
    return tuple(str(value.value) for value in values if isinstance(value, ast.Constant))


def trackers() -> tuple[str, ...]:
    """What `report_to` may name."""
    for node in _tree("transformers.integrations.integration_utils").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INTEGRATION_TO_CALLBACK":
            assert isinstance(node.value, ast.Dict)
            return tuple(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    raise LookupError("transformers lists its trackers elsewhere")


def schedule_arguments(schedule: str) -> tuple[str, ...]:
    """What `lr_scheduler_kwargs` may have for a schedule of the learning rate, such as `cosine_with_min_lr`."""
    body = _tree("transformers.optimization").body
    members = class_of("transformers.trainer_utils", "SchedulerType").body
    texts = {ast.unparse(m.targets[0]): m.value for m in members if isinstance(m, ast.Assign)}
    table = next(n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == _SCHEDULES)
    assert isinstance(table, ast.Dict)
    for key, function in zip(table.keys, table.values, strict=True):
        value = texts.get(ast.unparse(key).partition(".")[2]) if key is not None else None
        if isinstance(value, ast.Constant) and value.value == schedule:
            found = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == ast.unparse(function))
            return tuple(a.arg for a in found.args.args if a.arg not in _GIVEN)
    return ()


def _own(node: ast.ClassDef, module: str) -> Iterator[tuple[str, TrainerField]]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            if not annotation.startswith("ClassVar"):
                choices = tuple(_choices(statement.value))
                yield statement.target.id, TrainerField(annotation.replace("'", ""), module, choices)


def _choices(default: ast.expr | None) -> Iterator[str]:
    """What `field(metadata={"choices": […]})` lists."""
    for word in default.keywords if isinstance(default, ast.Call) else ():
        if word.arg == "metadata" and isinstance(word.value, ast.Dict):
            for key, value in zip(word.value.keys, word.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "choices" and isinstance(value, ast.List):
                    yield from ast.literal_eval(value)


@lru_cache(maxsize=8)
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def class_of(module: str, name: str) -> ast.ClassDef:
    """A class as its source has it.

    Raises:
        LookupError: the module is not installed, or has no such class.
    """
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"{module} has no class {name}")


def origin(name: str, module: str) -> str | None:
    """`module:class` that a name in a module refers to; `None` for names that are not imported at its top."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return f"{module}:{name}"
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            package = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, *([node.module] if node.module else [])])
            return _reexport(source, name)
    return None


def _reexport(module: str, name: str) -> str | None:
    """Follow a lazily importing package (transformers) to the module that defines the class."""
    path = _file(module)
    if path.name == "__init__.py":
        for candidate in (f"{module}.training_args", module):
            try:
                text = _file(candidate).read_text("utf-8")
            except LookupError:
                continue
            if f"class {name}(" in text or f"class {name}:" in text:
                return f"{candidate}:{name}"
        return None
    return f"{module}:{name}"


def _file(module: str) -> Path:
    package, *rest = module.split(".")
    path = folder(package).joinpath(*rest)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise LookupError(f"{module} is not installed")


def folder(package: str) -> Path:
    """Where a package is installed.

    Raises:
        LookupError: nowhere.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(f"{package} is not installed")
    return Path(spec.origin).parent
