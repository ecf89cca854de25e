"""Checkpoints of a stage that has not finished, by name: read as models, whatever the stage does meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import artifacts
from pipeline.commands.chat import model_path, opened_model
from pipeline.commands.checkpoint_names import VIEW, NamedCheckpointError, opened
from pipeline.files import durable
from pipeline.files.lease import HOST
from pipeline.stages.evaluate import model_label
from pipeline.stages.registry import run_function
from pipeline.training.checkpoints import MARK
from tests.stages.driving import context_of
from tests.stages.test_watch import SFT, TASKS, TRAINER, WATCH

FINGERPRINT = "ab" * 32
ENTRY = {"name": "taught", "kind": "sft", "fingerprint": FINGERPRINT, "inputs": [], "after": []}


@pytest.fixture(scope="module")
def run(calculator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only stage has trained and was not published: checkpoints of steps 2 and 4, and the best weights."""
    folder = tmp_path_factory.mktemp("run")
    artifacts.write_run_record(folder, {"name": "x", "stages": [ENTRY]}, "name: x\n")
    (folder / "tasks.py").write_text(TASKS)
    rows = [{"prompt": f"User: {n} + 1 =\nAssistant:\n", "completion": "<answer> 4 </answer>"} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {**SFT, "model": str(calculator), "watch": WATCH, "keep": "best", "keep_state": False, "trainer": TRAINER}
    made = context_of(folder, "taught", config, {})
    scratch = artifacts.scratch(folder, "taught", FINGERPRINT)
    scratch.mkdir(parents=True)
    (scratch / "job.json").write_text(json.dumps({"stage": "taught", "config": config}))
    run_function("sft")(dataclasses.replace(made, scratch=scratch, events=scratch / "events.jsonl"))
    return folder


def scratch_of(run: Path) -> Path:
    return artifacts.scratch(run, "taught", FINGERPRINT)


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(("name", "step"), [("step-2", 2), ("step-4", 4), ("last", 4)])
def test_a_checkpoint_is_a_model_with_a_name(run: Path, name: str, step: int) -> None:
    with opened_model(f"{run}@taught:{name}") as found:
        folder = Path(found)
        assert equal(folder, scratch_of(run) / "checkpoints" / f"checkpoint-{step}")
        assert AutoTokenizer.from_pretrained(folder).chat_template
        assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert not (folder / "optimizer.pt").exists()
        assert model_label(found) == f"taught:step-{step}"
    assert not list(run.glob(f"{VIEW}*")), "nothing is left of the reading"


def test_the_best_weights_have_a_name_too(run: Path) -> None:
    with opened(run, ENTRY, "best") as folder:
        assert equal(folder, run / "taught" / "model")


def test_an_export_names_the_step(run: Path, tmp_path: Path) -> None:
    with opened(run, ENTRY, "step-2") as folder:
        context = context_of(tmp_path, "release", {"kind": "export", "model": str(folder)}, {})
        run_function("export")(context)
    card = (context.output / "model" / "README.md").read_text()
    assert "| taught:step-2 | sft | `abababababab` |" in card
    assert equal(context.output / "model", scratch_of(run) / "checkpoints" / "checkpoint-2")


def test_folders_of_killed_readers_go_and_those_of_other_hosts_stay_for_a_week(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, ages = tmp_path / "run", {"two minutes": 120, "eight days": 8 * 24 * 3600}
    shutil.copytree(run, copy)
    left = {}
    for host in ("here", "elsewhere"):
        monkeypatch.setenv(HOST, host)
        for age in ages:
            with opened(copy, ENTRY, "last") as folder:
                (view,) = (path for path in folder.parents if path.name.startswith(VIEW))
                left[host, age] = Path(shutil.copytree(view, tmp_path / view.name))
    for (_, age), view in left.items():
        os.utime(view, times=(0, time.time() - ages[age]))
        view.rename(copy / view.name)
    monkeypatch.setenv(HOST, "here")
    with opened(copy, ENTRY, "last"):
        pass
    assert {path.name for path in copy.glob(f"{VIEW}*")} == {left["elsewhere", "two minutes"].name}


def test_what_a_stage_deletes_meanwhile_stays_for_the_reader(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    checkpoint = scratch_of(copy) / "checkpoints" / "checkpoint-2"
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text())
    with opened(copy, ENTRY, "step-2") as folder:
        (folder / "config.json").write_text("{}")
        assert not durable.damage_of(checkpoint, MARK), "what readers write is theirs"
        shutil.rmtree(checkpoint)
        assert load_file(folder / "model.safetensors")
        shutil.rmtree(scratch_of(copy) / "checkpoints" / "checkpoint-4")
        with pytest.raises(NamedCheckpointError, match=r"no checkpoint 'step-2'. It has: best \(step \d\)"):
            opened(copy, ENTRY, "step-2").__enter__()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("taught:step-3", r"no checkpoint 'step-3'. It has: step-4, step-2, best \(step \d\), and last is step-4"),
        ("taught:first", "no checkpoint 'first'. It has: step-4"),
        ("taugth:step-2", r"has no stage 'taugth' .did you mean 'taught'"),
        ("taught", r"has not published a model; its checkpoints are step-4, step-2, best \(step \d\): .*@taught:last"),
    ],
)
def test_what_is_not_there_is_told(run: Path, name: str, words: str) -> None:
    with pytest.raises(LookupError, match=words), opened_model(f"{run}@{name}"):
        pass


