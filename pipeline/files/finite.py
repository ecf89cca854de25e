"""Weights on disk that are NaN or infinite: no stage publishes them, wherever they came from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES_SHOWN = 3


def check(folder: Path) -> None:
    """Make sure that every weight of a model is finite.

    Args:
        folder: with safetensors files; others are not looked at.

    Raises:
        ValueError: some are not; the message names file, weight and how many.
    """
    found = list(not_finite(folder))
    if found:
        more = f", and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
        raise ValueError(f"weights that are not finite: {', '.join(found[:NAMES_SHOWN])}{more}")


def not_finite(folder: Path) -> Iterator[str]:
    """Each tensor with a number that is not finite: its name, how many of its numbers, and its file.

    Infinity alone is none in a single number without axes, which some models keep as a bound that never binds.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and tensor.numel() and not _fine(tensor):
                    bad = int((~_readable(tensor).isfinite()).sum())
                    yield f"{name} ({bad} of {tensor.numel()} numbers) in {path.name}"


def _fine(tensor: Any) -> bool:
    smallest, largest = _readable(tensor).aminmax()  # one pass over memory; NaN comes through
    if tensor.dim() == 0:
        return not bool(largest.isnan())
    return bool(smallest.isfinite() and largest.isfinite())


def _readable(tensor: Any) -> Any:
    """The same in a type that torch compares: 8-bit types are only stored."""
    return tensor if tensor.element_size() > 1 else tensor.bfloat16()
