"""Planted collapses: each raises its alarm within five steps, stops or goes back as asked, and `why` names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli import app
from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.records import kept
from pipeline.stages.registry import run_function
from pipeline.training import checkpoints
from pipeline.training.grpo.sampling import Sampled, TrlSampler
from pipeline.training.health.alarm import HealthError, RollbackError, go_back
from pipeline.why import finding
from tests.stages.driving import context_of
from tests.training.planting import RATE, explained, learning, sums

KINDS = {"zero": "grpo", "score": "evaluate"}
Planted = Callable[..., StageContext[Any]]


@pytest.fixture(scope="module")
def planted(calculator: Path, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Makes the context of a stage that learns sums, with other fields; what an earlier process of it left is there."""
    folder = tmp_path_factory.mktemp("planted")
    sums(folder)

    def make(name: str, health: dict[str, Any], rate: float = RATE, steps: int = 5, **fields: Any) -> StageContext[Any]:
        return learning(folder, calculator, name, health, rate, steps, **fields)

    return make


def notes(context: StageContext[Any]) -> list[dict[str, Any]]:
    """What a stage has told, beside numbers."""
    return [event for event in map(json.loads, context.events.read_text().splitlines()) if "note" in event]


def weights(context: StageContext[Any]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(context.output / "model" / "model.safetensors")
    return found


def test_a_stage_that_goes_back_is_one_with_a_lower_learning_rate(planted: Planted) -> None:
    """128 times the rate ruins the policy with the first step: back to the beginning, with a 128th.

    What comes of it equals, to the bit, a stage that had the lower rate from the beginning.
    """
    health = {"on_alarm": "rollback", "rollback_lr": 1 / 128, "patience": 1}
    run = run_function("grpo")
    context = planted("back", health, rate=128 * RATE)
    with pytest.raises(RollbackError, match=r"Rollback 1 of 3: back to the beginning of the stage, and"):
        run(context)
    assert kept.pending(context.scratch) == 1
    assert not (context.output / "model").exists()
    context = planted("back", health, rate=128 * RATE)
    assert run(context).metrics["rollbacks"] == 1
    assert not kept.pending(context.scratch)
    straight = planted("straight", {})
    run(straight)
    told, wanted = weights(context), weights(straight)
    assert all(torch.equal(told[name], wanted[name]) for name in wanted)
    first = notes(context)[0]
    assert (first["alarm"], first["then"]) == ("entropy_rise", "rollback")
    assert (first["rollback_to"], first[kept.ROLLBACK]) == (0, 1)
    assert first["step"] <= 5 and first["value"] > first["limit"]

    (folder,) = (context.scratch / kept.KEPT).glob("step-*")
    assert durable.damage_of(folder, kept.RECORD) == {}
    record = durable.read_record(folder / kept.RECORD)
    assert record["checkpoint"] is None and record["batches"] == [1, 2] and record["learning_rate"] == 128 * RATE
    held = load_file(folder / "batch-1.rank-0.safetensors")
    rows = [json.loads(line) for line in (folder / "batch-1.rank-0.jsonl").read_text().splitlines()]
    assert len(rows) == 32 and all(row["rewards"]["accuracy"] == row["rewards"]["reward"] for row in rows)
    counted = held["0/mask_BC"].bool()
    assert held["0/trainer_BC"][counted].isfinite().all() and held["0/trainer_BC"][~counted].isnan().all()
    assert all(row["completion"].startswith(("<think>", "<answer>")) for row in rows), "before anything was learnt"

    found = explained(context)
    assert found["cause"] == "learning rate" and found["replayed_step"] == 1
    assert found["conclusion"].startswith("Learning rate: with learning rate / 10")
    as_it_was, *changes = found["changes"]
    assert as_it_was["symptom"] and as_it_was["numbers"]["entropy"] == pytest.approx(record["history"][0]["entropy"])
    assert as_it_was["numbers"]["grad_norm"] == pytest.approx(record["history"][0]["grad_norm"], rel=1e-4)
    assert as_it_was["numbers"]["entropy_after"] > first["limit"]
    gone = {change["change"]: change["symptom"] is False for change in changes}
    assert gone["learning rate / 100"] and not gone["questions without the template"]


def test_a_stage_stops_once_it_has_gone_back_often_enough(planted: Planted) -> None:
    """A verifier that pays everything does so at any learning rate."""
    run, health = run_function("grpo"), {"on_alarm": "rollback", "rollbacks": 1, "patience": 1}
    paid = {"rewards": ["pays.py:pays", {"use": "accuracy", "weight": 0}]}
    with pytest.raises(RollbackError):
        run(planted("paid", health, **paid))
    context = planted("paid", health, **paid)
    with pytest.raises(
        HealthError, match=r"alarm after step 1: 100% .* pays everything.*has gone back 1 times"
    ) as told:
        run(context)
    assert not isinstance(told.value, RollbackError)
    assert [note["then"] for note in notes(context)] == ["rollback", "stop"]
    assert notes(context)[0]["alarm"] == "dead_groups"

    found = explained(context)
    assert found["cause"] == "verifier"
    right = found["changes"][0]["numbers"]["accuracy"]
    assert f"The reward is 1 on average, and the tasks' own graders say {right:.3g}." in found["conclusion"]
    (graders,) = (change for change in found["changes"] if change["change"] == "the tasks' own graders alone")
    assert graders["symptom"] is False and graders["numbers"]["dead_groups"] < 0.9


def test_an_update_that_leaves_nothing_to_learn_from_is_named(planted: Planted) -> None:
    """A thousand times the rate: from the second step on all groups fail, which their own batch cannot explain."""
    context = planted("ruined", {"on_alarm": "stop", "patience": 1}, rate=1000 * RATE)
    with pytest.raises(HealthError, match="alarm after step 2: 100% of the groups teach nothing"):
        run_function("grpo")(context)
    found = explained(context)
    assert (found["cause"], found["replayed_step"]) == ("learning rate", 1)
    assert found["conclusion"].startswith("Learning rate: with learning rate / 1000, moved is ")


def test_what_was_there_before_any_update_is_blamed_on_none(planted: Planted) -> None:
    health, paid = {"on_alarm": "stop", "patience": 1}, {"rewards": ["varied.py:varied"], "rollout": {"max_tokens": 3}}
    context = planted("cut", health, **paid)
    (context.base / "varied.py").write_text("def varied(completion):\n    return float(len(completion))\n")
    with pytest.raises(HealthError, match="alarm after step 1: 1 of the completions are cut off"):
        run_function("grpo")(context)
    found = explained(context)
    assert found["cause"] is None
    told = "which no update stands before: it is in how the model that the stage began with samples. Raise rollout.max"
    assert told in found["conclusion"]


def test_a_template_is_not_blamed_for_what_a_high_rate_has_done(planted: Planted) -> None:
    """Questions without their template are surprising: an update on them takes the policy further than before."""
    context = planted(
        "longer", {"on_alarm": "stop"}, 10 * RATE, 8, rewards=["long.py:long"], rollout={"max_tokens": 40}
    )
    (context.base / "long.py").write_text("def long(completion):\n    return len(completion) / 10\n")
    with pytest.raises(HealthError, match="the policy's entropy is"):
        run_function("grpo")(context)
    found = explained(context)
    assert found["cause"] == "learning rate" and "template" not in found["conclusion"]
    bare = next(change for change in found["changes"] if change["change"] == "questions without the template")
    assert bare["numbers"]["kl"] == pytest.approx(0, abs=1e-3), "before an update, the policy is its own reference"


def test_groups_of_equal_completions_are_told_with_the_temperature(planted: Planted) -> None:
    cold = {"max_tokens": 10, "temperature": 0.02}
    context = planted("cold", {"on_alarm": "stop", "patience": 1}, rollout=cold)
    with pytest.raises(HealthError, match="alarm after step 1: 100% of the groups teach nothing"):
        run_function("grpo")(context)
    found = explained(context)
    assert found["cause"] is None
    assert (
        "in 100% of the groups all completions are the same: raise rollout.temperature, which is 0.02"
        in (found["conclusion"])
    )


class Rounded(TrlSampler):
    """An engine in another precision; it says what it thinks of what it has sampled."""

    scored, precision = True, "float8"

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight as the engine holds it."""
        if self.precision != "float8" or weight.dim() < 2:
            return weight
        scale = float(weight.abs().max()) / 448
        return (weight / scale).to(torch.float8_e4m3fn).float() * scale

    def extra(self, problems: list[Any]) -> Sampled:
        """See `Sampler`."""
        sampled = super().extra(problems)
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        engine = LlamaForCausalLM(model.config).eval()
        engine.load_state_dict({name: self.rounded(weight) for name, weight in model.state_dict().items()})
        engine.to(torch.float32 if self.precision == "float8" else getattr(torch, self.precision))
        logprobs = []
        for prompt, completion in zip(sampled.prompt_ids, sampled.completion_ids, strict=True):
            ids = torch.tensor([prompt + completion])
            every = engine(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            logprobs.append(every.gather(1, ids[0, len(prompt) :, None]).flatten().tolist())
        return replace(sampled, logprobs=logprobs)


@pytest.mark.parametrize("precision", ["float8", "bfloat16"])
def test_an_engine_in_the_wrong_precision(planted: Planted, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual threshold finds it, as the trainer computes in float32."""
    monkeypatch.setattr(Rounded, "precision", precision)
    monkeypatch.setattr("pipeline.stages.grpo.sampler", lambda context, args: Rounded)
    context = planted(f"in-{precision}", {"on_alarm": "stop", "patience": 2})
    with pytest.raises(
        HealthError, match=r"alarm after step 2: 0\.\d+ nats lie between the engine's log-probabilities"
    ):
        run_function("grpo")(context)
    found = explained(context)
    assert found["cause"] == "engine precision" and found["replayed_step"] == 1
    assert f"log-probabilities are those of a model in {precision} " in found["conclusion"]


def test_what_cannot_be_replayed_is_told_in_a_line(tmp_path: Path) -> None:
    run, fingerprint = tmp_path / "run", "0" * 64
    run.mkdir()
    stages = [{"name": name, "kind": kind, "fingerprint": fingerprint} for name, kind in KINDS.items()]
    artifacts.write_run_record(run, {"stages": stages}, "")
    folder = artifacts.scratch(run, "zero", fingerprint) / kept.KEPT

    def says(stage: str, *options: str) -> str:
        done = CliRunner().invoke(app, ["why", f"{run}@{stage}", *options])
        assert done.exit_code == 2 and done.output.startswith("zero2r1: ") and done.output.count("\n") == 1
        return done.output

    (tmp_path / "file.yaml").touch()
    for name in (tmp_path / "file.yaml", tmp_path / "nothing"):
        done = CliRunner().invoke(app, ["why", f"{name}@zero"])
        assert done.exit_code == 2 and str(name) in done.output and done.output.count("\n") == 1
    assert "has no stage 'zeros' (did you mean 'zero'?). Stages: zero, score" in says("zeros")
    assert "is of kind evaluate, which trains nothing" in says("score")
    assert "nothing is kept of stage 'zero': no alarm was raised in it; `health: {}`" in says("zero")
    step = folder / "step-000004"
    step.mkdir(parents=True)
    durable.seal(step, kept.RECORD, step=4, checkpoint=2, batches=[3], alarms=[])
    assert "no alarm after step 7 was kept; those after steps 4 were" in says("zero", "--step", "7")
    assert "the checkpoint before the symptom is gone or damaged" in says("zero")
    checkpoint = folder / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "optimizer_0").mkdir()
    durable.seal(checkpoint, "complete")
    assert "Set `fsdp_state_dict_type: FULL_STATE_DICT`" in says("zero")
    (checkpoint / "optimizer_0").rename(checkpoint / "global_step2")
    durable.seal(checkpoint, "complete")
    assert "DeepSpeed has written it in its own format" in says("zero")
    (checkpoint / "global_step2").rmdir()
    assert f"has no optimizer.pt, which one process would replay from: {checkpoint}: `trainer.save_only_" in says(
        "zero"
    )
    (step / kept.RECORD).write_text("{")
    assert "this batch cannot be replayed" in says("zero")


