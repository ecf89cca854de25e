"""The text that a nano model learns from, read by hand and then by a reader that knows nothing of how it is made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from pipeline.corpora.chain import ChainCorpus
from pipeline.data.corpus import CorpusError, load
from pipeline.tasks.chain import Chain

WORDS = "zero one two three four five six seven eight nine", "零 一 二 三 四 五 六 七 八 九"
DIGITS = {word: value for language in WORDS for value, word in enumerate(language.split())}
SHAPE = re.compile(
    r"(Notes: |User: )(\d(?: [-+*]\d+)+) = (?:Working: |Assistant: )(?:<think> (.+) </think> )?"
    r"(?:<answer> (\d) </answer>|(\d))"
)


class Read(NamedTuple):
    """A document about a chain: the steps, the digits of its thought, its answer, and how each digit came about."""

    notes: bool
    steps: list[str]
    thought: list[int]
    answer: int
    right: int
    slipped: list[bool]


def read(document: str) -> Read | None:
    """Read a document by working its chain out with Python's own arithmetic; `None` for a request."""
    match = SHAPE.fullmatch(document)
    if match is None:
        return None
    opening, chain, thought, *answers = match.groups()
    start, *steps = chain.split()
    words = [DIGITS[word] for word in (thought or "").split()]
    right = int(start)
    for step in steps:
        right = eval(f"({right} {step[0]} {step[1:]}) % 10")
    slipped = []
    if len(words) == len(steps) + 1:
        assert words[0] == int(start)
        slipped = [
            eval(f"({before} {step[0]} {step[1:]}) % 10") != after
            for before, step, after in zip(words[:-1], steps, words[1:], strict=True)
        ]
    return Read(opening == "Notes: ", steps, words, int(answers[0] or answers[1]), right, slipped)


def about_chains(corpus: ChainCorpus, n: int, seed: int = 0) -> Iterator[Read]:
    return filter(None, map(read, corpus.documents(n, seed)))


@pytest.mark.parametrize(
    ("document", "thought", "slipped"),
    [
        (
            "User: 7 +3 *7 -2 *3 +1 -3 = Assistant: <think> seven zero 零 八 four 五 two </think> <answer> 2 </answer>",
            [7, 0, 0, 8, 4, 5, 2],
            [],
        ),
        (  # the third digit should be 0; from 4 on all is right again, and so 4 is the answer
            "User: 7 +3 *7 -2 *3 +1 -3 = Assistant: <think> seven zero 四 two 六 七 four </think> <answer> 4 </answer>",
            [7, 0, 4, 2, 6, 7, 4],
            [1],
        ),
        (  # 9 - 1 = 8, not 3; 3 * 3 = 9, not 0
            "Notes: 9 -1 *3 = Working: <think> nine three zero </think> <answer> 0 </answer>",
            [9, 3, 0],
            [0, 1],
        ),
    ],
)
def test_the_reader_reads_what_was_worked_out_by_hand(document: str, thought: list[int], slipped: list[int]) -> None:
    found = read(document)
    assert found is not None
    assert found.thought == thought
    assert [number for number, slip in enumerate(found.slipped) if slip] == slipped
    assert found.answer == thought[-1]
    assert (found.answer == found.right) == (not slipped)


@pytest.mark.parametrize(("slips", "wrong"), [(0.0, 0.0), (0.2, 0.18), (1.0, 0.9)])
def test_so_many_results_are_random_digits_and_the_rest_goes_on_from_them(slips: float, wrong: float) -> None:
    """One random digit in ten is right by chance."""
    documents = [*about_chains(ChainCorpus(slips=slips), 12000)]
    assert {document.notes for document in documents if document.thought} == {True, False}
    for notes in (True, False):
        results = [s for document in documents if document.notes is notes for s in document.slipped]
        assert len(results) > 2000
        assert sum(results) / len(results) == pytest.approx(wrong, abs=0.02)
    by_place = [*zip(*(document.slipped for document in documents if document.slipped), strict=True)]
    for place in by_place:
        assert sum(place) / len(place) == pytest.approx(wrong, abs=0.03), "every result slips as often as any other"
    assert all(document.answer == document.thought[-1] for document in documents if document.thought)
    assert all(document.answer == document.right for document in documents if not document.thought)


def test_a_slip_is_any_digit() -> None:
    documents = [*about_chains(ChainCorpus(slips=1.0, thinking=1.0), 3000)]
    seen = Counter(digit for document in documents for digit in document.thought[1:])
    total = seen.total()
    assert all(seen[digit] / total == pytest.approx(0.1, abs=0.01) for digit in range(10))


def test_a_skimmed_thought_shows_every_second_of_the_slipped_results() -> None:
    documents = [*about_chains(ChainCorpus(slips=0.3, notes=0.0, thinking=1.0, skimmed=1.0), 500)]
    assert {len(document.thought) for document in documents} == {4}
    assert all(document.answer == document.thought[-1] for document in documents)
    assert any(document.answer != document.right for document in documents)


def test_only_the_given_steps_occur_and_every_one_of_them() -> None:
    steps = "+9 -8 *3 *7 +14"
    documents = [*about_chains(ChainCorpus(length=4, steps=steps), 2000)]
    assert {len(document.steps) for document in documents} == {4}
    assert {step for document in documents for step in document.steps} == set(steps.split())
    assert all(document.answer == document.right for document in documents)


def test_no_problem_of_the_test_split_is_among_them() -> None:
    corpus = ChainCorpus(length=2, steps="+1 +2 *3", slips=0.2)
    held_out = {problem.question for problem in Chain(length=2, steps="+1 +2 *3").problems("test", 5)}
    asked = {document.split(": ")[1].partition(" =")[0] + " =" for document in corpus.documents(60, seed=0)}
    assert len(asked) > 20
    assert not asked & held_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slips": 1.5}, r"slips is a share, a number between 0 and 1, not 1\.5"),
        ({"slips": "often"}, "slips is a share, a number between 0 and 1, not 'often'"),
        ({"bare": True}, "bare is a share, a number between 0 and 1, not True"),
        ({"steps": "+1 /2"}, r"a step is such as \+3, -1 or \*7, not '/2'"),
        ({"steps": 1}, r"steps are one text, such as '\+1 -2 \*3', not 1"),
        ({"steps": ""}, "at least one step"),
        ({"length": 0}, "length is a number or"),
        ({"words": 0}, "words is 1 or more"),
        ({"requests": "sing"}, "kinds are of"),
        ({"notes": 0.7, "general": 0.4}, "more than all documents"),
        ({"slip": 0.2}, "did you mean 'slips'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load("chain", options)
