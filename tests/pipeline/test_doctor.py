"""The doctor finds what it is there for, and says what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands import doctor
from pipeline.commands.doctor import Finding, Level
from pipeline.recipe import load
from pipeline.records.dead_groups import EQUAL, FAILED

TURNS = "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ end }}{% endfor %}"


def of(findings: Iterable[Finding], subject: str) -> Finding:
    """The finding about a subject; there is one."""
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def test_this_environment_is_fine() -> None:
    findings = list(doctor.environment())
    assert [finding for finding in findings if finding.level is Level.ERROR] == []
    assert {"python", "torch", "trl"} <= {finding.subject for finding in findings}


@pytest.mark.parametrize(
    ("installed", "said"),
    [({}, "not installed; zero2r1 needs trl"), ({"trl": "0.9.0"}, "0.9.0 is installed; zero2r1 needs ==1.16")],
)
def test_a_package_of_another_version_is_an_error(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], said: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "version", version)
    found = of(doctor.environment(), "trl")
    assert found.level is Level.ERROR
    assert found.message.startswith(said)


def test_on_a_gpu_the_packages_for_it_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    versions = {"vllm": "0.26.0"}

    def version(name: str) -> str:
        try:
            return versions[name]
        except KeyError:
            raise PackageNotFoundError(name) from None

    card = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(doctor, "version", version)
    findings = list(doctor._device())
    assert of(findings, "cuda:0").message == "NVIDIA H200, 141 GiB"
    assert of(findings, "vllm") == Finding(Level.OK, "vllm", "0.26.0")
    assert "pip install 'liger-kernel>=0.8'" in of(findings, "liger-kernel").message
    assert "pip install 'torchao==0.18.*'" in of(findings, "torchao").message
    versions.clear()
    assert of(doctor._device(), "vllm").level is Level.WARNING


def tokenizer(folder: Path, **changes: Any) -> str:
    """A tokenizer whose chat ends turns with `<eos>`, with attributes of it changed."""
    from pipeline.data.vocabulary import VocabularySpec, build

    made = build(VocabularySpec(kind="words"), ["user: assistant: 1 + 1? two <done>"])
    made.chat_template = TURNS.replace("{{ end }}", "<eos>")
    for name, value in changes.items():
        setattr(made, name, value)
    made.save_pretrained(folder)
    return str(folder)


def test_a_turn_that_ends_with_what_stops_generation_is_fine(tmp_path: Path) -> None:
    assert of(doctor.model(tokenizer(tmp_path)), "chat template").level is Level.OK


def test_a_turn_that_does_not_stop_generation_is_an_error(tmp_path: Path) -> None:
    """What tokenizers from GGUF files have: every completion would run to its limit and be counted as cut off."""
    path = tokenizer(tmp_path, chat_template=TURNS.replace("{{ end }}", " <done>"))
    found = of(doctor.model(path), "chat template")
    assert found.level is Level.ERROR
    assert "'<done>'" in found.message
    assert "'<eos>'" in found.message
    ids = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [ids["<done>"]]}))
    assert of(doctor.model(path), "chat template").level is Level.OK


def test_what_a_tokenizer_lacks_is_told(tmp_path: Path) -> None:
    assert of(doctor.model(tokenizer(tmp_path / "a", chat_template=None)), "chat template").level is Level.WARNING
    assert of(doctor.model(tokenizer(tmp_path / "b", pad_token=None)), "pad").level is Level.WARNING
    one = of(doctor.model(tokenizer(tmp_path / "c", pad_token="<eos>")), "pad")
    assert "one token" in one.message
    assert of(doctor.model(tokenizer(tmp_path / "d", eos_token=None)), "eos").level is Level.ERROR
    assert of(doctor.model(str(tmp_path / "nothing")), "tokenizer").level is Level.ERROR


def recipe_with(folder: Path, answers: list[str]) -> Path:
    """A recipe whose task's golds are these, in a file of test problems."""
    rows = [{"question": f"{index} + 1", "answer": answer} for index, answer in enumerate(answers)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        "name: sums\n"
        "tasks: {sums: {use: jsonl, options: {path: sums.jsonl, test_path: sums.jsonl, grader: math}}}\n"
        "stages:\n"
        "  score: {kind: evaluate, model: none, tasks: [sums]}\n"
    )
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("answers", "level", "said"),
    [
        (["2", "x + 1"], Level.OK, "accepts all 2 golds"),
        (["2", "\\frac{1"], Level.WARNING, "refuses 1 of 2 golds"),
        (["\\frac{1"], Level.ERROR, "refuses 1 of 1 golds"),
        ([], Level.ERROR, "no problems in its split test"),
    ],
)
def test_golds_that_their_grader_refuses_are_found(tmp_path: Path, answers: list[str], level: Level, said: str) -> None:
    (found,) = doctor.recipe(load(recipe_with(tmp_path, answers)))
    assert found.level is level
    assert said in found.message


