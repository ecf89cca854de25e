"""The shape of a completion: what counts, what does not, and how long hostile text may take."""

from __future__ import annotations

import pickle
import time

import pytest

import rewards
from rewards import Item, Status
from rewards.format import ThinkFormat

GOOD = "<think>7 * 6 = 42</think>\nThe answer is 42."
TAGGED = "<think>7 * 6 = 42</think>\n<answer>42</answer>"


def score(completion: str, prompt: str = "What is 7 * 6?", **options: object) -> float | None:
    return ThinkFormat(**options).verify([Item(completion, prompt=prompt)])[0].score  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "completion",
    [
        GOOD,
        "  \n" + GOOD + "\n\n",
        GOOD + "<|im_end|>",
        GOOD + "<|im_end|>\n<|endoftext|><|endoftext|>",
        "<think>\n思考\n</think>\n∅",
        "<think>if a < b and b > c</think>a < c",
        TAGGED,  # R1's summary may hold anything
    ],
)
def test_thought_and_summary_is_accepted(completion: str) -> None:
    assert score(completion) == 1.0


@pytest.mark.parametrize(
    ("completion", "words"),
    [
        ("", "occurs 0 times"),
        ("The answer is 42.", "occurs 0 times"),
        ("<think>7 * 6", "</think> occurs 0 times"),
        ("7 * 6 = 42</think> 42", "<think> occurs 0 times"),
        ("Sure! " + GOOD, "text before"),
        ("<|im_end|>" + GOOD, "text before"),
        (GOOD + " <think>more</think>", "occurs 2 times"),
        ("<think>a <think>b</think> 42", "<think> occurs 2 times"),
        ("<think>a</think> 42 </think>", "</think> occurs 2 times"),
        ("</think>42<think>a", "text before"),
        ("<think></think>42", "thought is empty"),
        ("<think> \n\t</think>42", "thought is empty"),
        ("<think>\u200b\u200d\ufeff</think>42", "thought is empty"),
        ("<think>7 * 6</think>", "answer is empty"),
        ("<think>7 * 6</think>\n \u200b<|im_end|>", "answer is empty"),
        ("<THINK>a</THINK>42", "occurs 0 times"),
    ],
)
def test_other_shapes_score_nothing_and_say_why(completion: str, words: str) -> None:
    verdict = ThinkFormat().verify([Item(completion)])[0]
    assert (verdict.status, verdict.score) == (Status.WRONG, 0.0)
    assert words in verdict.detail


def test_r1_zero_template_wants_the_answer_wrapped_and_nothing_beside_it() -> None:
    assert score(TAGGED, answer_tag=True) == 1.0
    assert score(TAGGED + "</s>\n", answer_tag=True) == 1.0
    for broken in (
        GOOD,
        TAGGED + " Hope this helps!",
        "<think>7</think> So: <answer>42</answer>",
        "<think>7 <answer>42</answer></think>",
        "<think>7</think><answer> </answer>",
        "<think>7</think><answer>41</answer><answer>42</answer>",
        "<answer>42</answer><think>7</think>",
        "<think>7<answer></think>42</answer>",
    ):
        assert score(broken, answer_tag=True) == 0.0, broken


def test_a_template_that_opens_the_thought_is_seen_at_the_prompts_end() -> None:
    inside = "7 * 6 = 42</think>42"
    opened = "User: What is 7 * 6?\nAssistant: <think>\n"
    assert score(inside, prompt=opened) == 1.0
    assert score(inside) == 0.0
    assert score(GOOD, prompt=opened) == 0.0, "the tag would stand there twice"
    assert score("</think>42", prompt=opened) == 0.0
    assert score(inside, prefilled=True) == 1.0
    assert score(GOOD, prompt=opened, prefilled=False) == 1.0
    assert score(GOOD, prompt="Use <think> tags.") == 1.0


def test_it_is_a_trl_reward_for_texts_and_messages_and_survives_pickling() -> None:
    reward = pickle.loads(pickle.dumps(rewards.load("think_format")))
    assert reward(["p", "p"], [GOOD, "42"]) == [1.0, 0.0]
    chat = [[{"role": "user", "content": "p"}]] * 2
    replies = [[{"role": "assistant", "content": text}] for text in (GOOD, "42")]
    assert reward(chat, replies) == [1.0, 0.0]
    with pytest.raises(rewards.RewardError, match="did you mean 'prefilled'"):
        rewards.load("think_format", prefiled=True)
    with pytest.raises(ValueError, match="prefilled"):
        ThinkFormat(prefilled="yes")  # type: ignore[arg-type]


def test_hostile_text_takes_linear_time() -> None:
    million = 1_000_000
    hostile = [
        "<think>" * (million // 7),
        "<think>" + "</think>" * (million // 8),
        "<think>a</think>b" + "<|im_end|>" * (million // 10),
        "<think>a</think>b" + "<|im_end|>x" * (million // 11),
        "<think>a</think>b" + " " * million,
        "<think>" + "\u200b" * million + "</think>b",
        "<answer>" * (million // 8) + "</answer>" * (million // 9),
        "<" * million,
    ]
    started = time.process_time()
    for text in hostile:
        score(text)
        score(text, answer_tag=True)
    assert time.process_time() - started < 5.0


def test_a_completion_that_was_cut_off_has_no_format() -> None:
    text = "<think>so</think> 4"
    for truncated, score in ((True, 0.0), (False, 1.0), (None, 1.0)):
        (verdict,) = ThinkFormat().verify([Item(text, columns={"truncated": truncated})])
        assert verdict.score == score
        assert verdict.detail == ("it was cut off" if truncated else "")
