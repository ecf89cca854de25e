"""Process rewards: cuts by hand, positions against passes of their own, a model that learns where answers go wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from pipeline.context import Outputs
from pipeline.data.mixture import DataError
from pipeline.data.step_rows import tokenised
from pipeline.stages.reward_model import RewardModelConfig, run
from pipeline.training.trainers.reward import NO_LABEL, step_loss
from rewards.process import Process, StepReader, StepScorer, logits_everywhere
from rewards.steps import StepRule
from rewards.verdict import Item, Status
from tests.rewards import tiny
from tests.stages.driving import context_of

WORDS = "please thanks now fool the answer is four five so it must be user assistant what <think> </think>"


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def joined(ids: Any) -> str:
    return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("text", "rule", "steps"),
    [
        ("ab\ncd\nef", StepRule(), ["ab\n", "cd\n", "ef"]),
        ("ab\n\n\ncd\n", StepRule(), ["ab\n", "\n\ncd\n"]),
        ("a\nb</think>\n1\n2\n", StepRule(), ["a\n", "b</think>\n1\n2\n"]),
        ("abcde", StepRule(tokens=2), ["ab", "cd", "e"]),
        ("ab;cd", StepRule(end=";"), ["ab;", "cd"]),
        ("ab\n ", StepRule(), ["ab\n "]),
        ("", StepRule(), []),
        (" ", StepRule(), [" "]),
    ],
)
def test_answers_are_cut_into_steps(text: str, rule: StepRule, steps: list[str]) -> None:
    cut = [joined(step) for step in rule.cut(letters(text), joined)]
    assert cut == steps
    assert "".join(cut) == text, "nothing is lost"


@pytest.mark.parametrize(("end", "tokens", "words"), [("", 3, "step_end"), ("\n", 0, "step_tokens")])
def test_rules_without_sense_are_refused(end: str, tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StepRule(end, tokens)


def test_what_the_template_has_begun_is_not_begun_twice() -> None:
    tokenizer = tiny.tokenizer(WORDS)
    reader = StepReader(tokenizer)
    plain = reader.asked([{"role": "user", "content": "what"}])
    assert plain == reader.asked("what") == "<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\n"
    assert reader.asked("what", "<think>") == plain + "<think>"
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    assert reader.asked("what", "<think>\nso") == plain + "<think>\nso"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows nothing, and answers that go wrong with their first `fool`."""
    folder = tmp_path_factory.mktemp("process")
    tiny.save(folder / "base", WORDS)
    rng = random.Random(0)
    rows = []
    for _ in range(300):
        steps = [rng.choice(["four", "five", "so", "is", "fool"]) for _ in range(6)]
        wrong = [any(word == "fool" for word in steps[: at + 1]) for at in range(6)]
        rows.append({"prompt": "what is it", "completions": steps, "labels": [0.1 if one else 0.9 for one in wrong]})
    rows.append({**rows[0], "completions": ["so"] * 90, "labels": [True] * 90})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[Path, Outputs]:
    config = {
        "kind": "reward_model",
        "learns": "steps",
        "model": "base",
        "data": ["rows.jsonl"],
        "max_length": 64,
        "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 16, "num_train_epochs": 4},
    }
    context = context_of(folder, "prm", config, {})
    return context.output / "model", run(context)


def test_every_position_is_what_a_pass_of_its_own_says(trained: tuple[Path, Outputs]) -> None:
    model, _ = trained
    tokenizer, reader = (read := AutoTokenizer.from_pretrained(model)), StepReader(read)
    readings = [reader.read(reader.asked("what is it"), steps) for steps in (["so", "fool five", "is"], ["four"])]
    found = StepScorer(str(model)).chances(readings)
    classifier = AutoModelForSequenceClassification.from_pretrained(model).eval()
    for (ids, ends), chances in zip(readings, found, strict=True):
        alone = [classifier(torch.tensor([ids[: end + 1]])).logits.item() for end in ends]
        assert chances == pytest.approx(torch.tensor(alone).sigmoid().tolist(), abs=1e-5)
    assert tokenizer.decode(readings[0][0][: readings[0][1][1] + 1]).endswith("so fool five")
    with pytest.raises(ValueError, match="heads called score"):
        logits_everywhere(LlamaForCausalLM.from_pretrained(model.parent.parent / "base"), input_ids=torch.tensor([[1]]))


