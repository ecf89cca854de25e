"""Longer training: with more steps asked for, a stage goes on from what is there, and ends where the long one does."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import artifacts, recipe
from pipeline.commands.checkpoint_names import find
from pipeline.commands.display import PlainObserver
from pipeline.runner import graph, longer, runner
from pipeline.schema.longer import why_anew
from pipeline.stages.registry import config_class, run_function
from pipeline.training.checkpoints import KEEP_STATE
from tests.stages.driving import TINY, context_of
from tests.stages.test_watch import ROWS, STAGES, TASKS, WATCH, equal

FIRST, SECOND = "a" * 64, "b" * 64
"""Fingerprints of the short stage and of the long one."""
SHORT, LONG = 5, 8


class Run:
    """A run's folder with one stage, driven by hand."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        (folder / "tasks.py").write_text(TASKS)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def of(self, fingerprint: str, **length: float) -> tuple[Any, dict[str, Any]]:
        """The context and the identity of the stage with this length."""
        config = {**self.config, "trainer": {**self.config["trainer"], **length}}
        made = context_of(self.folder, f"zero-{fingerprint[:4]}", config, {})
        scratch = artifacts.scratch(self.folder, "zero", fingerprint)
        identity = {"kind": config["kind"], "config": json.loads(made.config.model_dump_json(by_alias=True))}
        return dataclasses.replace(made, scratch=scratch, events=scratch / "events.jsonl"), identity