def test_damage_and_what_is_incomplete_are_told(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = scratch_of(copy) / "checkpoints"
    with (folder / "checkpoint-2" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x01\x02\x03\x04")
    (folder / "checkpoint-4" / MARK).unlink()
    with pytest.raises(NamedCheckpointError, match=r"damaged: model.safetensors has other content"):
        opened(copy, ENTRY, "last").__enter__()
    with pytest.raises(NamedCheckpointError, match=r"no checkpoint 'step-4'. It has: step-2"):
        opened(copy, ENTRY, "step-4").__enter__()
    shutil.rmtree(scratch_of(copy))
    with pytest.raises(NamedCheckpointError, match="it has not begun"):
        opened(copy, ENTRY, "last").__enter__()
    done = artifacts.folder(copy, "taught", FINGERPRINT)
    shutil.copytree(copy / "taught", tmp_path / "done")
    artifacts.publish(tmp_path / "done", done, {"stage": "taught", "fingerprint": FINGERPRINT})
    with pytest.raises(NamedCheckpointError, match="finished, and its checkpoints went with its scratch folder"):
        opened(copy, ENTRY, "last").__enter__()
    assert Path(model_path(f"{copy}@taught")).is_dir()


def test_shards_and_adapters_are_models_too(run: Path, calculator: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    checkpoint = scratch_of(copy) / "checkpoints" / "checkpoint-2"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    writer = FileSystemWriter(checkpoint / "pytorch_model_fsdp_0")
    save({"model": dict(model.state_dict())}, storage_writer=writer, no_dist=True)
    (checkpoint / "model.safetensors").unlink()
    durable.seal(checkpoint, MARK)
    with opened(copy, ENTRY, "step-2") as folder:
        assert equal(folder, scratch_of(run) / "checkpoints" / "checkpoint-2")
        assert AutoTokenizer.from_pretrained(folder).chat_template

    from peft import LoraConfig, get_peft_model

    adapted: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(calculator), LoraConfig(r=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    adapter = checkpoint.with_name("checkpoint-6")
    adapted.save_pretrained(adapter)
    AutoTokenizer.from_pretrained(calculator).save_pretrained(adapter)
    durable.seal(adapter, MARK)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    with opened(copy, ENTRY, "last") as folder:
        assert (folder.parent / "adapter" / "adapter_config.json").is_file()
        one, other = load_file(folder / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
        assert all(torch.allclose(one[name], weight, atol=1e-6) for name, weight in other.items())
