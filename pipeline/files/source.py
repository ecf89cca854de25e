"""YAML that remembers where it came from: values with the file and line of each, and overrides on top.

Departures from plain YAML, each because it bit people: a key that stands twice is an error, `1e-6` is a number
(YAML 1.1 reads it as text), and `on`, `yes`, `no` and dates are text (YAML 1.1 converts them). How much a file may
hold is bounded before anything is built from it: a few aliases of aliases are enough for a thousand million values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.schema.environment import shown

try:
    from yaml import CSafeLoader as _Safe  # an eighth of the time
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as _Safe  # type: ignore[assignment]

Loc = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the root."""

MAX_BYTES = 4 * 2**20
"""Largest file: a thousand times a long recipe."""
MAX_VALUES = 50_000
"""Most keys and values, each alias counted as all that it stands for: 30 MB in memory, a third of a second."""
MAX_DEPTH = 100
"""Deepest nesting: libyaml recurses in C, where too deep a file ends the process."""
BRIEF = 240
"""Characters of a value, a key or a path in a message."""
MAX_DIGITS = 18
"""Longest whole number: no setting takes one beyond 64 bits, and Python reads 4,300 digits at most."""
_RESERVED = ("@", "`")
"""Characters that no plain text begins with in YAML."""
_LONG_NUMBER = re.compile(rf"[-+]?[0-9][0-9_]{{{MAX_DIGITS},}}")


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
        where, loc = brief(self.where), brief(self.loc)
        return f"{where}: {loc}: {self.message}" if self.loc else f"{where}: {self.message}"


