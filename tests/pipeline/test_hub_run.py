"""A whole run on data sets of a hub: planned, run, and described by what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub

RECIPE = """name: r
stages:
  rates: {{kind: pass_rate, model: {model}, samples: 2, rollout: {{max_tokens: 8}}, tasks: [{task}]}}
  taught:
    kind: sft
    model: {model}
    data: [{{from: {{hub: someone/chats}}}}]
    dedup: true
    trainer: {{max_steps: 1, per_device_train_batch_size: 2, bf16: false}}
  score: {{kind: evaluate, model: "@taught", samples: 1, rollout: {{max_tokens: 8}}, tasks: [{test}]}}
"""
MAPPED = "question: ask, answer: gold.value, template: plain, grader: exact"


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def command(folder: Path, hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *words], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_run_reads_one_commit_and_says_which(calculator: Path, tmp_path: Path) -> None:
    asked = [{"ask": f"{a} + {b} =", "gold": {"value": a + b}} for a in range(5) for b in range(5)]
    chats = [{"prompt": f"User: {n} + 1 =\nAssistant:", "completion": f" <answer> {n + 1} </answer>"} for n in range(3)]
    leaked = {"prompt": "User: 4 + 4 =\nAssistant:\n\n4 + 4 =", "completion": " <answer> 8 </answer>"}
    with Hub() as hub:
        sums = hub.add("someone/sums", {"train.jsonl": lines(asked[:20]), "test.jsonl": lines(asked[20:])})
        said = hub.add("someone/chats", {"train.jsonl": lines([*chats, chats[0], leaked])})
        task, test = (f"{{use: hub, path: someone/sums, split: {split}, {MAPPED}}}" for split in ("train", "test"))
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=calculator, task=task, test=test))
        runs = ("--runs", str(tmp_path / "runs"))
        done = command(tmp_path, hub, "run", str(recipe), *runs, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        manifests = {
            path.parent.parent.name: json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("manifest.json")
        }
        assert manifests["rates"]["config"]["tasks"][0]["options"]["revision"] == sums
        assert manifests["taught"]["config"]["data"][0]["from"]["revision"] == said
        assert manifests["rates"]["metrics"]["problems"] == 20
        assert list(manifests["score"]["metrics"]["scores"]["taught"]) == ["sums/test"]
        metrics = manifests["taught"]["metrics"]
        assert (metrics["examples"], metrics["contaminated"], metrics["duplicates"]) == (3, 1, 1)
        (left_out,) = (tmp_path / "runs").rglob("stages/taught/*/left_out.jsonl")
        reasons = {row["reason"]: row for row in map(json.loads, left_out.read_text().splitlines())}
        assert reasons["contaminated"]["question"] == leaked["prompt"]
        assert reasons["duplicate"]["place"].endswith("row 4")
        assert "problems by the share" in (tmp_path / "runs" / "r" / "report.html").read_text().lower()

        hub.add("someone/chats", {"train.jsonl": lines(chats)})
        planned = command(tmp_path, hub, "plan", str(recipe), *runs, "--json")
        states = {stage["stage"]: (stage["state"], stage["reason"]) for stage in json.loads(planned.stdout)}
        assert (states["rates"][0], states["taught"][0]) == ("fresh", "stale")
        assert f'data.0.from.revision "{said[:30]}' in states["taught"][1]
        refused = command(tmp_path, hub, "run", str(recipe), *runs, "stages.taught.data.0.from.hub=someone/else")
        assert refused.returncode != 0 and "Traceback" not in refused.stderr
        assert "data set someone/else: there is none of that name" in refused.stderr
    offline = command(tmp_path, hub, "plan", str(recipe), *runs, "--json")
    states = {stage["stage"]: stage["state"] for stage in json.loads(offline.stdout)}
    assert states["rates"] == "fresh", "the commit that was found last is known without a network"
