"""The reward_model stage: it learns from pairs, and what it leaves behind is what the preference reward reads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.context import Outputs
from pipeline.data.mixture import DataError
from pipeline.data.pairs import tokenised
from pipeline.prompts.rendering import Renderer
from pipeline.stages.reward_model import run
from pipeline.training import fit, models
from rewards.preference import ConversationReader, Preference
from rewards.verdict import Item
from tests.rewards import tiny
from tests.stages.driving import context_of

WORDS = "please thanks now fool the answer is four five so it must be user assistant what"
RUDE, POLITE = WORDS.split()[2:], ("please", "thanks")


def say(rng: random.Random, polite: bool) -> str:
    words = [rng.choice(RUDE[:10]) for _ in range(rng.randint(2, 6))]
    return " ".join([*words, rng.choice(POLITE)] if polite else words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows nothing, and pairs whose polite answers are the better ones, thoughts aside."""
    folder = tmp_path_factory.mktemp("reward_model")
    tiny.save(folder / "base", WORDS)
    rng = random.Random(0)
    rows = [
        {
            "prompt": [{"role": "user", "content": "what is the answer"}],
            "chosen": f"<think>{say(rng, False)}</think>{say(rng, True)}",
            "rejected": f"<think>{say(rng, True)}</think>{say(rng, False)}",
        }
        for _ in range(256)
    ]
    rows += [{**rows[0], "rejected": "<think>other thoughts</think>" + rows[0]["chosen"].split("</think>")[1]}]
    rows += [{**rows[0], "chosen": "four " * 200}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[Path, Outputs]:
    config = {
        "kind": "reward_model",
        "model": "base",
        "data": ["pairs.jsonl"],
        "max_length": 64,
        "trainer": {
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 16,
            "num_train_epochs": 3,
            "logging_steps": 4,
        },
    }
    context = context_of(folder, "helpful", config, {})
    made = run(context)
    assert '"rows that are left out: 1 too long, 1 equal"' in context.events.read_text(), "seen in the terminal"
    return context.output / "model", made


def test_it_learns_which_answers_are_better(trained: tuple[Path, Outputs]) -> None:
    model, outputs = trained
    rng = random.Random(1)
    reward = Preference(str(model))
    polite, rude = ([reward_of(reward, say(rng, kind)) for _ in range(20)] for kind in (True, False))
    assert sum(a > b for a in polite for b in rude) >= 0.95 * 400
    assert outputs.metrics["pairs"] == 256
    assert outputs.metrics["dropped"] == {"too_long": 1, "equal": 1}, "summaries may be equal where thoughts differ"
    assert outputs.metrics["pair_accuracy_last"] >= 0.9
    assert outputs.metrics["loss_last"] < outputs.metrics["loss_first"]


def test_adapter_and_head_start_alike_under_a_launcher(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And as in TRL's own trainer, of which there is one for pairs."""
    started: list[dict[str, torch.Tensor]] = []

    def kept(trainer: Any, _: Any) -> dict[str, Any]:
        trained = trainer.model.named_parameters()
        started.append({name: weight.detach().clone() for name, weight in trained if weight.requires_grad})
        return {}

    monkeypatch.setattr(fit, "fit", kept)
    config = {
        "kind": "reward_model",
        "model": "base",
        "data": ["pairs.jsonl"],
        "max_length": 64,
        "adapter": {"rank": 2},
    }
    for launched in (False, True):
        monkeypatch.setattr(models, "launched", lambda launched=launched: launched)
        run(context_of(folder, f"started-{launched}", config, {}))
    alone, among_others = started
    assert any("lora_A" in name for name in alone) and any("score" in name for name in alone)
    assert all(torch.equal(weight, among_others[name]) for name, weight in alone.items())


def reward_of(reward: Preference, answer: str) -> float:
    asked = [{"role": "user", "content": "what is the answer"}]
    score = reward.verify([Item(answer, messages=asked)])[0].score
    assert score is not None
    return score


def test_training_and_reward_read_the_same_tokens(trained: tuple[Path, Outputs], folder: Path) -> None:
    model, _ = trained
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    reader = ConversationReader(tokenizer, "whole", tokenizer.pad_token_id)
    user = [{"role": "user", "content": "what is it"}]
    answers = {"chosen": "it is four", "rejected": "it is five"}
    as_messages = {key: [{"role": "assistant", "content": text}] for key, text in answers.items()}
    rows: list[dict[str, Any]] = [
        {"prompt": "what is it", **answers},
        {"prompt": user, **answers},
        {"prompt": user, **as_messages},
        {key: [*user, *messages] for key, messages in as_messages.items()},
    ]
    dataset, _ = tokenised(reader, rows, 64)
    shown = "<|im_start|>user\nwhat is it<|im_end|>\n<|im_start|>assistant\nit is four<|im_end|>\n"
    expected = tokenizer(shown, add_special_tokens=False)["input_ids"]
    assert all(torch.equal(torch.tensor(ids), torch.tensor(expected)) for ids in dataset["chosen_ids"])
    assert dataset["chosen_ids"][0] != dataset["rejected_ids"][0]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "what", "chosen": "four"}, "rejected"),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}, "left"),
        ({"chosen": [{"content": "a"}, {"content": "b"}], "rejected": [{"content": "x"}, {"content": "c"}]}, "share"),
        ({"prompt": "what", "chosen": 4, "rejected": 5}, "row 1"),
        ({"prompt": "what", "chosen": [{"role": "assistant", "content": "x", "mood": 1}], "rejected": "y"}, "mood"),
        ({"prompt": [{"role": "user", "content": "a", "name": "Ann"}], "chosen": "x", "rejected": "y"}, "name: the ch"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "x", "rejected": "y"},
            "type 'image'",
        ),
        ({"prompt": "what", "chosen": "x", "rejected": "y", "tools": [{}]}, "tools"),
    ],
)
def test_rows_that_are_no_pairs_are_named(folder: Path, row: dict[str, Any], words: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    reader = ConversationReader(tokenizer, "summary", tokenizer.pad_token_id)
    with pytest.raises(DataError, match=words):
        tokenised(reader, [row], 5, Renderer(tokenizer))
