"""Which layers of a model an adapter's fields name, by PEFT's rules; a field that names none would have no effect.

The layers are names alone: `model.layers.0.self_attn.q_proj`, of stacks of experts
`model.layers.3.mlp.experts.down_proj`. So this is asked before a run, of a model's files, and again by the stage, of
the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.schema.adapter import ALL, AdapterSpec, matches_nothing
from pipeline.schema.pieces import Fault

_STACK = ".experts."
_NUMBER = re.compile(r".*?\.[^.]*\.(\d+)\.")
PATTERNS = ("rank_pattern", "alpha_pattern")


def is_stack(name: str) -> bool:
    """Whether a name is that of a stack of experts, as far as a name tells."""
    return _STACK in name


def narrowed(spec: AdapterSpec, names: Sequence[str]) -> list[str]:
    """Those of the names that `exclude_modules`, `layers_to_transform` and `layers_pattern` leave."""
    numbers = _numbers(spec)
    kept = [name for name in names if not _excluded(spec.options.get("exclude_modules"), name)]
    return kept if numbers is None else [name for name in kept if _number(spec, name) in numbers]


def faults(spec: AdapterSpec, layers: Sequence[str], stacks: Sequence[str]) -> Iterator[Fault]:
    """Fields that name layers which are not there, or leave none, or that stacks of experts cannot have.

    Args:
        spec: the adapter.
        layers: names of all layers that can carry one, stacks included, without the head.
        stacks: those of `layers` that are stacks of experts.
    """
    for excluded in _listed(spec.options.get("exclude_modules")):
        rule = excluded if isinstance(spec.options["exclude_modules"], str) else [excluded]
        if not any(_excluded(rule, name) for name in layers):
            told = matches_nothing(excluded, layers, "exclude_modules", isinstance(rule, str))
            yield ("exclude_modules",), f"{excluded!r} {told}"
    if wrong := list(_of_numbers(spec, layers)):
        yield from wrong
        return
    chosen = narrowed(spec, [name for name in layers if _targeted(spec, name)])
    if layers and not chosen:
        fields = " and ".join(name for name in ("exclude_modules", "layers_to_transform") if name in spec.options)
        yield ("targets",), f"{fields or 'targets'} leave no layer to carry an adapter: name others"
        return
    for field in PATTERNS:
        for key in spec.options.get(field) or {}:
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in chosen):
                yield (field, key), f"{key!r} {matches_nothing(key, chosen, field)}"
    dropped = "dropout" if spec.dropout else "use_dora" if spec.options.get("use_dora") else ""
    if dropped and set(stacks) & set(chosen):
        names = ", ".join(sorted({name.rpartition(".")[2] for name in chosen if name not in stacks}))
        yield (dropped,), f"stacks of experts cannot have it: leave it out, or set targets: [{names}]"


def _of_numbers(spec: AdapterSpec, layers: Sequence[str]) -> Iterator[Fault]:
    numbers = _numbers(spec)
    if numbers is None:
        return
    if isinstance(spec.targets, str) and spec.targets != ALL:
        yield ("layers_to_transform",), "it goes with targets as a list: write the numbers into the regular expression"
        return
    there = {number for name in layers if (number := _number(spec, name)) is not None}
    if not there:
        yield ("layers_to_transform",), "no layer has a number there (layers_pattern): leave layers_pattern out"
    elif absent := sorted(set(numbers) - there):
        yield ("layers_to_transform",), f"there is no layer {absent[0]}: the model's are {min(there)} to {max(there)}"


def _targeted(spec: AdapterSpec, name: str) -> bool:
    if spec.targets == ALL:
        return True
    if isinstance(spec.targets, str):
        return re.fullmatch(spec.targets, name) is not None
    targets = [target for target in spec.targets if "." in target or not is_stack(name)]
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _excluded(excluded: Any, name: str) -> bool:
    if isinstance(excluded, str):
        return bool(excluded) and re.fullmatch(excluded, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in excluded or ())


def _numbers(spec: AdapterSpec) -> list[int] | None:
    numbers = spec.options.get("layers_to_transform")
    if numbers is None or numbers == []:
        return None
    return [numbers] if isinstance(numbers, int) else list(numbers)


def _number(spec: AdapterSpec, name: str) -> int | None:
    patterns = _listed(spec.options.get("layers_pattern"))
    matches = [re.match(rf"(?:^|.*?\.){one}\.(\d+)\.", name) for one in patterns] or [_NUMBER.match(name)]
    found = next((match for match in matches if match is not None), None)
    return None if found is None else int(found[1])
