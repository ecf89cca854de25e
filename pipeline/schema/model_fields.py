"""What `from_pretrained` takes for a kind of model, read from transformers' source without importing it.

A model takes the arguments of `from_pretrained` and the settings of its config; any other one is a `TypeError`, when
the model is loaded. Importing a config class takes five seconds, so the classes are parsed: those that are installed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache

from pipeline.schema.trainer_fields import class_of, folder, origin

_LOADER, _LOADS = "transformers.modeling_utils", "from_pretrained"
_RENAMED = "attribute_map"
_TAKEN = ("kwargs.pop", "kwargs.get", "kwargs.setdefault")


@lru_cache(maxsize=8)
def arguments(model_type: str) -> frozenset[str] | None:
    """The names that `from_pretrained` takes for a model; `None` if transformers has no such kind of model.

    Args:
        model_type: what `config.json` says, such as `qwen2`.

    Raises:
        LookupError: transformers is not installed, or keeps `from_pretrained` elsewhere.
    """
    if (config := _config_class(model_type)) is None:
        return None
    return frozenset(name for name in (*_of_loader(), *_settings(config)) if not name.startswith("_"))


def _config_class(model_type: str) -> str | None:
    """`module:class` of the config of a model."""
    models = folder("transformers") / "models"
    for path in sorted(models.glob("*/configuration_*.py")):
        if f'model_type = "{model_type}"' not in (text := path.read_text(encoding="utf-8")):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef) and any(_says(line, model_type) for line in node.body):
                return f"transformers.models.{path.parent.name}.{path.stem}:{node.name}"
    return None


def _says(line: ast.stmt, model_type: str) -> bool:
    return isinstance(line, ast.Assign) and ast.unparse(line) == f"model_type = {model_type!r}"


def _of_loader() -> Iterator[str]:
    """Arguments of `from_pretrained`: those that it lists, and those that it takes out of the others."""
    loads = next(
        node
        for node in class_of(_LOADER, "PreTrainedModel").body
        if isinstance(node, ast.FunctionDef) and node.name == _LOADS
    )
    yield from (argument.arg for argument in loads.args.args[2:])
    for node in ast.walk(loads):
        yield from _taken_out(node)
        if isinstance(node, ast.For) and isinstance(node.iter, ast.List):
            yield from _texts(node.iter.elts)


def _settings(where: str) -> Iterator[str]:
    """Names that a config has: those of its class and of the classes that it inherits from."""
    module, _, name = where.partition(":")
    node = class_of(module, name)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id
        elif isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == _RENAMED:
            yield from _texts(list(ast.walk(line.value)))
        elif isinstance(line, ast.Assign):
            yield from (ast.unparse(target) for target in line.targets)
        elif isinstance(line, ast.FunctionDef) and any(ast.unparse(by) == "property" for by in line.decorator_list):
            yield line.name
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self":
            yield inner.attr
        yield from _taken_out(inner)
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := origin(base.id, module)):
            yield from _settings(found)


def _taken_out(node: ast.AST) -> Iterator[str]:
    """The name of an argument that is taken out of `**kwargs`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in _TAKEN:
        yield from _texts(node.args[:1])


def _texts(nodes: Sequence[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
