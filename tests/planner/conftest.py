"""The recipe that is planned, and the data that it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.planner.plans import RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    row = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2" * 1000}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 50)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"
