"""Reward functions that are not ours: every way to return a score, and every way to get it wrong, named."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import Composite, Part, RewardFunction
from rewards.registry import find, never_returns
from rewards.scores import ScoreError

OWN = """
import asyncio
import os
import sys
from fractions import Fraction

import numpy

from rewards import Status, Verdict

clients = []


async def later(completion):
    await asyncio.sleep(0.05)
    return float(len(completion))


async def later_batch(completions, **columns):
    clients.append(asyncio.get_running_loop())
    assert all(loop is clients[0] for loop in clients), "a client that is kept open belongs to one loop"
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


async def later_broken(completion):
    await asyncio.sleep(0)
    return 1 / (len(completion) - 2)


class Patient:
    async def verify(self, items):
        await asyncio.sleep(0)
        return [Verdict.of(Status.CORRECT) for _ in items]


class Numbers:
    def verify(self, items):
        return [0.5 for _ in items]


def kinds(completion):
    return {
        "float": 0.5, "bool": True, "numpy": numpy.float32(0.5), "array": numpy.array(0.5), "fraction": Fraction(1, 2),
        "dict": {"score": 0.5, "pred": "x"}, "reward": {"reward": 1, "acc": True}, "none": None,
        "verdict": Verdict.of(Status.REJECTED, "y"), "dict of none": {"score": None},
        "text": "0.5", "bytes": b"1", "list": [0.5], "tuple": (0.5, "x"), "nan": float("nan"), "inf": {"score": -1e999},
        "huge": -2e15,
        "complex": 1j, "no score": {"acc": 1.0, "pred": "x"}, "object": object(), "score text": {"score": "1"},
    }[completion]


def forks(completion):
    if not (child := os.fork()):
        if completion == "exits":
            sys.exit(7)
        return 1.0
    return float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")


def mute(completion):
    raise Mute if completion == "mute" else ValueError("one\\ntwo")


def exits(completion):
    sys.exit(3)


def empties(completions, answer):
    completions[:], answer[:] = [""] * len(completions), ["0"] * len(answer)
    return [0.5] * len(completions)


def as_array(completions, **columns):
    return numpy.arange(len(completions), dtype=float)


def as_mapping(completions, **columns):
    return {"scores": [1.0] * len(completions), "acc": 1.0}


def as_generator(completions, **columns):
    for _ in completions:
        yield 0.5


def scalar(completions, **columns):
    return 1.0


def scalar_array(completions, **columns):
    return numpy.float64(1.0)


def text(completions, **columns):
    return "11"


def too_many(completions, **columns):
    return [1.0] * (len(completions) + 1)


def no_mapping(completions, **columns):
    return {"accuracy": [1.0] * len(completions)}


def forgotten(completion):
    score = float(len(completion))


def forgotten_batch(completions, **columns):
    [float(len(text)) for text in completions]


async def forgotten_later(completion):
    await asyncio.sleep(0)


def forgotten_branch(completion):
    if completion == "never so":
        return 1.0


def raises(completion, answer):
    return 1.0 / (int(answer) - 3)


def raises_batch(completions, **columns):
    return [columns["nothing"] for _ in completions]


def wants(completion, difficulty):
    return float(difficulty)


def wants_batch(completions, difficulty, topic, level=1, **columns):
    return [1.0] * len(completions)


def wants_tokens(completion, completion_ids):
    return float(len(completion_ids))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def ask(use: str, *completions: str, **columns: Any) -> list[float | None]:
    return rewards.load(use)(["q"] * len(completions), list(completions), **columns)


def test_coroutines_are_awaited_and_those_of_a_batch_together(own: str) -> None:
    import time

    took = []
    for _ in range(5):  # the best counts: on a busy machine waiting takes longer
        started = time.monotonic()
        assert ask(f"{own}:later", *["abc"] * 100) == [3.0] * 100
        took.append(time.monotonic() - started)
        if took[-1] < 2.0:
            break
    assert min(took) < 2.0, "one after another they take five seconds"
    function = rewards.load(f"{own}:later_batch")
    for _ in range(3):
        assert function(["q"] * 2, ["a", "ab"]) == [1.0, 2.0]
    again = pickle.loads(pickle.dumps(function))
    function.close()
    assert again.use == function.use
    assert ask(f"{own}:Patient", "a", "b") == [1.0, 1.0]
    with pytest.raises(ScoreError, match=r"later_broken' raised ZeroDivisionError.*own.py:\d+.*row 1 .*'ab'"):
        ask(f"{own}:later_broken", "abc", "ab")


