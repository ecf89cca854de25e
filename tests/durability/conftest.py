"""What the campaign's tests share: a base model, and what each stage comes to when nothing happens to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.durability.driving import STAGES, outcome, prepare, run_through


@dataclass(frozen=True)
class Bench:
    """A folder with data and a base model.

    Attributes:
        shared: the folder.
        untouched: what each stage comes to.
    """

    shared: Path
    untouched: dict[str, Any]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Every stage, run once without a disturbance."""
    shared = tmp_path_factory.mktemp("bench")
    prepare(shared)
    for name, config in STAGES.items():
        run_through(shared, config, [shared / "whole" / name])
    return Bench(shared, {name: outcome(shared / "whole" / name) for name in STAGES})
