"""What the training stages leave behind, and what they say of it."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Outputs
from pipeline.stages.registry import config_class
from pipeline.training.clock import PARTS, REST
from tests.stages.driving import Drive

REWARD = """
def always(completions, **columns):
    return [1.0] * len(completions)

def length(completion):
    return len(completion.split()) / 10

def forgotten(completion):
    len(completion.split()) / 10

def seldom(completion):
    return 1.0 if "never said" in completion else None
"""
TASK = """
from pipeline.tasks.base import Problem, Task

class Sums(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem(f"{a}-{b}", f"{a} + {b} =", str(a + b)) for a in range(5) for b in range(5)]

class HeldOut(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem("sum", "4 + 4 = ?", "8"), Problem("row", "user: 4", "4")]
"""
GRPO = {
    "kind": "grpo",
    "model": "@base",
    "tasks": ["sums.py:Sums"],
    "rewards": ["reward.py:length"],
    "rollout": {"max_tokens": 8},
    "sample_every": 2,
    "samples": 3,
    "trainer": {
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 5,
        "beta": 0.0,
    },
}


@pytest.fixture(scope="module", autouse=True)
def files(chain: Drive, base: Path) -> None:
    folder: Path = chain.folder  # type: ignore[attr-defined]
    (folder / "reward.py").write_text(REWARD)
    (folder / "sums.py").write_text(TASK)
    rows = [{"prompt": f"User: {n}", "completion": "<answer> 4 </answer>"} for n in range(5)] * 4
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_pretraining_gives_a_model_that_can_be_loaded_and_is_counted(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = json.loads((base / "manifest.json").read_text())["metrics"]
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base / "model"),
        AutoTokenizer.from_pretrained(base / "model"),
    )
    assert metrics["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert metrics["vocabulary"] == len(tokenizer) == model.config.vocab_size
    assert metrics["steps"] == 30
    assert metrics["loss_last"] < 0.7 * metrics["loss_first"]
    assert model.generation_config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])
    assert not list((base / "model").glob("*.bin"))


@pytest.fixture(scope="module")
def teacher(chain: Drive, files: None) -> tuple[Path, Outputs]:
    """A model that answers everything with 4; `@teacher` in the chain."""
    trainer = {"learning_rate": 1e-2, "num_train_epochs": 8, "lr_scheduler_type": "constant"}
    return chain("teacher", {"kind": "sft", "model": "@base", "data": ["answers.jsonl"], "trainer": trainer})


def test_fine_tuning_teaches_what_the_assistant_says(teacher: tuple[Path, Outputs]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, outputs = teacher
    assert outputs.metrics["trained_tokens"] == 20 * 4
    model, tokenizer = (kind.from_pretrained(out / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    asked = tokenizer("User: 3", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=8, do_sample=False)[0]
    assert tokenizer.decode(said) == "User: 3 <answer> 4 </answer> <eos>"


def selection_bias(folder: Path) -> Any:
    """The bias of the only gate in a model's folder."""
    from safetensors.torch import load_file

    (bias_E,) = (v for k, v in load_file(folder / "model" / "model.safetensors").items() if k.endswith("_bias"))
    return bias_E


