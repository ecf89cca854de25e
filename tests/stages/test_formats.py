"""DeepSeek-V3's FP8 format and torchtitan's layout, out of a run and into one; and a stage that trains in FP8."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from model import V3Config, V3ForCausalLM, fp8
from pipeline.context import Outputs
from pipeline.data.vocabulary import VocabularySpec, build
from pipeline.stages.export import ExportConfig
from pipeline.stages.pretrain import PretrainConfig
from pipeline.stages.registry import run_function
from tests.model.test_fp8 import ALIGNED
from tests.stages.driving import CORPUS, context_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a V3 model whose experts come in whole blocks, in FP32."""
    folder = tmp_path_factory.mktemp("formats-model")
    tokenizer = build(VocabularySpec(kind="bpe", size=300, chat_template="chatml"), ["some text to learn bytes from"])
    torch.manual_seed(0)
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    V3ForCausalLM(V3Config(**{**ALIGNED, **ends})).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def stage(folder: Path, name: str, config: dict[str, Any], **done: Path) -> tuple[Path, Outputs]:
    context = context_of(folder, name, config, done)
    outputs = run_function(config["kind"])(context)
    return context.output, outputs


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_fp8_out_and_in(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        exported, outputs = stage(
            tmp_path, "release", {"kind": "export", "model": str(trained / "model"), "precision": "fp8"}
        )
    assert "do not divide into blocks of 128" in caplog.text  # the dense layer, 192 wide
    assert fp8.is_fp8(exported / "model")
    before = state(trained / "model")
    assert outputs.metrics["dtype"] == "F8_E4M3"
    assert outputs.metrics["parameters"] == sum(weight.numel() for weight in before.values())
    assert "F8_E4M3" in (exported / "model" / "README.md").read_text()
    imported, outputs = stage(
        tmp_path, "base", {"kind": "import_model", "model": str(exported / "model"), "chat_template": "r1_zero"}
    )
    assert outputs.metrics["dtype"] == "BF16"
    model = V3ForCausalLM.from_pretrained(imported / "model", dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config")
    after = state(imported / "model")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        error = (after[name].float() - weight).abs().max() / weight.abs().max().clamp(min=1e-9)
        assert error <= (2**-4 if fp8.in_fp8(name) else 2**-8), name


def test_torchtitan_out_and_in(trained: Path, tmp_path: Path) -> None:
    exported, outputs = stage(
        tmp_path, "cluster", {"kind": "export", "model": str(trained / "model"), "format": "torchtitan"}
    )
    assert outputs.metrics["dtype"] == "F32"
    assert (exported / "model" / ".metadata").is_file()
    assert not list((exported / "model").glob("*.safetensors"))
    imported, _ = stage(
        tmp_path, "base", {"kind": "import_model", "model": str(exported / "model"), "format": "torchtitan"}
    )
    before, after = state(trained / "model"), state(imported / "model")
    assert before.keys() == after.keys()
    assert all(weight.equal(after[name]) for name, weight in before.items())
    (exported / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json: copy the model's config and tokenizer there"):
        stage(tmp_path, "bare", {"kind": "import_model", "model": str(exported / "model"), "format": "torchtitan"})


@pytest.mark.slow
def test_one_command_hands_a_model_over_and_one_brings_it_back(trained: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "zero2r1"), "export"]
    there, back = str(tmp_path / "titan"), str(tmp_path / "back")
    subprocess.run([*command, str(trained / "model"), there, "--format", "torchtitan"], check=True)
    subprocess.run([*command, there, back, "--from", "torchtitan"], check=True)
    before, after = state(trained / "model"), state(Path(back))
    assert before.keys() == after.keys()
    assert all(weight.equal(after[name]) for name, weight in before.items())


def test_what_comes_from_torchtitan_goes_to_a_folder() -> None:
    command = [str(Path(sys.executable).parent / "zero2r1"), "export", "titan", "--push", "a/b", "--from", "torchtitan"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--from torchtitan writes a Hugging Face FOLDER: publish or convert that" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp8", "dtype": "bfloat16"},
        {"precision": "fp8", "shard_size": "1GB"},
        {"format": "torchtitan", "precision": "fp8"},
        {"format": "torchtitan", "dtype": "bfloat16"},
    ],
)
def test_conversions_that_contradict_each_other_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="give"):
        ExportConfig.model_validate({"model": "x", **options})


def test_experts_that_do_not_divide_into_blocks_are_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="moe_intermediate_size as multiples of 128"):
        PretrainConfig.model_validate(
            {
                "model": "nano",
                "vocabulary": {"kind": "words"},
                "corpus": {"from": "x.jsonl"},
                "length": 9,
                "precision": "fp8",
            }
        )


def test_a_stage_trains_in_fp8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "corpus.py").write_text(CORPUS)
    shape = {name: value for name, value in ALIGNED.items() if name in SHAPE_FIELDS}
    config = {
        "kind": "pretrain",
        "model": shape,
        "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
        "corpus": {"use": "corpus.py:Sums", "documents": 100},
        "length": 32,
        "precision": "fp8",
        "trainer": {"max_steps": 12, "learning_rate": 5e-3, "warmup_steps": 0, "logging_steps": 1},
    }
    with caplog.at_level(logging.INFO):
        output, outputs = stage(tmp_path, "base", config)
    assert "modules multiply in FP8" in caplog.text
    assert outputs.metrics["loss_last"] < outputs.metrics["loss_first"] - 0.5
    assert {weight.dtype for weight in state(output / "model").values()} == {torch.float32}


SHAPE_FIELDS = {
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "n_routed_experts",
    "num_experts_per_tok",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
    "initializer_range",
}
"""What a recipe says of a model's shape; the rest has defaults."""
