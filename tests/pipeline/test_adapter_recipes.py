"""Adapters that cannot be trained are refused with the recipe, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checks import needs
from pipeline.checks.whole_recipe import input_files
from pipeline.files.adapter_folders import BASE as BASE_NAME
from pipeline.files.rows import write_rows
from pipeline.recipe import RecipeError, load

BASE = "  base: {kind: import_model, model: ./dense}\n"
PRETRAINED = (
    "  base: {kind: pretrain, model: v2-lite, vocabulary: {kind: words}, corpus: {from: rows.jsonl}, length: 64}\n"
)
SFT = "  later: {{kind: sft, model: '@base', data: [rows.jsonl], adapter: {{{}}}{}}}\n"
GRPO = "  later: {{kind: grpo, model: '@base', tasks: [arithmetic], adapter: {{{}}}{}}}\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """What the recipes below name."""
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "1", "completion": "2", "text": "3"}])
    (tmp_path / "dense").mkdir()
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "input_layernorm"]
    weights = {f"model.layers.0.{name}.weight": torch.zeros(4, 4) for name in names[:-1]}
    weights |= {"model.layers.0.input_layernorm.weight": torch.zeros(4), "lm_head.weight": torch.zeros(9, 4)}
    save_file(weights, tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 128}')


def told(folder: Path, *stages: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text("name: r\nstages:\n" + "".join(stages))
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert f"{path}:4: stages.later." in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "more", "place", "said"),
    [
        ("rank: 0", "", "adapter.rank", "an adapter of rank 0 changes nothing: set 1 or more, or leave `adapter` out"),
        ("rnak: 8", "", "adapter.rnak", "nor PEFT's LoraConfig has a field 'rnak' (did you mean 'rank'?)"),
        ("use_rslorra: true", "", "adapter.use_rslorra", "(did you mean 'use_rslora'?)"),
        ("use_rslora: 3", "", "adapter.use_rslora", "has to be bool, not 3 (int)"),
        ("r: 8", "", "adapter.r", "set `rank`"),
        ("init_lora_weights: pissa", "", "adapter.init_lora_weights", "the base would be rewritten"),
        ("init_lora_weights: orthogonal, rank: 3", "", "adapter.rank", "needs an even rank, not 3: set 4"),
        (
            "init_lora_weights: orthogonal, rank_pattern: {q_proj: 5}",
            "",
            "adapter.rank_pattern.q_proj",
            "needs an even rank, not 5: set 6",
        ),
        ("bias: all", "", "adapter.bias", "biases would be written into the base"),
        ("targets: []", "", "adapter.targets", "no layer would carry an adapter"),
        ("targets: [q_proj, qproj]", "", "adapter.targets", "'qproj' matches no layer of the model (did you"),
        ("targets: '.*attention.*'", "", "adapter.targets", "or leave `targets` out for all"),
        ("targets: q_proj", "", "adapter.targets", "is taken for a regular expression for whole names"),
        ("targets: 'q_proj, o_proj'", "", "adapter.targets", "write [q_proj, o_proj]"),
        ("targets: all_linear", "", "adapter.targets", "write `targets: all-linear`"),
        ("targets: [all-linear]", "", "adapter.targets", "write `targets: all-linear`"),
        ("targets: {q_proj: 8}", "", "adapter.targets", "needs all-linear, a list of names such as"),
        ("exclude_modules: q_proj", "", "adapter.exclude_modules", "write [q_proj]"),
        ("layers_pattern: layers", "", "adapter.layers_pattern", "set that, or leave this out"),
        ("layers_to_transform: []", "", "adapter.layers_to_transform", "is empty, and has no effect"),
        ("rank_pattern: {}", "", "adapter.rank_pattern", "is empty, and has no effect"),
        ("load_in_4bit: true", "", "adapter.load_in_4bit", "set `quantize: 4bit`"),
        ("", ", lora: {r: 8}", "lora", "adapters (LoRA, QLoRA) are the key `adapter`"),
        ("dropout: 1.5", "", "adapter.dropout", "less than 1"),
        ("alpha: .inf", "", "adapter.alpha", "a finite number, not inf"),
        ("targets: '['", "", "adapter.targets", "'[' is not a regular expression: unterminated character set"),
        ("targets: [lm_head]", "", "adapter.targets", "lm_head, the head, carries no adapter"),
        ("target_parameters: [x]", "", "adapter.target_parameters", "set `targets`: a stack of experts is named by"),
        ("rank_pattern: {qproj: 4}", "", "adapter.rank_pattern.qproj", "matches no layer of the model (did you mean"),
        ("targets: [o_proj], rank_pattern: {q_proj: 4}", "", "adapter.rank_pattern.q_proj", "matches no layer"),
        ("rank_pattern: {q_proj: 0}", "", "adapter.rank_pattern", "q_proj: a rank is 1 or more, not 0"),
        ("rank_pattern: {q_proj: 1.5}", "", "adapter.rank_pattern", "ranks are whole numbers"),
        ("rank_pattern: 4", "", "adapter.rank_pattern", "needs names of layers with numbers, such as {q_proj: 8}"),
        ("alpha_pattern: {q_proj: -1}", "", "adapter.alpha_pattern", "q_proj: an alpha is above 0, not -1"),
        ("exclude_modules: [qproj]", "", "adapter.exclude_modules", "'qproj' matches no layer of the model (did you"),
        ("exclude_modules: '.*'", "", "adapter.targets", "exclude_modules leave no layer to carry an adapter"),
        ("layers_to_transform: [7]", "", "adapter.layers_to_transform", "there is no layer 7: the model's are 0 to 0"),
        ("layers_to_transform: [0], layers_pattern: blocks", "", "adapter.layers_to_transform", "leave layers_pattern"),
        ("targets: '.*q_proj', layers_to_transform: [0]", "", "adapter.layers_to_transform", "targets as a list"),
        ("quantize: 3bit", "", "adapter.quantize", "'none', '8bit' or '4bit'"),
        ("", ", mtp: {}", "mtp", "prediction blocks are trained in full"),
        ("", ", precision: fp8", "precision", "set adapter.quantize to save memory"),
        ("", ", routing: {bias_update_speed: 0.001}", "routing.bias_update_speed", "it would write into the base"),
        ("", ", trainer: {deepspeed: rows.jsonl}", "trainer.deepspeed", "use launch: {accelerate: ddp}"),
        ("quantize: 4bit", ", launch: {accelerate: fsdp2-1node}", "launch.accelerate", "or adapter.quantize: none"),
        ("", ", launch: {accelerate: ep-1node}", "launch.accelerate", "carry no adapters"),
    ],
)  # fmt: skip
def test_a_bad_adapter_is_refused_with_the_recipe(
    tmp_path: Path, adapter: str, more: str, place: str, said: str
) -> None:
    message = told(tmp_path, BASE, SFT.format(adapter, more))
    assert f"stages.later.{place}" in message
    assert said in message


@pytest.mark.parametrize(
    ("adapter", "more", "said"),
    [
        ("dropout: 0.05", "", "rollouts are sampled without dropout"),
        ("init_lora_weights: false", "", "would not start from its reference"),
        ("", ", trainer: {sync_ref_model: true}", "the reference of an adapter is its base"),
    ],
)
def test_what_parts_a_policy_from_its_rollouts_is_refused(tmp_path: Path, adapter: str, more: str, said: str) -> None:
    assert said in told(tmp_path, BASE, GRPO.format(adapter, more))


def test_targets_are_looked_for_in_a_model_that_is_yet_to_be_pre_trained(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    good = "targets: [kv_b_proj, shared_experts.up_proj, experts.gate_up_proj]"
    path.write_text(f"name: r\nstages:\n{PRETRAINED}" + SFT.format(good, ""))
    load(path)
    assert "'k_proj' matches no layer" in told(tmp_path, PRETRAINED, SFT.format("targets: [k_proj]", ""))


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("dropout: 0.1", "adapter.dropout: stacks of experts cannot have it: leave it out, or set targets: ["),
        ("use_dora: true", "adapter.use_dora: stacks of experts cannot have it"),
        ("quantize: 4bit", "adapter.quantize: the model is a DeepSeek-V3 or V2, whose experts are stacks"),
    ],
)
def test_what_a_deepseek_v3_cannot_have_is_told_with_the_recipe(tmp_path: Path, adapter: str, said: str) -> None:
    assert said in told(tmp_path, PRETRAINED, SFT.format(adapter, ""))


def test_an_adapter_is_a_mapping(tmp_path: Path) -> None:
    message = told(tmp_path, BASE, SFT.format("", "").replace("adapter: {}", "adapter: true"))
    assert message.endswith("stages.later.adapter: has to be a mapping of its keys, not True")


def test_an_adapters_folder_is_a_model_and_its_base_an_input(tmp_path: Path) -> None:
    path, folder = tmp_path / "recipe.yaml", tmp_path / "adapter"
    path.write_text(f"name: r\nstages:\n{BASE}  later: {{kind: sft, model: ./adapter, data: [rows.jsonl]}}\n")
    folder.mkdir()
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1, 1)}, folder / "adapter_model.safetensors")
    for base, said in (("../gone", "there is no folder ../gone: set base_model_name_or_path"), ("", "names no base")):
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", BASE_NAME: base}))
        with pytest.raises(RecipeError, match=said):
            load(path)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", BASE_NAME: "../dense"}))
    files = [file for _, file in input_files(load(path).stages["later"], tmp_path)]
    assert folder in files
    assert tmp_path / "dense" in files


def test_an_adapter_of_an_adapter_has_no_model(tmp_path: Path) -> None:
    path, folder = tmp_path / "recipe.yaml", tmp_path / "adapter"
    path.write_text("name: r\nstages:\n  later: {kind: sft, model: ./adapter, data: [rows.jsonl]}\n")
    folder.mkdir()
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1, 1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", BASE_NAME: "."}))
    with pytest.raises(RecipeError, match=r"its base \. is an adapter as well: make a model of that one first"):
        load(path)


@pytest.mark.parametrize(("adapter", "lacks"), [("adapter: {}", False), ("", True)])
def test_an_adapter_is_exported_of_a_stage_that_trains_one(tmp_path: Path, adapter: str, lacks: bool) -> None:
    path = tmp_path / "recipe.yaml"
    later = f"  later: {{kind: sft, model: '@base', data: [rows.jsonl], {adapter}}}\n"
    path.write_text(f"name: r\nstages:\n{BASE}{later}  out: {{kind: export, model: '@later', format: adapter}}\n")
    if not lacks:
        load(path)
        return
    with pytest.raises(RecipeError, match=r":5: stages.out.format: @later has no adapter beside its model: name a"):
        load(path)


def test_every_field_of_peft_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    fields = "rank: 8, targets: [q_proj], use_rslora: true, rank_pattern: {q_proj: 4}, layers_to_transform: [0]"
    path.write_text(f"name: r\nstages:\n{BASE}" + SFT.format(fields, ""))
    spec = load(path).stages["later"].adapter  # type: ignore[attr-defined]
    assert spec.options == {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "layers_to_transform": [0]}


def test_a_quantised_base_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: r\nstages:\n{BASE}" + SFT.format("quantize: 4bit", ""))
    monkeypatch.setattr(needs.gpus, "of_driver", lambda: ())
    (line, *_) = [line for line in needs.unmet(load(path), ["base", "later"]) if "GPU" in line]
    assert line == "stages.later.adapter.quantize: needs a GPU, and there is none here: set it to none, or leave it out"
