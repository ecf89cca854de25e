"""What stages with an adapter publish, and stages that start from one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from model.modeling import load
from pipeline.files.adapter_folders import AdapterFolderError
from pipeline.rollout.merging import as_given
from tests.stages.driving import Drive

ROWS = [{"prompt": f"User: {n}", "completion": "<answer> 4 </answer>"} for n in range(5)] * 4
PAIRS = [{"prompt": "User: 1", "chosen": " <answer> 4 </answer>", "rejected": " <answer> 2 </answer>"}] * 8
TASK = """
from pipeline.tasks.base import Problem, Task

class Ask(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem(str(n), f"User: {n}", "4") for n in range(16)]
"""
TRAINER = {"num_train_epochs": 6, "logging_steps": 1, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def trained(chain: Drive, base: Path) -> Path:
    """A stage that trained an adapter of a DeepSeek-V3, experts included; `@adapted` in the chain."""
    folder: Path = chain.folder  # type: ignore[attr-defined]
    (folder / "adapted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = {"kind": "sft", "model": "@base", "data": ["adapted.jsonl"], "adapter": {"rank": 4}, "trainer": TRAINER}
    out, outputs = chain("adapted", config)
    assert outputs.metrics["loss_last"] < 0.5 * outputs.metrics["loss_first"]
    return out


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(4, 14)[None]).logits
    return found


def test_the_published_model_is_base_and_adapter(trained: Path, base: Path) -> None:
    assert json.loads((trained / "model" / "config.json").read_text()) == json.loads(
        (base / "model" / "config.json").read_text()
    ), "an ordinary model of the base's architecture"
    assert {p.name for p in (base / "model").iterdir()} == {p.name for p in (trained / "model").iterdir()}
    with as_given():
        both = PeftModel.from_pretrained(load(str(base / "model"), dtype=torch.float32), str(trained / "adapter"))
    merged = load(str(trained / "model"), dtype=torch.float32)
    with both.disable_adapter():
        apart = (logits(both) - logits(merged)).abs().max()
    assert apart > 0.1
    assert torch.allclose(logits(both), logits(merged), atol=1e-5)


def test_the_adapter_names_its_base_wherever_the_run_lies(trained: Path) -> None:
    said = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"].startswith("../../../")
    assert (said["r"], said["lora_alpha"]) == (4, 32)
    weights = load_file(trained / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def standing_alone(trained: Path, base: Path, folder: Path) -> Path:
    """The adapter as somebody gets it who has the base elsewhere."""
    shutil.copytree(trained / "adapter", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base / "model")}))
    return folder


def test_a_stage_starts_from_an_adapters_folder(chain: Drive, trained: Path, base: Path, tmp_path: Path) -> None:
    folder = standing_alone(trained, base, tmp_path / "alone")
    out, _ = chain("from-adapter", {"kind": "import_model", "model": str(folder)})
    assert torch.equal(
        logits(load(str(out / "model"), dtype=torch.float32)), logits(load(str(trained / "model"), dtype=torch.float32))
    )


def test_an_adapter_of_another_model_is_refused(chain: Drive, trained: Path, base: Path, tmp_path: Path) -> None:
    folder = standing_alone(trained, base, tmp_path / "alone")
    weights = load_file(folder / "adapter_model.safetensors")
    shutil.copyfile(folder / "adapter_model.safetensors", tmp_path / "kept")
    from safetensors.torch import save_file

    save_file(
        {name.replace(".0.", ".7."): weight for name, weight in weights.items()}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterFolderError, match="have no place in"):
        chain("wrong", {"kind": "import_model", "model": str(folder)})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterFolderError, match="has no adapter_model"):
        chain("incomplete", {"kind": "import_model", "model": str(folder)})


def test_export_writes_either(chain: Drive, trained: Path) -> None:
    merged, _ = chain("whole", {"kind": "export", "model": "@adapted"})
    assert (merged / "model" / "config.json").is_file()
    config = {"kind": "export", "model": "@adapted", "format": "adapter", "base_model": "some/base"}
    alone, outputs = chain("alone", config)
    said = json.loads((alone / "model" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "some/base"
    assert outputs.metrics["parameters"] == sum(
        weight.numel() for weight in load_file(trained / "adapter" / "adapter_model.safetensors").values()
    )
    with pytest.raises(ValueError, match=r"@base has no adapter beside its model"):
        chain("none", {"kind": "export", "model": "@base", "format": "adapter"})


def test_a_student_learns_on_policy_by_an_adapter(chain: Drive, trained: Path) -> None:
    folder: Path = chain.folder  # type: ignore[attr-defined]
    (folder / "ask.py").write_text(TASK)
    trainer = {**TRAINER, "max_steps": 3, "per_device_train_batch_size": 4, "beta": 0.5}
    config = {
        "kind": "distill",
        "model": "@base",
        "teacher": "@adapted",
        "tasks": ["ask.py:Ask"],
        "adapter": {"rank": 4},
    }
    out, outputs = chain("student", {**config, "rollout": {"max_tokens": 6}, "trainer": trainer})
    assert outputs.metrics["steps"] == 3
    assert (out / "adapter" / "adapter_config.json").is_file()


def test_a_context_is_extended_by_an_adapter(chain: Drive, base: Path) -> None:
    trainer = {**TRAINER, "max_steps": 2, "per_device_train_batch_size": 2}
    corpus = {"use": "corpus.py:Sums", "documents": 60}
    config = {"kind": "extend_context", "model": "@base", "context": 256, "length": 32, "corpus": corpus}
    out, outputs = chain("adapter-longer", {**config, "adapter": {"rank": 4}, "trainer": trainer})
    said = json.loads((out / "model" / "config.json").read_text())
    assert said["max_position_embeddings"] == 256, "the published config carries the new positions"
    assert outputs.metrics["context"] == 256


def test_a_reward_model_trains_its_head_beside_the_adapter(chain: Drive, base: Path) -> None:
    folder: Path = chain.folder  # type: ignore[attr-defined]
    (folder / "pairs-adapted.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    config = {"kind": "reward_model", "model": "@base", "data": ["pairs-adapted.jsonl"], "adapter": {"rank": 4}}
    out, outputs = chain("judge", {**config, "trainer": {**TRAINER, "per_device_train_batch_size": 4}})
    assert outputs.metrics["loss_last"] < outputs.metrics["loss_first"]
    weights = load_file(out / "model" / "model.safetensors")
    assert weights["score.weight"].shape[0] == 1
    assert not any("lora" in name or "modules_to_save" in name for name in weights)
    assert any("score" in name for name in load_file(out / "adapter" / "adapter_model.safetensors"))
