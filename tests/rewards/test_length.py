"""Rewards of length and repetition against the papers' formulas, computed by hand."""

from __future__ import annotations

import math
import pickle

import pytest

import rewards
from rewards import Status

RIGHT, WRONG = "<answer>3 * 5</answer>", "<answer>3 + 5</answer>"
GAME = {"numbers": [3, 5], "target": 15}


def ids(*lengths: int) -> list[list[int]]:
    return [list(range(length)) for length in lengths]


def columns(rows: int) -> dict[str, list[object]]:
    return {name: [value] * rows for name, value in GAME.items()}


def test_kimi_within_the_group_of_each_prompt() -> None:
    reward = rewards.load("length", correct="countdown")
    prompts = ["a", "b", "a", "a", "b", "a"]
    completions = [RIGHT, RIGHT, RIGHT, WRONG, WRONG, WRONG]
    lengths = ids(100, 40, 300, 200, 60, 500)
    # a: from 100 to 500, λ = 0.5, 0, 0.25, -0.5; wrong ones at most 0. b: from 40 to 60, λ = 0.5, -0.5.
    expected = [0.5, 0.5, 0.0, 0.0, -0.5, -0.5]
    assert reward(prompts, completions, lengths, **columns(6)) == expected
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert reward(chats, completions, lengths, **columns(6)) == expected
    assert reward(["a", "a"], [RIGHT, WRONG], ids(70, 70), **columns(2)) == [0.0, 0.0], "equal lengths"
    assert reward(["a"], [RIGHT], ids(70), **columns(1)) == [0.0], "a group of one"


def test_what_cannot_be_judged_has_no_length_reward_either() -> None:
    reward = rewards.load("length", correct="countdown")
    scores = reward(["a", "a"], [RIGHT, RIGHT], ids(10, 20), numbers=[None, [3, 5]], target=[15, 15])
    assert scores == [None, -0.5], "the row without a gold still belongs to the group"


def test_cosine_schedule_with_its_clamp() -> None:
    reward = rewards.load("cosine_length", max_tokens=100, correct="countdown")
    lengths = (0, 50, 100, 150, 200)
    rows = {"prompts": ["p"] * 5, "completion_ids": ids(*lengths), **columns(5)}
    assert reward(completions=[RIGHT] * 5, **rows) == pytest.approx([1.0, 0.75, 0.5, 0.5, 0.5])
    assert reward(completions=[WRONG] * 5, **rows) == pytest.approx([-1.0, -0.75, -0.5, -0.5, -0.5])


def test_cosine_with_the_papers_values() -> None:
    # r_c from 2 to 1, r_w from -10 to 0, exceed-length penalty -10; a quarter of the way cos(π/4) = √2/2.
    options = {"right": (2, 1), "wrong": (-10, 0), "exceeded": -10, "correct": "countdown"}
    reward = rewards.load("cosine_length", max_tokens=4000, **options)
    scores = reward(["p"] * 4, [RIGHT, WRONG, RIGHT, WRONG], ids(1000, 1000, 4000, 3999), **columns(4))
    wave = (1 + math.sqrt(0.5)) / 2
    assert scores == pytest.approx([1 + wave, -10 * wave, -10.0, 0.0], abs=1e-5)


def test_soft_overlong_is_equation_13() -> None:
    reward = pickle.loads(pickle.dumps(rewards.load("soft_overlong", max_tokens=100, soft_tokens=20)))
    lengths = ids(0, 80, 81, 90, 100, 101)
    assert reward(["p"] * 6, ["text"] * 6, lengths) == pytest.approx([0.0, 0.0, -0.05, -0.5, -1.0, -1.0])
    hard = rewards.load("soft_overlong", max_tokens=100, soft_tokens=0)
    assert hard(["p"] * 2, ["text"] * 2, ids(100, 101)) == [0.0, -1.0]


def test_repetition_is_the_share_of_repeated_ngrams() -> None:
    reward = rewards.load("repetition", ngram_tokens=2, penalty=-2.0)
    sampled = [[1, 2, 3, 4], [5, 5, 5, 5, 5], [1, 2, 1, 2, 1], [7], []]
    # pairs: 3 of 3 new; 1 of 4 new; (12)(21)(12)(21) 2 of 4 new; none; none.
    assert reward(["p"] * 5, ["text"] * 5, sampled) == [0.0, -1.5, -1.0, 0.0, 0.0]
    loop = list(range(50)) * 20
    default = rewards.load("repetition")
    assert default(["p"] * 2, ["text"] * 2, [loop, list(range(1000))]) == pytest.approx([-(1 - 50 / 961), 0.0])


def test_statuses_follow_correctness_or_the_absence_of_a_penalty() -> None:
    rows = [{"completion": text, "completion_ids": [1, 2], **GAME} for text in (RIGHT, WRONG, "none")]
    verdicts = rewards.verify("cosine_length", rows, max_tokens=10, correct="countdown")
    assert [v.status for v in verdicts] == [Status.CORRECT, Status.WRONG, Status.NO_ANSWER]
    verdicts = rewards.verify("soft_overlong", rows[:2], max_tokens=1, soft_tokens=1)
    assert [v.status for v in verdicts] == [Status.WRONG, Status.WRONG]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("soft_overlong", {"max_tokens": 10, "soft_tokens": 11}, "soft_tokens"),
        ("soft_overlong", {"max_tokens": 10, "soft_tokens": -1}, "soft_tokens"),
        ("cosine_length", {"max_tokens": 0}, "max_tokens"),
        ("cosine_length", {"max_tokens": 9, "right": (1,)}, "right and wrong"),
        ("repetition", {"ngram_tokens": 0}, "ngram_tokens"),
        ("repetition", {"penalty": 1.0}, "max_penalty"),
    ],
)
def test_senseless_options_are_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rewards.load(name, **options)(["p"], ["text"], [[1]])


def test_texts_without_token_ids_have_no_length() -> None:
    with pytest.raises(ValueError, match="completion_ids"):
        rewards.load("soft_overlong", max_tokens=9, soft_tokens=1)(["p"], ["text"])