def test_pretraining_balances_the_experts_and_fine_tuning_leaves_the_bias_alone(
    chain: Drive, base: Path, teacher: tuple[Path, Outputs]
) -> None:
    bias_E = selection_bias(base)
    assert 0 < float(bias_E.abs().max()) <= 30 * 1e-3 + 1e-6  # 30 steps of 0.001
    assert selection_bias(teacher[0]).equal(bias_E)
    trainer = {"max_steps": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    routing = {"bias_update_speed": 0.5, "balance": "switch", "balance_alpha": 0.01}
    config = {"kind": "sft", "model": "@base", "data": ["answers.jsonl"], "trainer": trainer, "routing": routing}
    moved, outputs = chain("moved", {**config, "decontaminate": ["sums.py:HeldOut"]})
    assert (outputs.metrics["examples"], outputs.metrics["contaminated"]) == (16, 4)
    assert {round(abs(float(step)), 4) for step in selection_bias(moved) - bias_E} <= {0.0, 0.5, 1.0}
    events = (chain.folder / "moved-scratch" / "events.jsonl").read_text().splitlines()  # type: ignore[attr-defined]
    assert all(0 <= json.loads(line)["routing/max_violation/1"] <= 1 for line in events)  # 2 of 4 experts: at most 1


def test_grpo_raises_the_reward_and_shows_samples_with_their_verdicts(chain: Drive) -> None:
    out, outputs = chain("grpo", GRPO)
    assert outputs.metrics["steps"] == 5
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [0] * 3 + [2] * 3 + [4] * 3
    for row in samples:
        assert row["task"] == "sums.py:Sums"
        assert row["score"] == pytest.approx(len(row["completion"].split()) / 10)
        assert row["finish"] == ("stop" if row["tokens"] < 8 else row["finish"])
        assert row["status"] == ("correct" if row["score"] >= 1 else "wrong")
        assert row["rewards"] and next(iter(row["rewards"].values())) == row["score"]


def test_a_step_says_where_its_time_went(chain: Drive) -> None:
    """Of another GRPO stage: parts of a step make up the whole, which is what the events are apart."""
    chain("timed", GRPO)
    lines = (chain.folder / "timed-scratch" / "events.jsonl").read_text().splitlines()  # type: ignore[attr-defined]
    events = [event for event in map(json.loads, lines) if "loss" in event]
    for before, event in pairwise(events):
        parts = {name: value for name, value in event.items() if name.startswith("seconds/")}
        assert parts.keys() == {f"seconds/{name}" for name in (*PARTS, REST)}
        steps = event["step"] - before["step"]
        assert sum(parts.values()) * steps == pytest.approx(event["time"] - before["time"], abs=0.05, rel=0.1)
        assert parts["seconds/sampling"] > 0 and parts["seconds/training"] > 0
        assert event["samples_per_second"] > 0 and event["tokens_per_second"] > event["samples_per_second"]
        assert "mfu" not in event  # of a CPU nobody knows the peak


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**GRPO, "tasks": [{"use": "sums.py:Sums", "weight": 0.04}]}, "1 problems do not fill a generation batch"),
        ({**GRPO, "rewards": [{"use": "reward.py:length", "where": {"level": 2}}]}, "asked about no problem"),
        (
            {"kind": "sft", "model": "@base", "data": ["answers.jsonl"], "trainer": {"num_train_epochs": 0}},
            "num_train_epochs has to be above 0",
        ),
        ({**GRPO, "rewards": ["reward.py:forgotten"]}, "is a `return` missing"),
        ({**GRPO, "rewards": ["reward.py:seldom"]}, "not one row of the first batch has a reward"),
    ],
)
def test_a_stage_that_would_train_on_nothing_is_refused(chain: Drive, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chain(f"nothing-{len(message)}", config)


def test_groups_that_teach_nothing_are_reported_with_the_cause(chain: Drive, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = {**GRPO, "rewards": ["reward.py:always"], "samples": 0, "decontaminate": ["sums.py:HeldOut"]}
        out, outputs = chain("grpo-dead", config)
    assert (outputs.metrics["problems"], outputs.metrics["contaminated"]) == (24, 1)
    assert "100% of the groups teach nothing in the last 5 batches" in caplog.text
    assert "problems are too easy" in caplog.text
    assert not (out / "samples.jsonl").exists()


def test_a_student_learns_on_policy_from_a_teacher(chain: Drive, teacher: tuple[Path, Outputs]) -> None:
    config = {
        "kind": "distill",
        "model": "@base",
        "teacher": "@teacher",
        "tasks": ["sums.py:Sums"],
        "rollout": {"max_tokens": 8},
        "trainer": {"max_steps": 8, "learning_rate": 3e-3, "per_device_train_batch_size": 8},
    }
    _, outputs = chain("on-policy", config)
    assert outputs.metrics["loss_last"] < 0.8 * outputs.metrics["loss_first"]


def test_a_teacher_with_another_vocabulary_is_refused(chain: Drive, base: Path) -> None:
    other = {
        "kind": "pretrain",
        "model": "nano-student",
        "vocabulary": {"kind": "bpe", "size": 300},
        "corpus": {"use": "corpus.py:Sums", "documents": 20},
        "length": 16,
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 2},
    }
    chain("other", other)
    config = {"kind": "distill", "model": "@base", "teacher": "@other", "tasks": ["sums.py:Sums"]}
    with pytest.raises(ValueError, match="different vocabularies"):
        chain("refused", config)


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(1_500_000_000, 1e-4), (7_600_000_000, 8e-5), (14_800_000_000, 7e-5), (32_500_000_000, 6e-5)],
)
def test_the_learning_rate_follows_the_size_of_the_student(tmp_path: Path, parameters: int, rate: float) -> None:
    """Table of R1's supplement, for its Qwen students."""
    from pipeline.stages.distill import learning_rate

    header = json.dumps({"weight": {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert learning_rate(str(tmp_path)) == rate


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "sft", "model": "m", "data": ["d"], "packing": True}, "packing needs a max_length"),
        ({"kind": "sft", "model": "m", "data": []}, "at least 1 item"),
        ({"kind": "distill", "model": "m"}, "either `data`"),
        ({"kind": "distill", "model": "m", "teacher": "@t", "data": ["d"], "tasks": ["gsm8k"]}, "not with `data`"),
        ({"kind": "distill", "model": "m", "teacher": "@t"}, "goes with `tasks`"),
        ({**GRPO, "rollout": {"temperature": 0.0}}, "temperature is 0"),
        ({**GRPO, "rollout": {"batch_size": 8}}, "batch_size has no effect"),
        (
            {
                "kind": "distill",
                "model": "m",
                "teacher": "@t",
                "tasks": ["gsm8k"],
                "rollout": {"engine": "vllm_server"},
            },
            "samples with transformers, or with vLLM in its own process",
        ),
        ({**GRPO, "trainer": {"beta": 0.0, "sync_ref_model": True}}, "needs a reference model"),
        ({**GRPO, "trainer": {"num_generations": 5}}, "does not hold whole groups"),
        ({"kind": "pretrain", "model": "nano", "corpus": {}, "length": 8}, "either `use`"),
        (
            {"kind": "pretrain", "model": "nano", "corpus": {"from": "c.jsonl"}, "length": 8},
            "either `vocabulary`",
        ),
        (
            {"kind": "pretrain", "model": "nano", "corpus": {"from": "c.jsonl"}, "tokenizer": "t", "length": 800},
            "exceeds the model's max_position_embeddings=256",
        ),
        ({"kind": "export", "model": "@m", "shard_size": "2 gigabytes"}, "should match pattern"),
        ({"kind": "import_model", "model": "m", "chat_template": "chatmi"}, "did you mean 'chatml'"),
    ],
)
def test_nonsense_is_refused_when_the_recipe_is_read(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(config["kind"]).model_validate(config)