def test_the_checkpoint_before_a_symptom_outlives_the_rotation_and_is_gone_back_to(planted: Planted) -> None:
    """The rate grows with every step; the policy falls apart after some, and the alarm waits for two more."""
    health = {"on_alarm": "rollback", "rollback_lr": 0.001, "patience": 3, "entropy_rise": 4.0}
    schedule = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 100}
    fields = planted("grows", health).config.trainer | schedule | {"learning_rate": 0.2, "max_steps": 12}
    context = planted("grows", health, trainer=fields)
    with pytest.raises(RollbackError, match=r"back to the checkpoint after step \d"):
        run_function("grpo")(context)
    (back,) = kept.rollbacks(context.scratch)
    assert 0 < back["to"] < back["began"] - 1 and back["step"] == back["began"] + 2
    assert checkpoints.step_of(checkpoints.by_step(context.checkpoints)[-1]) > back["to"], "rotated away"
    again = planted("grows", health, trainer=fields)
    assert run_function("grpo")(again).metrics["rollbacks"] == 1
    steps = [event["step"] for event in map(json.loads, again.events.read_text().splitlines()) if "loss" in event]
    assert steps == [*range(1, back["step"] + 1), *range(back["to"] + 1, 13)]


@pytest.mark.parametrize("dies_after", [0, 1, 2, 3])
def test_going_back_can_be_interrupted_anywhere(tmp_path: Path, dies_after: int, monkeypatch: Any) -> None:
    """What a killed process left half done, the next one does."""
    context = planted_folders(tmp_path)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None),
        args=SimpleNamespace(learning_rate=1.0),
    )
    calls, whole = [], shutil.rmtree

    def dying(path: Path, **kwargs: Any) -> None:
        calls.append(path)
        if len(calls) > dies_after:
            raise KeyboardInterrupt
        whole(path, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dying)
        try:
            go_back(context, trainer)
        except KeyboardInterrupt:
            assert kept.pending(context.scratch)
    trainer.args.learning_rate = 1.0
    go_back(context, trainer)
    assert [path.name for path in checkpoints.by_step(context.checkpoints)] == ["checkpoint-2"]
    assert checkpoints.newest(context.checkpoints) is not None
    assert trainer.args.learning_rate == 0.5 and not kept.pending(context.scratch)