def test_coroutines_run_where_a_loop_is_running(own: str) -> None:
    import asyncio

    async def notebook() -> list[float | None]:
        return ask(f"{own}:later", "abc")

    assert asyncio.run(notebook()) == [3.0]


def test_every_kind_of_score_that_says_what_it_means(own: str) -> None:
    good = ("float", "bool", "numpy", "array", "fraction", "dict", "reward", "none", "verdict", "dict of none")
    scores = ask(f"{own}:kinds", *good)
    assert scores == [0.5, 1.0, 0.5, 0.5, 0.5, 0.5, 1.0, None, 0.0, None]
    verdicts = rewards.verify(f"{own}:kinds", [("dict", None), ("verdict", None)])
    assert "pred" in verdicts[0].detail and verdicts[1].extracted == "y"
    assert ask(f"{own}:as_array", "a", "b") == [0.0, 1.0]
    assert ask(f"{own}:as_mapping", "a", "b") == [1.0, 1.0]
    assert ask(f"{own}:as_generator", "a", "b") == [0.5, 0.5]
    assert ask(f"{own}:Numbers", "a", "b") == [0.5, 0.5]
    assert ask(f"{own}:scalar", "a") == [1.0], "one number for one completion says which"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("text", "the text '0.5'"),
        ("bytes", "the text b'1'"),
        ("list", r"\[0.5\] \(list\)"),
        ("tuple", r"\(0.5, 'x'\) \(tuple\)"),
        ("nan", "gave nan"),
        ("inf", "gave -inf"),
        ("huge", r"gave -2000000000000000.0 .*no larger than 1e\+15"),
        ("complex", "1j"),
        ("no score", "without the key 'score'.*its keys: acc, pred"),
        ("object", "object"),
        ("score text", "the text '1'"),
    ],
)
def test_what_is_no_score_is_named_with_its_row(own: str, bad: str, words: str) -> None:
    with pytest.raises(ScoreError, match=rf"own.py:kinds' .*{words}"):
        ask(f"{own}:kinds", "float", "float", bad)
    with pytest.raises(ScoreError, match=rf"row 2 \(completion '{bad}', problem p3\)"):
        ask(f"{own}:kinds", "float", "float", bad, id=["p1", "p2", "p3"])
    composite = Composite([Part(f"{own}:kinds", where={"mine": True})])
    with pytest.raises(ScoreError, match="row 2 "):
        composite(["q"] * 3, ["float", "other", bad], mine=[True, False, True])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scalar", "returned 1.0 for 2 completions: return a list"),
        ("scalar_array", "for 2 completions: return a list"),
        ("text", "the text '11' for 2 completions"),
        ("too_many", "gave 3 scores for 2 completions: return one for each"),
        ("no_mapping", "without the key 'score'.*its keys: accuracy"),
        ("forgotten_batch", "is a `return` missing"),
        ("raises_batch", r"raised KeyError: 'nothing' \(.*own.py:\d+\), for a batch of 2 rows"),
        ("wants_batch", "needs the columns 'difficulty', 'topic', which the rows lack .they have: answer"),
    ],
)
def test_what_a_batch_gets_wrong_is_named(own: str, name: str, words: str) -> None:
    with pytest.raises(ScoreError, match=rf"own.py:{name}' .*{words}"):
        ask(f"{own}:{name}", "a", "b", answer=["1", "2"])


def test_a_row_on_which_it_raises_is_named_with_the_line(own: str) -> None:
    with pytest.raises(ScoreError, match=r"ZeroDivisionError.*own.py:\d+\), for row 1 \(completion 'b'\): mend it"):
        ask(f"{own}:raises", "a", "b", answer=["1", "3"])
    with pytest.raises(ScoreError, match="needs the column 'difficulty', which the rows lack"):
        ask(f"{own}:wants", "a", answer=["1"])
    assert ask(f"{own}:wants", "a", difficulty=[3]) == [3.0]
    assert rewards.load(f"{own}:wants_tokens")(["q"], ["a"], [[1, 2]]) == [2.0]


