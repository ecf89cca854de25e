"""Held-out scores while a stage trains: they change no weight, the best weights are published, and training may end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.context import StageContext
from pipeline.records import kept
from pipeline.sampling.scores import UnjudgedError
from pipeline.stages.registry import run_function
from pipeline.training.held_out.fields import StopSpec
from pipeline.training.held_out.looks import Looks
from tests.stages.driving import context_of

TASKS = """
from pathlib import Path

from pipeline.tasks.base import Problem, Task

class Sums(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem(f"{a}-{b}", f"{a} + {b} =", str(a + b)) for a in range(5) for b in range(5)]

class HeldOut(Task):
    grader = "exact"

    def problems(self, split, n=None, seed=0):
        return [Problem(f"{a}-{b}", f"{a} + {b} =", str(a + b)) for a in range(4) for b in range(3)]

class Flaky(HeldOut):
    grader = "tasks.py:flaky"

def flaky(completion, answer):
    down = Path(__file__).with_name("down").exists()
    return None if down else float(f"<answer> {answer} " in completion)

def wrong(completion):
    return float("<answer> 0" in completion) + len(set(completion.split())) / 20
"""
ROWS = [
    {"prompt": f"User: {a} + {b} =\nAssistant:\n", "completion": f"<answer> {(a + b + 3) % 9} </answer>"}
    for a in range(5)
    for b in range(5)
]
HELD_OUT = {"use": "tasks.py:HeldOut", "name": "sums"}
WATCH: dict[str, Any] = {"tasks": [HELD_OUT], "every": 2, "max_tokens": 9, "samples": 2, "temperature": 1.0}
CONSTANT = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}, "bf16": False, "logging_steps": 1}
TRAINER = {**CONSTANT, "max_steps": 5, "save_steps": 2, "learning_rate": 1e-2}
GROUPS = {**CONSTANT, "max_steps": 5, "save_steps": 2, "learning_rate": 1e-2, "gradient_accumulation_steps": 1}
GROUPS |= {"num_generations": 4, "per_device_train_batch_size": 8, "beta": 0.0}
SFT = {"kind": "sft", "data": ["rows.jsonl"], "trainer": TRAINER, "decontaminate": []}
GRPO = {"kind": "grpo", "tasks": ["tasks.py:Sums"], "rewards": ["tasks.py:wrong"], "decontaminate": []}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {**SFT, "adapter": {"dropout": 0.1}},
    "grpo": {**GRPO, "rollout": {"max_tokens": 9, "temperature": 1.2}, "trainer": GROUPS},
}
PASS = "watch/sums/test/pass@1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def ran(folder: Path, name: str, model: Path, stage: dict[str, Any], **fields: Any) -> Any:
    """The context of a stage that has run, and its metrics."""
    context = context_of(folder, name, {**stage, "model": str(model), **fields}, {})
    return context, run_function(stage["kind"])(context).metrics


def published(context: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(context.output / "model" / "model.safetensors")
    return found


def equal(one: Any, other: Any) -> bool:
    weights = published(other)
    return all(torch.equal(tensor, weights[name]) for name, tensor in published(one).items())


def looks(context: Any) -> dict[int, dict[str, Any]]:
    events = map(json.loads, context.events.read_text().splitlines())
    return {event["step"]: event for event in events if PASS in event}


@pytest.mark.parametrize("kind", STAGES)
def test_looking_changes_no_weight(calculator: Path, folder: Path, kind: str) -> None:
    plain, _ = ran(folder, "plain", calculator, STAGES[kind])
    seen, metrics = ran(folder, "seen", calculator, STAGES[kind], watch=WATCH)
    assert equal(plain, seen)
    found = looks(seen)
    assert sorted(found) == [0, 2, 4, 5], "before the first step, every second one, and after the last"
    for event in found.values():
        assert event["watch/sums/test/n"] == 12
        assert event["watch/sums/test/low"] <= event[PASS] <= event["watch/sums/test/high"]
    assert found[0][PASS] > 0.3, "two answers in three of the untrained model are right"
    assert metrics["held_out"]["sums/test"]["pass@1"] == found[5][PASS]
    assert metrics["published_step"] == 5


def test_answers_end_where_the_watch_says(calculator: Path, folder: Path) -> None:
    """A stage that samples nothing has no `rollout` to say it; where there is one, the watch's own counts."""
    cut = {**WATCH, "stop": "<answer>"}
    one = {**TRAINER, "max_steps": 1}
    seen, _ = ran(folder, "seen", calculator, SFT, watch=cut, trainer=one)
    rolled = {**STAGES["grpo"], "rollout": {"max_tokens": 9, "stop": ["</answer>"]}, "trainer": {**GROUPS, **one}}
    sampled, _ = ran(folder, "sampled", calculator, rolled, watch=cut)
    for context in (seen, sampled):
        assert looks(context)[0][PASS] == 0.0, "nothing is answered before `<answer>`"


