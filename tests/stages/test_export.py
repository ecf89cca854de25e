"""A folder to hand out: the weights, and a card that says how they came to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.stages.registry import run_function
from tests.stages.driving import context_of

SCORES = {
    "sampling": {"engine": "transformers", "temperature": 0.6, "seed": 0},
    "scores": {
        "base": {"chain/test": {"n": 400, "samples": 4, "pass@1": 0.1, "low": 0.05, "high": 0.15}},
        "zero": {
            "chain/test": {
                "n": 400,
                "samples": 4,
                "pass@1": 0.5,
                "low": 0.45,
                "high": 0.55,
                "pass@k": 0.75,
                "tokens": 12.6,
            }
        },
    },
}


def publish(run: Path, stage: str, kind: str, inputs: dict[str, str], **extra: Any) -> Path:
    """An artifact in a run's folder, as the runner publishes it; its fingerprint is the stage's name over and over."""
    fingerprint = (stage * 64)[:64]
    folder = run / "stages" / stage / fingerprint[:12]
    folder.mkdir(parents=True)
    config = {"kind": kind, "after": [], "launch": {}, "seed": 0, **extra.pop("config", {})}
    manifest = {"stage": stage, "kind": kind, "fingerprint": fingerprint, "config": config, "seconds": 61.2}
    manifest |= {"inputs": {name: (name * 64)[:64] for name in inputs}, "metrics": {}, **extra}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_card_tells_lineage_recipe_and_scores(tmp_path: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    publish(tmp_path, "base", "import_model", {}, config={"model": "Qwen/Qwen2.5-0.5B"})
    zero = publish(tmp_path, "zero", "grpo", {"base": ""}, config={"model": "@base", "trainer": {"max_steps": 9}})
    (zero / "model").symlink_to(base / "model")
    score = publish(tmp_path, "score", "evaluate", {"zero": ""}, metrics=SCORES)
    config = {
        "kind": "export",
        "model": "@zero",
        "scores": ["@score"],
        "license": "apache-2.0",
        "dtype": "bfloat16",
        "shard_size": "1MB",
        "description": "A model that thinks.",
    }
    context = context_of(tmp_path, "release", config, {"zero": zero, "score": score})
    run_function("export")(context)
    folder = context.output / "model"
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["base_model"]) == ("apache-2.0", "Qwen/Qwen2.5-0.5B")
    assert card.index("| base | import_model |") < card.index("| zero | grpo |")
    assert "`zerozerozero`" in card
    assert "max_steps: 9" in card
    assert "| zero | chain/test | 400 | 4 | 50.0% (45.0% to 55.0%) | 75.0% | - | 13 |" in card
    assert "\n# zero\n" in card  # by the model's name, as in tables, and its own scores alone
    assert "| base | chain/test |" not in card
    assert "temperature 0.6" in card
    assert "A model that thinks." in card
    assert str(tmp_path) not in card
    exported = AutoModelForCausalLM.from_pretrained(folder)
    assert exported.dtype == torch.bfloat16
    original = AutoModelForCausalLM.from_pretrained(base / "model", dtype=torch.bfloat16)
    for (name, weight), other in zip(exported.named_parameters(), original.parameters(), strict=True):
        assert weight.equal(other), name
    assert (
        AutoTokenizer.from_pretrained(folder).chat_template
        == AutoTokenizer.from_pretrained(base / "model").chat_template
    )


def test_a_card_without_a_score_of_its_own_says_so(tmp_path: Path, base: Path) -> None:
    zero = publish(tmp_path, "dev1", "sft", {})
    (zero / "model").symlink_to(base / "model")
    score = publish(tmp_path, "score", "evaluate", {"zero": ""}, metrics=SCORES)
    config = {"kind": "export", "model": "@dev1", "scores": ["@score"], "name": "my-model"}
    context = context_of(tmp_path, "release", config, {"dev1": zero, "score": score})
    run_function("export")(context)
    card = (context.output / "model" / "README.md").read_text()
    assert "\n# my-model\n" in card and "## Scores" not in card
    assert "scores: score has not scored dev1, so the card shows nothing of it" in context.events.read_text()


def test_the_command_makes_the_folders_above_its_own(tmp_path: Path, calculator: Path) -> None:
    target = tmp_path / "models" / "sums"
    done = CliRunner().invoke(app, ["export", str(calculator), str(target)])
    assert done.exit_code == 0, done.output
    assert (target / "config.json").is_file()
    assert f"\n# {calculator.name}\n" in (target / "README.md").read_text()
    assert [path.name for path in target.parent.iterdir()] == ["sums"]
    done = CliRunner().invoke(app, ["export", str(calculator), str(target / "config.json" / "sums")])
    assert done.exit_code == 2
    assert done.stderr == f"zero2r1: the folder {target / 'config.json'} cannot be made: File exists\n"