@pytest.mark.parametrize("name", ["forgotten", "forgotten_batch", "forgotten_later"])
def test_a_forgotten_return_is_seen_in_the_function(own: str, name: str) -> None:
    assert never_returns(find(f"{own}:{name}").target)
    with pytest.raises(ScoreError, match="is a `return` missing"):
        ask(f"{own}:{name}", "a", "b")
    with pytest.raises(ScoreError, match="is a `return` missing"):
        Composite([Part("think_format"), Part(f"{own}:{name}")])(["q"], ["<think>a</think>b"])


def test_functions_that_return_something_are_not_suspected(own: str) -> None:
    fine = ("later", "kinds", "as_generator", "scalar", "raises", "forgotten_branch", "later_broken", "as_mapping")
    assert not any(never_returns(find(f"{own}:{name}").target) for name in fine)
    assert not never_returns(lambda completion: 1.0 if completion else None)
    assert not never_returns(len)
    assert RewardFunction(f"{own}:forgotten_branch")(["q"], ["a"]) == [None], "elsewhere it may have rows of its own"


def test_training_stops_after_the_first_batch_without_a_single_score(own: str) -> None:
    with pytest.raises(ScoreError, match=r"not one row of the first batch.*forgotten_branch: .*`return`.*2 of 2 rows"):
        Composite([Part(f"{own}:forgotten_branch")])(["q"] * 2, ["a", "b"])
    with pytest.raises(ScoreError, match="not one row"):
        Composite([Part(f"{own}:forgotten_branch"), Part("math")])(["q"], ["a"], answer=[None])


def test_a_function_without_scores_beside_others_is_warned_of(own: str, caplog: pytest.LogCaptureFixture) -> None:
    composite = Composite([Part("think_format"), Part(f"{own}:forgotten_branch", where={"task": "t"})])
    with caplog.at_level(logging.WARNING):
        assert composite(["q"] * 2, ["<think>a</think>b", "c"], task=["t", "u"]) == [1.0, 0.0]
        composite(["q"] * 2, ["<think>a</think>b", "c"], task=["t", "u"])
    assert caplog.text.count("'forgotten_branch' gave no score to any of the first 1 rows") == 1


def test_a_batch_of_bad_golds_is_no_reason_to_stop_but_many_are() -> None:
    composite = Composite([Part("math")])
    for _ in range(7):
        assert composite(["q"] * 2, ["1", "2"], answer=[None, None]) == [None, None]
    copy = pickle.loads(pickle.dumps(composite))
    with pytest.raises(ScoreError, match=r"first 8 batches.*math: there is no gold answer \(2 of 2 rows\)"):
        composite(["q"] * 2, ["1", "2"], answer=[None, None])
    assert copy(["q"] * 2, ["1", "2"], answer=["1", None]) == [1.0, None]
    brief = Composite([Part("language")])
    for _ in range(20):
        assert brief(["q"] * 2, ["1", "2"]) == [None, None], "what the model writes stops nothing"
    for _ in range(20):
        assert copy(["q"] * 2, ["1", "2"], answer=[None, None]) == [None, None], "there was something to learn"


def test_a_child_that_comes_back_from_a_reward_is_ended(own: str) -> None:
    assert ask(f"{own}:forks", "returns", "exits") == [1.0, 7.0], "exit codes of the children"
    with pytest.raises(ScoreError, match=r"left by sys.exit\(3\) \(\S*own.py:\d+\)"):
        ask(f"{own}:exits", "a")


def test_an_error_is_told_in_one_line_also_if_it_has_no_words(own: str) -> None:
    with pytest.raises(ScoreError, match=r"raised ValueError: one two \(\S*own.py:\d+\), for row 0"):
        ask(f"{own}:mute", "a")
    with pytest.raises(ScoreError, match=r"raised Mute: .*failed.* \(\S*own.py:\d+\)"):
        ask(f"{own}:mute", "mute")


def test_what_a_reward_does_to_its_lists_is_its_own(own: str) -> None:
    both = Composite([Part(f"{own}:empties"), Part("exact")])
    completions, answer = ["<answer>4</answer>", "<answer>5</answer>"], ["4", "4"]
    assert both(["q", "q"], completions, answer=answer) == [1.5, 0.5]
    assert completions[0] and answer == ["4", "4"]