def brief(text: str) -> str:
    """A text that people are to read in one line: of a long one, its beginning and its end."""
    return text if len(text) <= BRIEF else f"{text[: BRIEF // 2]}…{text[-BRIEF // 2 :]}"


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
        beneath: loc of a mapping -> that of the one whose values hold where it has none of its own.
    """

    path: Path
    data: Any
    lines: dict[Loc, int]
    overridden: dict[Loc, str] = field(default_factory=dict)
    beneath: dict[Loc, Loc] = field(default_factory=dict)

    def issue(self, loc: Loc, message: str) -> Issue:
        """An issue at this place, or where its value comes from; falls back to the nearest enclosing value that has a
        line."""
        loc = self._origin(loc)
        dotted = ".".join(str(part) for part in loc)
        for length in range(len(loc), -1, -1):
            if (text := self.overridden.get(loc[:length])) is not None:
                return Issue(f"override {text!r}", dotted, message)
            if (line := self.lines.get(loc[:length])) is not None:
                return Issue(f"{self.path}:{line}", dotted, message)
            if text := next((t for keys, t in self.overridden.items() if keys[:length] == loc[:length]), None):
                return Issue(f"override {text!r}", dotted, message)
        return Issue(str(self.path), dotted, message)

    def by_override(self, loc: Loc) -> bool:
        """Whether a value comes from the command line, by itself or within a larger one."""
        loc = self._origin(loc)
        return self._written(loc) and any(loc[:length] in self.overridden for length in range(1, len(loc) + 1))

    def _origin(self, loc: Loc) -> Loc:
        """Where a value is written: there, or beneath."""
        if self._written(loc):
            return loc
        inner = (under + loc[len(over) :] for over, under in self.beneath.items() if loc[: len(over)] == over)
        return next((other for other in inner if self._written(other)), loc)

    def _written(self, loc: Loc) -> bool:
        here = self.data
        try:
            for key in loc:
                here = here[key]
        except (KeyError, IndexError, TypeError):
            return False
        return True

    def override(self, assignment: str) -> None:
        """Set one leaf: `stages.zero.trainer.learning_rate=5e-7`. The value is read as YAML; lists count from 0.

        Raises:
            RecipeError: not of the form key=value, or a key that leads through something that is no mapping.
        """
        dotted, equals, text = assignment.partition("=")
        assignment = shown(assignment)
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
            here[last] = _parsed(text)
        except _UnfitError as error:
            raise RecipeError([Issue(f"override {assignment!r}", dotted, str(error))]) from error
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
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError([Issue(str(path), "", f"cannot be read: {error}")]) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError([Issue(f"{path}:{line}", "", f"is not UTF-8: save the file as UTF-8 ({error})")]) from error
    if len(raw) > MAX_BYTES:
        raise RecipeError([Issue(str(path), "", f"is larger than {MAX_BYTES:,} bytes: that is not a recipe")])
    source = Source(path, None, {(): 1})
    try:
        source.data = _parsed(text, lambda node: _note_lines(node, (), source))
    except _UnfitError as error:
        raise RecipeError([Issue(f"{path}:{error.line}" if error.line else str(path), "", str(error))]) from error
    return source


class _UnfitError(ValueError):
    """Text that is not YAML, or too much of it.

    Attributes:
        line: where, from 1; 0 for the text as a whole.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def _parsed(text: str, see: Callable[[yaml.Node], None] = lambda node: None) -> Any:
    """The data of a YAML text; `see` is shown its root before merge keys are unfolded in place.

    Raises:
        _UnfitError: not YAML, or more than what is allowed here.
    """
    loader = _Loader(text)
    try:
        _bound(yaml.parse(text, Loader=_Loader))
        node = loader.get_single_node()
        if node is None:
            return None
        see(node)
        return _unshared(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        read = text.splitlines()[line : line + 1]
        tabbed = any("\t" in one[: len(one) - len(one.lstrip())] for one in read)
        reason = "the line begins with a tab: indent with spaces" if tabbed else _reason(error)
        if read and mark and read[0][mark.column : mark.column + 1] in _RESERVED:
            reason = f'put what begins with {read[0][mark.column]} into quotes, such as "@base"'
        raise _UnfitError(f"not YAML: {reason}", line + 1) from error
    except yaml.reader.ReaderError as error:
        before = text[: int(error.position)]
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise _UnfitError(f"not YAML: it holds the character U+{code:04X}", before.count("\n") + 1) from error
    except yaml.YAMLError as error:
        raise _UnfitError(f"not YAML: {_reason(error)}") from error
    except (RecipeError, _UnfitError):
        raise
    except (ValueError, OverflowError, TypeError, KeyError) as error:  # what a tag asks for, such as `!!int twelve`
        raise _UnfitError(f"not YAML: {error}") from error
    finally:
        loader.dispose()


def _bound(events: Iterable[yaml.Event]) -> None:
    """Count what a text stands for, without building it.

    Raises:
        _UnfitError: it is nested too deeply, is too much, or holds an alias within what that names.
    """
    known: dict[str, tuple[int, int] | None] = {}  # anchor -> values and depth; `None` while it is still being read
    inside: list[tuple[str | None, int, int]] = [(None, 0, 0)]  # collections being read: anchor, values, depth
    for event in events:
        line = event.start_mark.line + 1 if event.start_mark else 0
        if (tag := getattr(event, "tag", None)) is not None and tag not in _TAGS:
            raise _UnfitError(f"recipes have no tags: leave {tag.replace('tag:yaml.org,2002:', '!!')} out", line)
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, 1, 1))
            if event.anchor is not None:
                known[event.anchor] = None
            found = (0, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, *both = inside.pop()
            found = (both[0], both[1])
            if anchor is not None:
                known[anchor] = found
        elif isinstance(event, yaml.AliasEvent):
            alias = known.get(event.anchor or "", (1, 0))  # an unknown one is told when values are built
            if alias is None:
                raise _UnfitError("an alias stands within what it names", line)
            found = alias
        elif isinstance(event, yaml.ScalarEvent):
            if event.implicit[0] and _LONG_NUMBER.fullmatch(event.value):
                raise _UnfitError(f"a number of {len(event.value):,} digits: {MAX_DIGITS} are the most", line)
            found = (1, 0)
            if event.anchor is not None:
                known[event.anchor] = found
        else:
            continue
        anchor, size, depth = inside[-1]
        inside[-1] = anchor, size + found[0], max(depth, found[1] + 1)
        if size + found[0] > MAX_VALUES:
            raise _UnfitError(f"holds more than {MAX_VALUES:,} values, each alias counted as all it stands for", line)
        if len(inside) + found[1] > MAX_DEPTH:
            raise _UnfitError(f"is nested more than {MAX_DEPTH} deep", line)


def size(value: Any) -> int:
    """How many keys and values some data holds."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(size, value.values()))
    return 1 + sum(map(size, value)) if isinstance(value, list) else 1


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


_REASONS = {"but found another document": "a recipe is one document: take out the second, and the line --- before it"}


def _reason(error: yaml.YAMLError) -> str:
    reason = str(getattr(error, "problem", None) or error)
    return _REASONS.get(reason, reason)


class _Loader(_Safe):
    """PyYAML's safe loader with YAML 1.2's idea of numbers and booleans."""


_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*(\.\d[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+|[-+]?(\d[\d_]*\.\d*|\.\d+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")} | {"!"}
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_OURS = {"tag:yaml.org,2002:float", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OURS]
    for first, resolvers in _Safe.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(rf"^(?:{_BOOL.pattern})$"), list("tTfF"))
