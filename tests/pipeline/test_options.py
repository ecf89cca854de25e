"""What options of rewards and corpora may name: stages, files beside the recipe, and anything else as it is."""

from __future__ import annotations

from pathlib import Path

from pipeline.stages.base import StageConfig, StageContext


def test_options_name_stages_and_files_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "models" / "judge").mkdir(parents=True)
    (tmp_path / "runs" / "rm" / "model").mkdir(parents=True)
    context = StageContext(
        name="zero",
        config=StageConfig(kind="grpo"),
        inputs={"rm": tmp_path / "runs" / "rm"},
        output=tmp_path,
        scratch=tmp_path,
        base=tmp_path,
        seed=0,
        events=tmp_path / "events.jsonl",
    )
    text = "a/b " * 3000  # could be no path: far too long
    options = {"model": "models/judge", "of": ["@rm", {"hub": "deepseek-ai/DeepSeek-V3"}], "prompt": text, "n": 3}
    assert context.resolved(options) == {
        "model": str((tmp_path / "models" / "judge").resolve()),
        "of": [str(tmp_path / "runs" / "rm" / "model"), {"hub": "deepseek-ai/DeepSeek-V3"}],
        "prompt": text,
        "n": 3,
    }
    assert context.resolved({"of": "~no-such-user/x", "at": "nul/\0"}) == {"of": "~no-such-user/x", "at": "nul/\0"}