def test_it_learns_from_which_step_on_an_answer_is_wrong(trained: tuple[Path, Outputs]) -> None:
    model, outputs = trained
    assert outputs.metrics["rows"] == 300
    assert outputs.metrics["dropped"] == {"too_long": 1}
    assert outputs.metrics["step_accuracy_last"] > 0.95
    asked = {"prompt": "what is it"}
    items = [Item("four so five", **asked), Item("four fool five", **asked), Item("", **asked)]
    by = {}
    for reduce in ("min", "mean", "last"):
        verdicts = Process(str(model), reduce=reduce, step_tokens=1).verify(items)
        by[reduce] = [verdict.score for verdict in verdicts]
        assert [verdict.status for verdict in verdicts] == [Status.CORRECT, Status.WRONG, Status.NO_ANSWER]
    assert by["min"] == pytest.approx([0.9, 0.1, 0], abs=0.1)
    assert by["last"] == pytest.approx([0.9, 0.1, 0], abs=0.1)
    assert by["mean"] == pytest.approx([0.9, (0.9 + 0.1 + 0.1) / 3, 0], abs=0.1)
    (long,) = Process(str(model)).verify([Item("so " * 300, **asked)])
    assert long.status is Status.INFRA


def test_the_loss_counts_labelled_tokens_alone() -> None:
    logits_BT = torch.tensor([[2.0, -1.0, 7.0], [0.5, 3.0, 3.0]])
    labels_BT = torch.tensor([[NO_LABEL, 0.25, NO_LABEL], [NO_LABEL, NO_LABEL, 1.0]])
    loss, right_S = step_loss(logits_BT, labels_BT)
    chances = torch.tensor([-1.0, 3.0]).sigmoid()
    wanted = torch.tensor([0.25, 1.0])
    by_hand = -(wanted * chances.log() + (1 - wanted) * (1 - chances).log()).mean()
    assert loss.item() == pytest.approx(by_hand.item())
    assert right_S.tolist() == [True, True]


GOOD = {"prompt": "what", "completions": ["so", "four"], "labels": [0.5, True]}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "what", "labels": [1]}, "row 1 of the data has no 'completions'"),
        ({**GOOD, "labels": [1]}, "2 completions need as many labels"),
        ({**GOOD, "labels": [1, 2]}, "between 0 and 1, not 2"),
        ({**GOOD, "labels": [1, float("nan")]}, "not nan"),
        ({**GOOD, "completions": []}, "a list of texts"),
        ({**GOOD, "completions": ["so", ""]}, "a list of texts"),
        ({**GOOD, "prompt": 4}, "prompt is text"),
        ({**GOOD, "completions": ["so " * 90, "four"]}, "longer than max_length=20"),
    ],
)
def test_rows_without_step_labels_are_named(folder: Path, row: dict[str, Any], words: str) -> None:
    reader = StepReader(AutoTokenizer.from_pretrained(folder / "base"))
    with pytest.raises(DataError, match=words):
        tokenised(reader, [row], 20)


@pytest.mark.parametrize(
    ("more", "words"),
    [({"scope": "whole"}, "scope"), ({"trainer": {"center_rewards_coefficient": 0.1}}, "center_rewards_coefficient")],
)
def test_settings_of_pairs_are_refused(more: dict[str, Any], words: str) -> None:
    config = {"kind": "reward_model", "model": "base", "data": ["rows.jsonl"], "learns": "steps", **more}
    with pytest.raises(ValueError, match=words):
        RewardModelConfig.model_validate(config)
