"""A thought that was opened, wherever, and never closed pays nothing; a thought that nobody can see is none."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest

import rewards
from rewards import Item, Status
from rewards.code import extract_code
from rewards.format import ThinkFormat
from rewards.text import says_something

PUZZLE = '{"dataset": "chain_sum", "config": {}, "seed": 0, "index": 0}'
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "math": (r"It is \boxed{42}.", {"answer": "42"}),
    "exact": ("<answer>sun cat</answer>", {"answer": "sun cat"}),
    "countdown": ("<answer>6 * 7</answer>", {"answer": "", "numbers": [6, 7], "target": 42}),
    "reasoning_gym": ("<answer>42</answer>", {"answer": "42", "dataset": "chain_sum", "puzzle": PUZZLE}),
}
"""Reward -> a right completion without a thought, and the columns of its row."""

OPENED: tuple[Any, ...] = (
    "What is it?<think>",
    "What is it?\n<think>\n",
    "<|im_start|>assistant\n<think> \t\r\n",
    [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "<think>\n"}],
    [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "<think>\nOkay, so"}],
    [{"role": "user", "content": "What is it?\n<think>"}],
)
NOT_OPENED: tuple[Any, ...] = (
    "What is it? Think between <think> and </think>.",
    "What is it?\n<think>\n\n</think>\n\n",
    [{"role": "user", "content": "What does <think> mean?"}],
    [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "<think>\n\n</think>\n\n"}],
)


def scored(reward: str, prompt: Any, completion: str, **more: Any) -> float | None:
    columns = {name: [value] for name, value in {**CASES[reward][1], **more}.items()}
    return rewards.load(reward)([prompt], [completion], **columns)[0]


@pytest.mark.parametrize("reward", CASES)
@pytest.mark.parametrize("prompt", OPENED)
def test_a_thought_that_the_prompt_opened_has_to_be_closed(reward: str, prompt: Any) -> None:
    right = CASES[reward][0]
    assert scored(reward, prompt, right) == 0.0
    assert scored(reward, prompt, f"Let me see. {right} Or <think> {right}") == 0.0
    assert scored(reward, prompt, f"Let me see.</think>{right}") == 1.0
    assert scored(reward, prompt, f"<think>Let me see.</think>{right}") == 1.0


@pytest.mark.parametrize("reward", CASES)
@pytest.mark.parametrize("prompt", NOT_OPENED)
def test_a_prompt_that_only_speaks_of_thoughts_opens_none(reward: str, prompt: Any) -> None:
    assert scored(reward, prompt, CASES[reward][0]) == 1.0


@pytest.mark.parametrize("reward", CASES)
def test_the_column_prefill_says_what_a_chat_template_adds(reward: str) -> None:
    chat, right = [{"role": "user", "content": "What is it?"}], CASES[reward][0]
    assert scored(reward, chat, right, prefill="<think>\n") == 0.0
    assert scored(reward, chat, f"</think>{right}", prefill="<think>\n") == 1.0
    assert scored(reward, chat, right, prefill="<think></think>") == 1.0
    assert scored(reward, chat, right, prefill=None) == 1.0
    shape = ThinkFormat().verify([Item("I see.</think>It is 42.", prompt="?", columns={"prefill": "<think>\n"})])[0]
    assert shape.score == 1.0


def test_an_opened_thought_hides_a_program() -> None:
    code = "```python\nprint(42)\n```"
    assert extract_code(code) == "print(42)"
    assert extract_code(code, opened=True) is None
    assert extract_code(f"so</think>{code}", opened=True) == "print(42)"


def test_verifiers_see_it_without_the_trainers_function() -> None:
    verdict = rewards.verify("math", [Item(r"\boxed{42}", "42", "What is it?<think>")])[0]
    assert (verdict.status, verdict.score) == (Status.NO_ANSWER, 0.0)


BLANKS = (
    *("\u2800", "\u3164", "\ufe0f", "\u034f", "\uffa0", "\u115f\u1160", "\u17b4\u17b5", "\u180e\u180b", "\U000e0100"),
    *("\U000e0061\U000e007f", "\u00ad\u2060\u2064", "\u202e\u2066", "\x00\x07", "\u3000\u2003", "\ufeff\u200b\u200d"),
    *("\ue000", "\U0001d173", "\u0301\u0308", "\ufff9", "\u2028\u2029", "\U0001d159", "\U00013441\U00013442"),
)


@pytest.mark.parametrize("blank", BLANKS)
def test_a_thought_or_an_answer_that_leaves_no_mark_is_empty(blank: str) -> None:
    for completion in (f"<think>{blank * 3}</think>42", f"<think>I see.</think> {blank}\n{blank}"):
        assert ThinkFormat().verify([Item(completion)])[0].score == 0.0
    tagged = f"<think>{blank}</think><answer>42</answer>"
    assert ThinkFormat(answer_tag=True).verify([Item(tagged)])[0].score == 0.0


def test_what_leaves_a_mark_is_found_among_what_does_not() -> None:
    for mark in ("a", "é", "思", "∅", "…", "7", "😀", "-", "ㅎ", "⠁"):
        assert says_something(f"\u200b\u2800{mark}\ufe0f"), mark
    every = "".join(map(chr, range(0x110000)))
    unseen = [char for char in every if unicodedata.category(char)[0] in "CMZ"]
    assert not says_something("".join(unseen))


def test_blank_letters_are_no_words_of_any_language() -> None:
    for language in ("ko", "en"):
        blank = "\u3164\uffa0\u115f \u2800\u200b " * 20
        assert rewards.verify("language", [Item(f"<think>{blank}</think>5")], language=language)[0].score is None