def planted_folders(folder: Path) -> StageContext[Any]:
    """A stage that is to go back to step 2, whose checkpoint was rotated away, and has later ones."""
    config = {"kind": "grpo", "model": "m", "tasks": ["chain"], "health": {"on_alarm": "rollback"}}
    context = context_of(folder, "zero", config, {})
    for path in (
        context.scratch / kept.KEPT / "checkpoint-2",
        *(context.checkpoints / f"checkpoint-{n}" for n in (5, 6)),
    ):
        path.mkdir(parents=True)
        (path / "weights").write_text(path.name)
        durable.seal(path, checkpoints.MARK)
    kept.write_rollbacks(context.scratch, [{"step": 6, "to": 2, "done": False}])
    return context


@pytest.mark.parametrize(
    ("moved", "cures"),
    [(0.01, True), (0.9, True), (39.0, False), (1000.0, False)],
    ids=["little", "less", "far", "more"],
)
def test_a_change_by_which_the_update_still_ruins_the_policy_cures_nothing(moved: float, cures: bool) -> None:
    """Its entropy may lie below the limit all the same, as on questions without their template."""
    health = SimpleNamespace(health=SimpleNamespace(kl=1.0))
    before, after = {finding.MOVED: 247.0}, {finding.MOVED: moved}
    assert finding._Explained._upsets(health, after, before) is not cures  # type: ignore[arg-type]
