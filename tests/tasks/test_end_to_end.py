"""From a plan to a curve: data of a foreign shape, of a hub and of a preset, each through `zero2r1 plan` and `run`.

The commands, the runner and the stages are the real ones. Only what a stage's process would spend on importing is
saved: it is forked from a server that has imported it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli import app
from pipeline.runner import starting
from tests.hub import Hub
from tests.stages.driving import PRELOAD

SUMS = [(a, b) for a in range(5) for b in range(5)]
FOREIGN = "{use: jsonl, path: sums.parquet, test_path: held.parquet, question: item.ask, answer: gold, template: plain}"
ON_HUB = "{use: hub, path: someone/sums, split: SPLIT, question: ask, answer: gold, template: plain, grader: exact}"
PRESET = "{use: deepmath, path: SPLIT.jsonl, template: plain}"
GRPO = """name: r
warm: false
track: [tensorboard]
stages:
  zero:
    kind: grpo
    model: MODEL
    tasks: [TRAIN]
    rewards: [accuracy]
    rollout: {max_tokens: 9}
    watch: {tasks: [TEST], every: 1, samples: 2, max_tokens: 9, temperature: 1.0}
    keep: best
    trainer: {max_steps: 2, num_generations: 4, per_device_train_batch_size: 8, gradient_accumulation_steps: 1}
"""
SFT = """name: r
warm: false
track: [tensorboard]
stages:
  zero:
    kind: sft
    model: MODEL
    data: [{from: {hub: someone/chats}}]
    watch: {tasks: [TEST], every: 1, samples: 2, max_tokens: 9, temperature: 1.0}
    keep: best
    trainer: {max_steps: 2, per_device_train_batch_size: 8, bf16: false, learning_rate: 1.0e-3}
"""


class Forked:
    """A stage's process, forked instead of started: what the runner uses of `subprocess.Popen`."""

    def __init__(self, process: Any) -> None:
        self.process, self.pid, self.stdin = process, process.pid, None

    def poll(self) -> int | None:
        self.process.join(0)
        return self.process.exitcode  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("stage", timeout or 0)
        return int(self.process.exitcode)


def spawn(words: Sequence[str], env: Mapping[str, str], log: Path) -> Forked:
    """In place of `starting._spawn`."""
    from huggingface_hub import constants

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, "pipeline.sampling.sampler"])
    hub = (constants.ENDPOINT, constants.HF_HUB_CACHE)
    process = context.Process(target=_stage, args=(list(words), dict(env), log, hub))
    process.start()
    return Forked(process)


def _stage(words: list[str], env: dict[str, str], log: Path, hub: tuple[str, str]) -> None:
    import datasets
    from huggingface_hub import constants

    from pipeline.runner import worker

    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    endpoint, constants.HF_HUB_CACHE = hub
    constants.ENDPOINT = datasets.config.HF_ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    datasets.config.HF_DATASETS_CACHE = Path(constants.HF_HUB_CACHE).parent / "datasets"
    with log.open("ab") as sink:
        for stream in (1, 2):
            os.dup2(sink.fileno(), stream)
    worker.main(words[words.index("pipeline.runner.worker") + 1 :])


def command(*words: str) -> str:
    handler = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(app, [*words])
    signal.signal(signal.SIGTERM, handler)
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return done.output


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(case: str, folder: Path, hub: Hub) -> tuple[str, str, str]:
    """The data of a case; returns its recipe, and its tasks for training and for held-out scores."""
    if case == "a Parquet file of a foreign shape":
        for name, part in (("sums", SUMS), ("held", SUMS[::2])):
            rows = [{"item": {"ask": f"{a} + {b} =", "no": 7}, "gold": [a + b], "more": None} for a, b in part]
            parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        return GRPO, FOREIGN, FOREIGN
    if case == "a hub":
        asked = [{"ask": f"{a} + {b} =", "gold": a + b} for a, b in SUMS]
        hub.add("someone/sums", {"train.jsonl": lines(asked), "test.jsonl": lines(asked[::2])})
        said = [
            {"prompt": f"User: {a} + {b} =\nAssistant:\n", "completion": f"<answer> {a + b} </answer>"}
            for a, b in SUMS[1::2]
        ]
        hub.add("someone/chats", {"train.jsonl": lines(said)})
        return SFT, "", ON_HUB.replace("SPLIT", "test")
    for split, part in (("train", SUMS), ("test", SUMS[::2])):
        rows = [
            {"question": f"{a} + {b} =", "final_answer": f"${a + b}$", "difficulty": 1.0, "topic": "x"} for a, b in part
        ]
        (folder / f"{split}.jsonl").write_bytes(lines(rows))
    test = PRESET.replace("SPLIT", "test").replace("}", ", test_share: 0.9, name: held}")
    return GRPO, PRESET.replace("SPLIT", "train"), test


@pytest.mark.parametrize("case", ["a Parquet file of a foreign shape", "a hub", "a preset"])
def test_from_a_plan_to_a_curve_of_held_out_scores(
    case: str, hub: Hub, calculator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(starting, "_spawn", spawn)
    recipe, train, test = write(case, tmp_path, hub)
    path, run = tmp_path / "recipe.yaml", tmp_path / "runs" / "r"
    path.write_text(recipe.replace("MODEL", str(calculator)).replace("TRAIN", train).replace("TEST", test))
    where = (str(path), "--runs", str(tmp_path / "runs"))
    (planned,) = json.loads(command("plan", *where, "--json"))
    assert (planned["stage"], planned["state"]) == ("zero", "new")
    command("run", *where, "--json")

    artifact = artifacts.current(run)["zero"]
    assert artifact is not None
    events = [json.loads(line) for line in (artifact.path / "events.jsonl").read_text().splitlines()]
    (name,) = {key for event in events for key in event if key.startswith("watch/") and key.endswith("/pass@1")}
    curve = {event["step"]: event[name] for event in events if name in event}
    assert list(curve) == [0, 1, 2] and curve[0] > 0.2, "two answers in three of the untrained model are right"
    for event in (event for event in events if name in event):
        n, low, high = (event[name.replace("pass@1", part)] for part in ("n", "low", "high"))
        assert n >= 10 and low <= event[name] <= high
    metrics = artifact.manifest["metrics"]
    best = max((step for step in curve if step), key=lambda step: (curve[step], -step))
    assert (metrics["published_step"], metrics["best_score"]) == (best, curve[best])
    assert (artifact.path / "model" / "model.safetensors").is_file()

    mirrored = EventAccumulator(str(run / "track" / "tensorboard"))
    mirrored.Reload()
    assert {scalar.step: scalar.value for scalar in mirrored.Scalars(f"zero/{name}")} == pytest.approx(curve)
    assert name.removeprefix("watch/").removesuffix("/pass@1") in (run / "report.html").read_text()
    assert json.loads(command("plan", *where, "--json"))[0]["state"] == "fresh"