@pytest.mark.parametrize(
    ("failed", "equal", "limit", "said"),
    [
        (0.3, 0.2, None, None),
        (0.9, 0.0, None, "problems are too hard"),
        (0.02, 0.9, None, "problems are too easy"),
        (0.5, 0.45, None, "groups are too small (trainer.num_generations)"),
        (0.3, 0.2, 0.4, "groups are too small"),
        (0.9, 0.05, 0.99, None),
    ],
)
def test_groups_that_teach_nothing_are_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failed: float, equal: float, limit: float | None, said: str | None
) -> None:
    """By the stage's own threshold; and the trainer's warning and the stage's alarm say the same of it."""
    from pipeline.report import run_data
    from pipeline.schema.health import Health
    from pipeline.training.health.thresholds import Alarms

    logged: list[dict[str, Any]] = [{FAILED: 0.0, EQUAL: 0.0, "loss": 0.0}] * 5
    logged += [{FAILED: failed, EQUAL: equal, "loss": 0.0}] * 20 + [{FAILED: "nan", EQUAL: None}]
    health = {} if limit is None else {"dead_groups": limit}
    stage = SimpleNamespace(name="zero", config={"health": health})
    monkeypatch.setattr(run_data, "read_run", lambda folder: SimpleNamespace(stages={"zero": stage}))
    monkeypatch.setattr(run_data, "events", lambda of: [{"step": 1}, *logged])
    (found,) = doctor.run(tmp_path)
    assert found.message.startswith(f"{failed + equal:.0%} of the groups teach nothing in the last 20 logged steps")
    assert found.level is (Level.OK if said is None else Level.WARNING)
    assert said is None or said in found.message
    alarms = Alarms(Health(patience=1, **health))
    raised = [alarm for step in logged[5:6] for alarm in alarms.look(step) if alarm.alarm == "dead_groups"]
    assert bool(raised) is (said is not None)
    assert all(alarm.reason.partition(": ")[2] == found.message.partition(": ")[2] for alarm in raised)


def test_the_trainer_warns_of_groups_that_teach_nothing_for_long(caplog: pytest.LogCaptureFixture) -> None:
    from pipeline.training.grpo.judging import DEAD_STEPS, GroupWatch

    watch, silent = GroupWatch(), GroupWatch(None)
    dead, live = {FAILED: 0.95, EQUAL: 0.0}, {FAILED: 0.5, EQUAL: 0.1}
    with caplog.at_level("WARNING"):
        for metrics in [*[dead] * (DEAD_STEPS - 1), live, *[dead] * (DEAD_STEPS - 1)]:
            watch.add(metrics)
        assert not caplog.text, "one live batch in between"
        for _ in range(DEAD_STEPS):
            silent.add(dead)
        assert not caplog.text, "an alarm tells"
        watch.add(dead)
    assert "95% of the groups teach nothing in the last 5 batches: problems are too hard" in caplog.text


def test_an_error_is_the_exit_code(tmp_path: Path) -> None:
    path = tokenizer(tmp_path, chat_template=TURNS.replace("{{ end }}", " <done>"))
    done = CliRunner().invoke(app, ["doctor", "--model", path, "--json"])
    assert done.exit_code == 1
    errors = [finding["subject"] for finding in json.loads(done.stdout) if finding["level"] == "error"]
    assert "chat template" in errors
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_a_model_that_ends_its_turns_is_told_from_one_that_never_learnt_to(calculator: Path, tmp_path: Path) -> None:
    import shutil

    from transformers import AutoTokenizer

    found = of(doctor.model(str(calculator)), "end of turn")
    assert found.level is Level.OK
    assert "of short answers ended within" in found.message
    other = shutil.copytree(calculator, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token = "<unk>" if "<unk>" in tokenizer.get_vocab() else tokenizer.pad_token  # never learnt as an end
    tokenizer.save_pretrained(other)
    (other / "generation_config.json").unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "eos_token_id": tokenizer.eos_token_id}))
    found = of(doctor.model(str(other)), "end of turn")
    assert found.level is Level.WARNING
    assert "has not learnt what this chat template ends a turn with" in found.message
    assert of(doctor.model(str(other)), "chat template").level is Level.OK
    for path in other.glob("*.safetensors"):
        path.unlink()
    assert "not in a local folder" in of(doctor.model(str(other)), "end of turn").message
