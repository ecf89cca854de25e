"""What a plan proposes where a stage does not fit: settings that a recipe can have, and that make it fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planner.plans import planned, stage


def test_a_look_that_does_not_fit_wants_fewer_answers_at_a_time(recipe: Path, tmp_path: Path) -> None:
    watch = "stages.taught.watch={tasks: [gsm8k/test], every: 4, max_tokens: 32000, batch_size: 256}"
    words = (recipe, "--runs", tmp_path, "--gpus", "H100", watch)
    taught = stage(planned(*words), "taught")
    assert not taught["fits"]
    (change,) = taught["smallest_change"]
    assert change.startswith("stages.taught.watch.batch_size=")
    assert stage(planned(*words, change), "taught")["fits"]
    share = "stages.zero.rollout.gpu_memory=0.05"
    longer = "stages.zero.watch={tasks: [gsm8k/test], every: 4, max_tokens: 320000}"
    zero = stage(planned(*words[:-1], share, longer), "zero")
    assert stage(planned(*words[:-1], share), "zero")["fits"] and not zero["fits"], "the engine holds the longest row"


@pytest.mark.parametrize(
    ("gpus", "size", "changed"),
    [
        ("RTX4090", "0.5B", {"tokens_per_pass"}),
        ("RTX5090", "0.5B", {"tokens_per_pass"}),
        ("A100-40GB", "0.5B", {"tokens_per_pass"}),
        ("RTX4090", "1.5B", {"tokens_per_pass", "gradient_checkpointing", "rank", "quantize"}),
        ("2xRTX4090", "1.5B", {"tokens_per_pass", "gradient_checkpointing", "gpu_memory", "accelerate"}),
        ("8xH100", "7B", {"gradient_checkpointing", "tokens_per_pass", "accelerate"}),
    ],
)
def test_what_is_proposed_fits(recipe: Path, tmp_path: Path, gpus: str, size: str, changed: set[str]) -> None:
    """The settings that the planner names are given to it as overrides."""
    large = ("stages.zero.efficiency.tokens_per_pass=65536", "stages.zero.trainer.gradient_checkpointing=false")
    words = (recipe, "--runs", tmp_path, "--gpus", gpus, *large, f"stages.base.model=Qwen/Qwen2.5-{size}")
    zero = stage(planned(*words), "zero")
    assert not zero["fits"] and zero["smallest_change"]
    changes = [change for line in zero["smallest_change"] for change in line.split()]
    assert {change.split("=")[0].rpartition(".")[2] for change in changes} <= changed
    assert stage(planned(*words, *changes), "zero")["fits"]
    for without in zero["smallest_change"][1:]:  # none of several can be left out
        rest = [change for change in changes if change not in without.split()]
        assert not stage(planned(*words, *rest), "zero")["fits"], without


@pytest.mark.parametrize(("name", "size"), [("zero", "7B"), ("taught", "14B")])
def test_what_is_proposed_of_a_sharded_stage_can_be_set(recipe: Path, tmp_path: Path, name: str, size: str) -> None:
    """Shards of a base in four bits cannot be merged, so that each trainer has it whole."""
    words = (recipe, "--runs", tmp_path, "--gpus", "RTX4090", f"stages.base.model=Qwen/Qwen2.5-{size}")
    words = (*words, f"stages.{name}.launch.accelerate=fsdp2-1node")
    before = stage(planned(*words), name)
    changes = [change for line in before["smallest_change"] for change in line.split()]
    assert not before["fits"] and f"stages.{name}.launch.accelerate=ddp" in changes
    assert stage(planned(*words, *changes), name)["fits"]


def test_no_adapter_is_proposed_beside_what_it_cannot_have(recipe: Path, tmp_path: Path) -> None:
    words = (recipe, "--runs", tmp_path, "--gpus", "RTX4090", "stages.base.model=Qwen/Qwen2.5-3B")
    assert "adapter" in str(stage(planned(*words), "taught")["smallest_change"])
    told = str(stage(planned(*words, "stages.taught.precision=fp8"), "taught")["smallest_change"])
    assert "adapter" not in told and "GPUs of this kind" in told


def test_an_engine_that_sleeps_beside_an_adapter_is_proposed_where_nothing_else_fits(
    recipe: Path, tmp_path: Path
) -> None:
    """A 7B model on a card of 24 GB: base in four bits, and engine and trainer one after the other."""
    words = (recipe, "--runs", tmp_path, "--gpus", "RTX4090", "stages.base.model=Qwen/Qwen2.5-7B")
    zero = stage(planned(*words), "zero")
    changes = [change for line in zero["smallest_change"] for change in line.split()]
    assert {"stages.zero.adapter.quantize=4bit", "stages.zero.trainer.vllm_enable_sleep_mode=true"} <= {*changes}
    assert stage(planned(*words, *changes), "zero")["fits"]


def test_a_share_that_cannot_hold_the_weights_is_told(recipe: Path, tmp_path: Path) -> None:
    words = (recipe, "--runs", tmp_path, "--gpus", "RTX4090", "stages.base.model=Qwen/Qwen2.5-7B")
    score = stage(planned(*words), "score")
    assert not score["fits"]
    (change,) = score["smallest_change"]
    assert change == "stages.score.rollout.gpu_memory=0.65"  # 15.2 GB of weights in 25.3 GB, and a row of cache
    assert stage(planned(*words, change), "score")["fits"]


def test_what_no_setting_makes_fit_wants_more_gpus(recipe: Path, tmp_path: Path) -> None:
    found = planned(recipe, "--runs", tmp_path, "--gpus", "H100", "stages.base.model=Qwen/Qwen2.5-32B")
    told = " ".join(stage(found, "zero")["smallest_change"])
    assert "GPUs of this kind, with launch.accelerate=fsdp2-1node" in told or "adapter.rank" in told
    assert not found["fits"]


@pytest.mark.parametrize(
    ("kind", "gpus", "size", "length", "changed"),
    [
        ("sft", "RTX4090", "7B", 131_072, {"trainer", "adapter", "max_length"}),
        ("reward_model", "RTX4090", "0.5B", 262_144, {"trainer", "max_length"}),
        ("sft", "RTX4090", "32B", 524_288, {"trainer", "max_length", "and"}),
    ],
)
def test_where_one_row_is_too_long_shorter_rows_are_proposed(
    recipe: Path, tmp_path: Path, kind: str, gpus: str, size: str, length: int, changed: set[str]
) -> None:
    data = "[{from: {hub: some/rows}}]"  # nothing says how long those are
    recipe.write_text(
        f'{recipe.read_text()}  long: {{kind: {kind}, model: "@zero", data: {data}, max_length: {length}}}\n'
    )
    words = (recipe, "--runs", tmp_path, "--gpus", gpus, f"stages.base.model=Qwen/Qwen2.5-{size}")
    told = stage(planned(*words), "long")["smallest_change"]
    assert {line.removeprefix("stages.long.").split(".")[0].split("=")[0].split()[0] for line in told} == changed
    if "and" in changed:
        assert told[-1].startswith("and ") and "GPUs of this kind" in told[-1]
        return
    changes = [change for line in told for change in line.split()]
    assert stage(planned(*words, *changes), "long")["fits"]
    for without in told:
        rest = [change for change in changes if change not in without.split()]
        assert not stage(planned(*words, *rest), "long")["fits"], without