LENGTHS = {
    "sft": ({"max_steps": SHORT}, {"max_steps": LONG}),
    "epochs": ({"num_train_epochs": 1}, {"num_train_epochs": 2}),
    "grpo": ({"max_steps": SHORT}, {"max_steps": LONG}),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_the_long_training_is_the_one_that_was_asked_for_at_once(calculator: Path, tmp_path: Path, kind: str) -> None:
    """Its looks are those of the long one, too: the short one has looked after its last step, which is none of them."""
    short, long = LENGTHS[kind]
    stage = {**STAGES["grpo" if kind == "grpo" else "sft"], "model": str(calculator)}
    trainer = {name: value for name, value in stage["trainer"].items() if name not in ("max_steps", "save_steps")}
    if kind != "epochs":
        stage |= {"watch": {**WATCH, "every": 3}, "keep": "best"}
    run = Run(tmp_path, {**stage, "trainer": {**trainer, "save_steps": 100}})
    context, identity = run.of(FIRST, **short)
    context.scratch.mkdir(parents=True)
    longer.remember(context.scratch, identity)
    steps = run_function(stage["kind"])(context).metrics["steps"]
    longer.keep(tmp_path, "zero", FIRST)
    assert not context.scratch.exists()

    context, identity = run.of(SECOND, **long)
    found = longer.find(tmp_path, "zero", context.config, identity)
    assert found is not None
    (name,) = short
    assert str(found) == f"trainer.{name} {short[name]} → {long[name]}; goes on from step {steps}"
    longer.take_over(found, context.scratch)
    metrics = run_function(stage["kind"])(context).metrics
    longer.remember(context.scratch, identity)
    longer.keep(tmp_path, "zero", SECOND)
    again = longer.find(tmp_path, "zero", context.config, identity)
    assert again is not None
    assert str(again) == f"what it published is gone or broken; goes on from step {metrics['steps']}"
    longer.take_over(again, context.scratch)
    assert (context.scratch / KEEP_STATE).exists(), "a still longer training can go on from it"
    logged = [json.loads(line) for line in context.events.read_text().splitlines()]
    assert [event["step"] for event in logged if "loss" in event] == list(range(1, metrics["steps"] + 1)), "none twice"

    whole, _ = run.of("c" * 64, **long)
    whole.scratch.mkdir(parents=True)
    expected = run_function(stage["kind"])(whole).metrics
    assert equal(whole, context)
    same = ("steps", "published_step", "held_out", "best_score", "loss_last")
    assert {name: metrics.get(name) for name in same} == {name: expected.get(name) for name in same}


CONSTANT = {"lr_scheduler_type": "constant", "max_steps": 10}


@pytest.mark.parametrize(
    ("kind", "fields", "trainer", "before", "step", "words"),
    [
        ("sft", {}, {"max_steps": 10}, {"max_steps": 5}, 5, "the schedule cosine_with_min_lr follows the number of"),
        ("grpo", {}, {"max_steps": 10}, {"max_steps": 5}, 5, None),
        ("grpo", {}, {"max_steps": 10}, {}, 5, "one has max_steps and the other has not"),
        ("grpo", {}, {"num_train_epochs": 3}, {}, 5, None),
        ("grpo", {}, {"num_train_epochs": 1}, {"num_train_epochs": 2}, 5, "num_train_epochs is smaller"),
        ("grpo", {}, {"max_steps": 4}, {"max_steps": 9}, 3, None),
        ("grpo", {}, {"max_steps": 4}, {"max_steps": 9}, 6, "max_steps is smaller, and there is no checkpoint of bef"),
        ("grpo", {"rollout": {"max_staleness": 1}}, {"max_steps": 9}, {"max_steps": 5}, 5, "rollouts are sampled 1 ah"),
        ("grpo", {"rollout": {"max_staleness": 1}}, {"max_steps": 9}, {"max_steps": 5}, 3, None),
        ("sft", {}, {**CONSTANT, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3}, CONSTANT, 5, None),
        (
            "sft",
            {},
            {**CONSTANT, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1},
            CONSTANT,
            5,
            "shar",
        ),
        ("sft", {"mtp": {}}, CONSTANT, CONSTANT, 5, "the weight of the prediction blocks changes"),
        ("sft", {"mtp": {"final_weight": 0.3}}, CONSTANT, CONSTANT, 5, None),
    ],
)
def test_where_it_would_not_be_exact_it_says_why(
    kind: str, fields: dict[str, Any], trainer: dict[str, Any], before: dict[str, Any], step: int, words: str | None
) -> None:
    data = {"data": ["rows.jsonl"]} if kind == "sft" else {"tasks": ["chain"]}
    config: Any = config_class(kind).model_validate({"kind": kind, "model": "m", **data, **fields, "trainer": trainer})
    found = why_anew(config, before, step)
    assert found is None if words is None else found is not None and words in found


def test_without_a_state_it_starts_anew_and_says_so(calculator: Path, tmp_path: Path) -> None:
    stage = {**STAGES["grpo"], "model": str(calculator), "keep_state": False}
    run = Run(tmp_path, stage)
    context, identity = run.of(FIRST, max_steps=1)
    context.scratch.mkdir(parents=True)
    longer.remember(context.scratch, identity)
    run_function("grpo")(context)
    assert not (context.scratch / KEEP_STATE).exists()
    longer.keep(tmp_path, "zero", FIRST)
    assert context.scratch.exists(), "it is not kept"
    context, other = run.of(SECOND, max_steps=2)
    found = longer.find(tmp_path, "zero", context.config, other)
    assert found is not None and found.anew == "no complete checkpoint is left"
    context, other = run.of("d" * 64, max_steps=2, learning_rate=0.5)
    assert longer.find(tmp_path, "zero", context.config, other) is None, "more than the length differs"


@pytest.mark.slow
def test_a_run_with_more_steps_goes_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"name: x\nstages:\n  base:\n    kind: pretrain\n    model: {json.dumps(TINY)}\n"
        "    vocabulary: {kind: words}\n    corpus: {use: chain, documents: 60}\n    length: 16\n"
        "    trainer: {max_steps: 3, lr_scheduler_type: constant, save_steps: 100, logging_steps: 1}\n"
    )

    def ran(steps: int) -> tuple[Any, str]:
        console = Console(file=io.StringIO(), width=200)
        loaded = recipe.load(tmp_path / "recipe.yaml", [f"stages.base.trainer.max_steps={steps}"])
        (step,) = graph.plan(graph.build(loaded), tmp_path / "run")
        done = runner.execute(loaded, tmp_path / "run", PlainObserver(console)).artifacts["base"]
        return done, step.reason

    short, _ = ran(3)
    (entry,) = artifacts.record(tmp_path / "run")["stages"]
    assert find(tmp_path / "run", entry, "last").name == "step-3", "what is kept has a name"
    long, reason = ran(6)
    assert reason == "trainer.max_steps 3 → 6; goes on from step 3"
    assert short.path.is_dir()
    events = [json.loads(line) for line in (long.path / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "loss" in event] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in (tmp_path / "run" / longer.STATES).iterdir()] == [f"base-{long.path.name}"]
