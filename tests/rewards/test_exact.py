"""The plainest grader."""

from __future__ import annotations

import pytest

from rewards import Item, Status
from rewards.exact import Exact


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ("<answer> sun  cat\n</answer>", Status.CORRECT),
        ("<think>cat sun</think> sun cat", Status.CORRECT),
        ("sun cat", Status.CORRECT),
        ("<answer>cat sun</answer> no: <answer>sun cat</answer>", Status.CORRECT),
        ("Sun cat", Status.WRONG),
        ("sun cat.", Status.WRONG),
        ("<think>sun cat</think> cat", Status.WRONG),
        ("<think>sun cat</think>", Status.NO_ANSWER),
        ("<think>sun cat", Status.NO_ANSWER),
        ("<answer></answer>", Status.NO_ANSWER),
        ("", Status.NO_ANSWER),
    ],
)
def test_word_for_word(completion: str, status: Status) -> None:
    assert Exact().verify([Item(completion, "sun cat")])[0].status is status


def test_tags_may_be_asked_for_and_a_gold_must_be_there() -> None:
    assert Exact(tagged=True).verify([Item("sun cat", "sun cat")])[0].status is Status.NO_ANSWER
    assert Exact(tagged=True).verify([Item("<answer>7</answer>", 7)])[0].status is Status.CORRECT
    for gold in (None, "", "  "):
        assert Exact().verify([Item("", gold)])[0].score is None