def test_the_best_weights_are_published_and_training_ends_early(calculator: Path, folder: Path) -> None:
    """What it is taught is wrong, so every look is worse than the one before."""
    steps = {**TRAINER, "max_steps": 20}
    chosen = {"watch": WATCH, "keep": "best", "stop": {"patience": 2}, "trainer": steps}
    kept, metrics = ran(folder, "kept", calculator, SFT, **chosen)
    scores = {step: event[PASS] for step, event in looks(kept).items()}
    best = max(sorted(scores)[1:], key=scores.__getitem__)
    assert sorted(scores)[-1] == best + 2 * WATCH["every"] == metrics["steps"] < steps["max_steps"]
    assert metrics["published_step"] == best
    assert metrics["best_score"] == scores[best]
    assert metrics["kept_by"] == "sums/test/pass@1"
    assert metrics["stopped_early"].startswith("sums/test/pass@1: no score above")
    (note,) = [event["note"] for event in map(json.loads, kept.events.read_text().splitlines()) if "note" in event]
    assert note.startswith(f"training ends after step {best + 4}: sums/test/pass@1: no score above")
    short, _ = ran(folder, "short", calculator, SFT, trainer={**steps, "max_steps": best})
    assert equal(kept, short)


class _KilledError(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class _Doomed(StageContext[Any]):
    """A stage that is killed when it tells of a step."""

    last_step: int = 0

    def log(self, step: int, total: int | None = None, **metrics: float | int | str) -> None:
        super().log(step, total, **metrics)
        if step >= self.last_step and "loss" in metrics:
            raise _KilledError


@pytest.mark.parametrize(("kind", "step"), [("sft", 5), ("grpo", 7)])
def test_killed_and_resumed_it_publishes_the_same_best_weights(
    calculator: Path, folder: Path, kind: str, step: int
) -> None:
    """The best look may be younger than the last checkpoint, or older."""
    config = {**STAGES[kind], "model": str(calculator), "watch": {**WATCH, "every": 1}, "keep": "best"}
    config["trainer"] = {**config["trainer"], "max_steps": 8, "save_steps": 3, "learning_rate": 1e-3}
    whole = context_of(folder, "whole", config, {})
    expected = run_function(config["kind"])(whole).metrics
    broken = context_of(folder, "broken", config, {})
    with pytest.raises(_KilledError):
        run_function(config["kind"])(_Doomed(**vars(broken), last_step=step))
    found = run_function(config["kind"])(broken).metrics
    assert {name: found[name] for name in ("published_step", "best_score", "held_out")} == {
        name: expected[name] for name in ("published_step", "best_score", "held_out")
    }
    assert equal(whole, broken)
    assert {s: e[PASS] for s, e in looks(broken).items()} == {s: e[PASS] for s, e in looks(whole).items()}


def test_problems_that_are_watched_are_not_learnt(calculator: Path, folder: Path) -> None:
    stage = {key: value for key, value in STAGES["grpo"].items() if key != "decontaminate"}
    context, metrics = ran(folder, "clean", calculator, stage, watch={**WATCH, "problems": 50})
    assert metrics["contaminated"] == 12
    assert metrics["problems"] == 13
    notes = [event["note"] for event in map(json.loads, context.events.read_text().splitlines()) if "note" in event]
    assert notes == ["watch: sums/test has 12 problems, not 50: all are taken"]


@pytest.mark.parametrize(
    ("fields", "scores", "reason"),
    [
        ({"patience": 2}, [0.3, 0.5, 0.5], None),
        ({"patience": 2}, [0.5, 0.5, 0.5], "no score above 0.500 in 2 looks"),
        ({"patience": 1}, [0.1, 0.2, 0.3], None),
        ({"above": 0.8}, [0.8], None),
        ({"above": 0.8}, [0.1, 0.81], "0.810 is above 0.8"),
        ({"below": 0.2, "patience": 9}, [0.5, 0.1], "0.100 is below 0.2"),
        ({"below": 0.2}, [], None),
    ],
)
def test_when_training_ends(fields: dict[str, Any], scores: list[float], reason: str | None) -> None:
    assert StopSpec.model_validate(fields).reason(scores) == reason


@dataclasses.dataclass(frozen=True)
class _Down(StageContext[Any]):
    """A stage whose grader judges nothing at the look after the second step."""

    def log(self, step: int, total: int | None = None, **metrics: float | int | str) -> None:
        super().log(step, total, **metrics)
        if "loss" in metrics:
            down = self.base / "down"
            down.touch() if step == 1 else down.unlink(missing_ok=True)


def test_a_look_that_could_not_be_judged_is_told_and_training_goes_on(calculator: Path, folder: Path) -> None:
    flaky = {"use": "tasks.py:Flaky", "name": "sums"}
    config = {**SFT, "model": str(calculator), "watch": {**WATCH, "tasks": [flaky], "every": 1}, "keep": "best"}
    config |= {"stop": {"patience": 3}, "trainer": {**TRAINER, "max_steps": 4}}
    plain = context_of(folder, "flaky", config, {})
    context = _Down(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)})
    metrics = run_function("sft")(context).metrics
    assert sorted(looks(context)) == [0, 1, 3, 4]
    assert metrics["published_step"] == 1 and metrics["best_score"] == looks(context)[1][PASS]
    events = [json.loads(line) for line in context.events.read_text().splitlines()]
    assert [event["watch/sums/test/unjudged"] for event in events if "watch/sums/test/unjudged" in event] == [24]
    (note,) = [event["note"] for event in events if "note" in event]
    assert note.startswith("watch: sums/test has no score after step 2: not one sample could be judged")
    (folder / "down").touch()
    with pytest.raises(UnjudgedError, match="watch: sums/test: not one sample could be judged"):
        run_function("sft")(context_of(folder, "down-at-once", config, {}))


def test_best_weights_stay_for_the_checkpoint_that_an_alarm_goes_back_to(calculator: Path, folder: Path) -> None:
    """The two newest checkpoints have a better look behind them; the one that is guarded has not."""
    config = {**SFT, "model": str(calculator), "watch": WATCH, "keep": "best"}
    context = context_of(folder, "guarded", config, {})
    history = [{"step": step, PASS: score} for step, score in ((0, 0.9), (1, 0.5), (2, 0.4), (3, 0.6), (4, 0.2))]
    for place, step in ((context.scratch / kept.KEPT, 2), (context.checkpoints, 3), (context.checkpoints, 4)):
        checkpoint = place / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"log_history": history[: step + 1]}))
    told = Looks.__new__(Looks)
    told.context, told.kept_by = context, ("sums/test", "pass@1")
    assert set(told._needed()) == {1, 3}
