"""The needle task and its corpus, read anew: every answer stands in its text, as far back as was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.corpora.needle import NeedleCorpus
from pipeline.data.corpus import CorpusError
from pipeline.tasks.base import TaskError
from pipeline.tasks.needle import Needle


def read(question: str) -> tuple[list[str], list[str]]:
    """The words of the text, and the names that are asked for."""
    *words, mark = question.split()
    assert mark == "?"
    asked = [word for word in words if "=" not in word and any(fact.startswith(f"{word}=") for fact in words)]
    return words[: len(words) - len(asked)], asked


@pytest.mark.parametrize("distance", [None, (20, 35)])
def test_the_answer_stands_in_the_text_once_and_as_far_back_as_asked(distance: tuple[int, int] | None) -> None:
    task = Needle(words=48, facts=6, asked=2, distance=distance)
    problems = task.problems("test", 60)
    seen = set()
    for problem in problems:
        text, asked = read(problem.question)
        assert len(text) == 48
        assert len(asked) == 2
        facts = {fact.split("=")[0]: fact for fact in text if "=" in fact}
        assert len(facts) == sum("=" in word for word in text) == 6
        assert problem.answer == " ".join(facts[name] for name in asked)
        backs = [len(text) - 1 - text.index(facts[name]) for name in asked]
        assert problem.columns["distance"] == max(backs)
        assert all((distance or (0, 48))[0] <= back <= (distance or (0, 48))[1] for back in backs)
        seen |= set(backs)
    assert len(seen) > 12, "facts lie anywhere"
    assert not task.validate(problems)
    assert not {p.question for p in problems} & {p.question for p in task.problems("train", 60)}


@pytest.mark.parametrize(("length", "facts", "asked"), [(24, 3, 2), (100, 8, 4), (64, 4, 1)])
def test_every_document_is_as_long_as_it_says_and_answers_its_question(length: int, facts: int, asked: int) -> None:
    documents = list(NeedleCorpus(length, facts, asked).documents(20, seed=1))
    assert len(set(documents)) == 20
    for document in documents:
        assert len(document.split()) + 1 == length, "with the end of the sequence"
        question, answer = document.removeprefix("User: ").split(" Assistant: <answer> ")
        text, names = read(question)
        assert answer.removesuffix(" </answer>").split() == [
            next(word for word in text if word.startswith(f"{name}=")) for name in names
        ]
        assert len(names) == asked


@pytest.mark.parametrize(
    "options",
    [{"facts": 0}, {"facts": 13}, {"words": 3}, {"asked": 5}, {"distance": [9]}, {"distance": [9, 4]}, {"asked": 0}],
)
def test_impossible_needles_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="needle"):
        Needle(**options)


def test_a_document_with_no_room_for_its_facts_is_refused() -> None:
    with pytest.raises(CorpusError, match="in a length of 10"):
        NeedleCorpus(length=10, facts=4, asked=2)
