"""What options of rewards and corpora may name: stages, files beside the recipe, and anything else as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.context import StageContext
from pipeline.schema.pieces import StageConfig


@pytest.fixture
def context(tmp_path: Path) -> StageContext[StageConfig]:
    (tmp_path / "models" / "judge").mkdir(parents=True)
    (tmp_path / "runs" / "rm" / "model").mkdir(parents=True)
    return StageContext(
        name="zero",
        config=StageConfig(kind="grpo"),
        inputs={"rm": tmp_path / "runs" / "rm"},
        output=tmp_path,
        scratch=tmp_path,
        base=tmp_path,
        seed=0,
        events=tmp_path / "events.jsonl",
    )


def test_options_name_stages_and_files_beside_the_recipe(context: StageContext[StageConfig], tmp_path: Path) -> None:
    text = "a/b " * 3000  # could be no path: far too long
    options = {"model": "models/judge", "of": ["@rm", {"hub": "deepseek-ai/DeepSeek-V3"}], "prompt": text, "n": 3}
    assert context.resolved(options) == {
        "model": str((tmp_path / "models" / "judge").resolve()),
        "of": [str(tmp_path / "runs" / "rm" / "model"), {"hub": "deepseek-ai/DeepSeek-V3"}],
        "prompt": text,
        "n": 3,
    }
    (tmp_path / "own.py").touch()
    named = {"correct": "own.py:brevity", "graders": {"sums": {"use": "other.py:f"}}}
    own = f"{(tmp_path / 'own.py').resolve()}:brevity"
    assert context.resolved(named) == {"correct": own, "graders": {"sums": {"use": "other.py:f"}}}
    assert context.resolved({"of": "~no-such-user/x", "at": "nul/\0"}) == {"of": "~no-such-user/x", "at": "nul/\0"}


def test_a_tilde_is_the_home_folder(
    context: StageContext[StageConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "models"))
    judge = str((tmp_path / "models" / "judge").resolve())
    assert context.model_path("~/judge") == judge
    assert context.model_path("~nobody/judge") == "~nobody/judge"
    assert context.data_path("~/rows.jsonl") == (tmp_path / "models" / "rows.jsonl").resolve()
    assert context.resolved({"model": "~/judge"}) == {"model": judge}
