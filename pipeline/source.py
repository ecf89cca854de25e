"""YAML that remembers where it came from: values with the file and line of each, and overrides on top.

Departures from plain YAML, each because it bit people: a key that stands twice is an error, `1e-6` is a number
(YAML 1.1 reads it as text), and `on`, `yes`, `no` and dates are text (YAML 1.1 converts them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as _Safe  # an eighth of the time
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as _Safe  # type: ignore[assignment]

Loc = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the root."""


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing that is wrong, where, and what would mend it.

    Attributes:
        where: file and line, such as `recipe.yaml:12`.
        loc: keys from the root, joined by dots; empty for the file as a whole.
        message: what is wrong, with the nearest valid name where there is one.
    """

    where: str
    loc: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.loc}: {self.message}" if self.loc else f"{self.where}: {self.message}"


class RecipeError(ValueError):
    """A recipe that cannot run. Carries every issue that was found, not only the first."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        self.issues = tuple(issues)
        super().__init__("\n".join(str(issue) for issue in issues))


@dataclass(slots=True)
class Source:
    """A YAML file as data, and the line of every value in it.

    Attributes:
        path: the file.
        data: its content; overrides are applied in place.
        lines: loc -> line number, from 1.
        overridden: locs that the command line has set, with the override's own text.
    """

    path: Path
    data: Any
    lines: dict[Loc, int]
    overridden: dict[Loc, str] = field(default_factory=dict)

    def issue(self, loc: Loc, message: str) -> Issue:
        """An issue at this place; falls back to the nearest enclosing value that has a line."""
        dotted = ".".join(str(part) for part in loc)
        for length in range(len(loc), -1, -1):
            if (text := self.overridden.get(loc[:length])) is not None:
                return Issue(f"override {text!r}", dotted, message)
            if (line := self.lines.get(loc[:length])) is not None:
                return Issue(f"{self.path}:{line}", dotted, message)
            if text := next((t for keys, t in self.overridden.items() if keys[:length] == loc[:length]), None):
                return Issue(f"override {text!r}", dotted, message)
        return Issue(str(self.path), dotted, message)

    def override(self, assignment: str) -> None:
        """Set one leaf: `stages.zero.trainer.learning_rate=5e-7`. The value is read as YAML; lists count from 0.

        Raises:
            RecipeError: not of the form key=value, or a key that leads through something that is no mapping.
        """
        dotted, equals, text = assignment.partition("=")
        if not equals or not dotted:
            raise RecipeError([Issue(f"override {assignment!r}", "", "an override reads a.b.c=value")])
        keys: list[str | int] = []
        here = self.data
        for key in dotted.split("."):
            keys.append(int(key) if isinstance(here, list) and key.isdecimal() else key)
            if len(keys) == dotted.count(".") + 1:
                break
            here = self._descend(here, keys, assignment)
        last: Any = keys[-1]
        if not isinstance(here, dict) and not (isinstance(here, list) and isinstance(last, int) and last < len(here)):
            raise RecipeError([Issue(f"override {assignment!r}", dotted, "there is no such place in the recipe")])
        try:
            here[last] = yaml.load(text, Loader=_Loader) if text else None
        except yaml.YAMLError as error:
            raise RecipeError([Issue(f"override {assignment!r}", dotted, f"not YAML: {_reason(error)}")]) from error
        self.overridden[tuple(keys)] = assignment

    @staticmethod
    def _descend(here: Any, keys: list[str | int], assignment: str) -> Any:
        key = keys[-1]
        if isinstance(here, dict):
            if here.get(key) is None:
                here[key] = {}
            return here[key]
        if isinstance(here, list) and isinstance(key, int) and key < len(here):
            return here[key]
        where = ".".join(map(str, keys))
        raise RecipeError([Issue(f"override {assignment!r}", where, "there is no such place in the recipe")])


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """`["path=data/gsm8k", "digits=2"]` as a mapping; values are read as YAML.

    Raises:
        RecipeError: not of the form key=value.
    """
    holder = Source(Path("options"), {}, {})
    for text in texts:
        holder.override(text)
    found: dict[str, Any] = holder.data
    return found


def read(path: Path) -> Source:
    """Read a YAML file.

    Raises:
        RecipeError: no such file, not YAML, or a key that stands twice; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Issue(str(path), "", f"cannot be read: {error}")]) from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        source = Source(path, None, {(): 1})
        if node is not None:
            _note_lines(node, (), source)  # before merge keys are unfolded in place
            source.data = _unshared(loader.construct_document(node))
    except RecursionError as error:
        raise RecipeError([Issue(str(path), "", "an alias stands within what it names")]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError([Issue(f"{path}:{line}", "", f"not YAML: {_reason(error)}")]) from error
    except yaml.YAMLError as error:
        raise RecipeError([Issue(str(path), "", f"not YAML: {_reason(error)}")]) from error
    finally:
        loader.dispose()
    return source


def _unshared(value: Any) -> Any:
    """A copy in which nothing stands at two places, as what an alias names does, so that overrides change one leaf."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _note_lines(node: yaml.Node, loc: Loc, source: Source) -> None:
    source.lines.setdefault(loc, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*loc, index), source)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first and name != "<<":
                message = f"the key {name!r} stands twice (first in line {first[name]})"
                raise RecipeError([Issue(f"{source.path}:{line}", ".".join(map(str, loc)), message)])
            first[name] = line
            source.lines[(*loc, name)] = line
            _note_lines(value, (*loc, name), source)


def _reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error)


class _Loader(_Safe):
    """PyYAML's safe loader with YAML 1.2's idea of numbers and booleans."""


_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*)?\.?\d[\d_]*([eE][-+]?\d+)|[-+]?(\d[\d_]*\.\d*|\.\d+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_OURS = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OURS]
    for first, resolvers in _Safe.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(rf"^(?:{_BOOL.pattern})$"), list("tTfF"))
