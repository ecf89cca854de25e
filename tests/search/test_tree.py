"""PUCT, growth and backing up against values computed by hand; budgets to the token."""

from __future__ import annotations

from math import sqrt

import pytest

from pipeline.sampling.scores import same_spelling
from pipeline.search.budget import Found, at_budget, ranked
from pipeline.search.tree import Grown, Tree
from rewards.verdict import Status, Verdict


def test_selection_growth_and_backing_up_by_hand() -> None:
    tree = Tree(exploration=2.0)
    root = tree.root
    assert tree.select() is root
    # of four samples two are the step 7 and one ends the answer
    first = tree.grow(
        root, [Grown((7,), 1, False), Grown((8, 9), 2, True), Grown((7,), 1, False), Grown((5,), 1, False)]
    )
    assert [(node.ids, node.prior, node.at) for node in first] == [((7,), 0.5, 1), ((8, 9), 0.25, 3), ((5,), 0.25, 5)]
    assert tree.spent == 5
    for node, value in zip(first, (0.2, 0.9, 0.6), strict=True):
        tree.back_up(node, value)
    assert (root.visits, root.total) == (3, pytest.approx(1.7))
    assert [node.score(2.0) for node in first] == pytest.approx(
        [0.2 + 2 * 0.5 * sqrt(3) / 2, 0.9 + 2 * 0.25 * sqrt(3) / 2, 0.6 + 2 * 0.25 * sqrt(3) / 2]
    )
    assert [node.closed for node in first] == [False, True, False]
    # 1.07 for (7,), 1.03 for (5,); (8, 9) would have 1.33, but is a whole answer already
    assert tree.select() is first[0]
    second = tree.grow(first[0], [Grown((7, 1), 1, True), Grown((7, 1), 1, True)])
    assert [(node.ids, node.prior, node.at) for node in second] == [((7, 1), 1.0, 6)]
    assert tree.spent == 7, "equal samples are one child, and cost what they cost"
    tree.back_up(second[0], 0.4)
    assert (first[0].visits, first[0].mean) == (2, pytest.approx(0.3))
    assert (root.visits, root.mean) == (4, pytest.approx(2.1 / 4))
    assert first[0].closed
    assert not root.closed
    assert tree.select() is first[2], "nothing grows below a node whose children are whole answers"
    (last,) = tree.grow(first[2], [Grown((5, 5), 4, True)])
    tree.back_up(last, 0.1)
    assert root.closed
    with pytest.raises(ValueError, match="closed"):
        tree.select()
    assert [(node.ids, node.value, node.at) for node in tree.answers()] == [
        ((7, 1), 0.4, 6),
        ((8, 9), 0.9, 3),
        ((5, 5), 0.1, 11),
    ]


def answer(at: int, value: float, said: str) -> Found:
    right = said == "4"
    return Found(at, value, right, Verdict.of(Status.CORRECT if right else Status.WRONG, said))


def test_an_answer_counts_if_its_last_token_is_within_the_budget() -> None:
    sampled = [[answer(10, 0.3, "5"), answer(20, 0.9, "5"), answer(30, 0.5, "4"), answer(31, 0.6, "4")]]
    searched = [[answer(12, 0.2, "4"), answer(30, 0.8, "5")]]
    found = {budget: at_budget(sampled, searched, budget, same_spelling) for budget in (9, 12, 29, 30, 31)}
    ways = ("sampling", "majority", "best_of_n", "sampling_covers", "tree_search", "tree_covers", "sampled", "searched")
    shares = {
        budget: [scores[way] if way.endswith("ed") else scores[way]["share"] for way in ways]
        for budget, scores in found.items()
    }
    assert shares[9] == [0, 0, 0, 0, 0, 0, 0, 0], "an answer that is broken off is none"
    assert shares[12] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert shares[29] == [0, 0, 0, 0, 1, 1, 2, 1]
    assert shares[30] == [pytest.approx(1 / 3), 0, 0, 1, 0, 1, 3, 2]
    assert shares[31] == [0.5, 0.5, 0, 1, 0, 1, 4, 2], "two votes against two count as half a right answer"
    assert found[31]["sampling"]["low"] < 0.5 < found[31]["sampling"]["high"]


def test_values_are_compared_within_a_problem() -> None:
    easy = [answer(1, 0.9, "4"), answer(2, 0.8, "5"), answer(3, 0.95, "5")]
    hard = [answer(1, 0.1, "5"), answer(2, 0.1, "4"), answer(3, 0.05, "6")]
    assert ranked([easy, hard]) == {"pairs": 4, "right_above_wrong": (1 + 0 + 0.5 + 1) / 4}
    assert ranked([[answer(1, 0.5, "4")], []]) == {"pairs": 0}
