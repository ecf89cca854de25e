"""The fields of TRL's config classes, read from their source without importing them.

Importing `GRPOConfig` takes seconds (torch, transformers); a recipe with a misspelt field should fail at once. So the
dataclass and its bases are found on disk and parsed, and what is checked is always the installed version.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

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


@lru_cache(maxsize=8)
def fields(where: str) -> Mapping[str, str]:
    """Field names -> annotations of a dataclass and its bases.

    Args:
        where: `module:class`, such as `trl.trainer.grpo_config:GRPOConfig`.

    Raises:
        LookupError: the module or class is not installed.
    """
    module, _, name = where.partition(":")
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            inherited: dict[str, str] = {}
            for base in node.bases:
                if isinstance(base, ast.Name) and (origin := _origin(tree, base.id, module)):
                    inherited |= fields(origin)
            return inherited | dict(_own(node))
    raise LookupError(f"{module} has no class {name}")


def mismatch(annotation: str, value: Any) -> str | None:
    """What is wrong with the type of a value for a field, or `None` if it may do.

    Only what YAML can tell apart is checked: an enum's name is text, and an unknown annotation accepts anything.
    """
    accepted: set[type] = set()
    for alternative in annotation.split(" | "):
        types = _ACCEPTS.get(alternative.split("[", 1)[0])
        if types is None:
            if alternative == "Any" or "[" in alternative:
                return None
            types = (str,)  # an enum, given by name
        accepted.update(types)
    if type(value) in accepted:
        return None
    return f"wants {annotation}, not {value!r} ({type(value).__name__})"


def _own(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            if not annotation.startswith("ClassVar"):
                yield statement.target.id, annotation.replace("'", "")


def _origin(tree: ast.Module, name: str, module: str) -> str | None:
    """`module:class` that a name in a module refers to; `None` for names that are not imported at its top."""
    for node in tree.body:
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
            if f"class {name}(" in (text := _file(candidate).read_text("utf-8")) or f"class {name}:" in text:
                return f"{candidate}:{name}"
        return None
    return f"{module}:{name}"


def _file(module: str) -> Path:
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(f"{package} is not installed")
    path = Path(spec.origin).parent.joinpath(*rest)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise LookupError(f"{module} is not installed")
