"""Answers to the puzzles of the library reasoning-gym, without trusting its scorers.

The scorers were written for honest answers. Nine of them execute the answer's text (`eval`, or sympy's `parse_expr`,
which is the same), some never end on hostile input, and many pay for nonsense: the gold answer somewhere in a pile of
text, a grid of which some cells are right. So here

* an answer that is the gold answer, letter for letter, is right, and no scorer is asked;
* countdown is judged by `rewards.countdown`; the other eight that execute are refused: their rows have no score;
* every other scorer runs in a pool of processes with a deadline and a memory limit, and counts only at full marks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.bounds import AtLeastOne, Positive
from rewards.countdown import ExpressionError, check
from rewards.pool import STATUS_OF, Fate, Outcome, Pool, PoolError
from rewards.text import answer_tag
from rewards.verdict import Item, Status, Verdict

OWN_SCORER = "countdown"
EXECUTING = frozenset(
    {
        "binary_matrix",
        "composite",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Datasets whose `score_answer` executes the answer's text (reasoning-gym 0.1.25), beside countdown; and `composite`,
which hands the answer over to any of them."""

MAX_CHARACTERS = 20_000
"""Longest answer that is scored: the largest grids have some two thousand characters."""


class ReasoningGym:
    """1 if the library's scorer gives full marks to what stands in `<answer>…</answer>`; else 0.

    Rows carry the column `puzzle`, which says how the problem was made, as JSON text: `dataset`, `config`, `seed`,
    `index` (and for countdown `numbers` and `target`). The scorer makes the problem anew from it.

    Args:
        workers: processes; as many as there are cores, up to eight, if not given.
        deadline_s: seconds for one answer.
        rss_mib: MiB of memory for one answer.
    """

    columns = ("puzzle",)
    """What rows must have."""

    def __init__(
        self, workers: AtLeastOne | None = None, deadline_s: Positive = 5.0, rss_mib: AtLeastOne = 512
    ) -> None:
        self._pool = Pool("rewards.reasoning_gym_scoring:score", workers, deadline_s, rss_mib)

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item; a row without a puzzle, or with one that is refused, is `bad_gold`."""
        verdicts, calls = dict[int, Verdict](), dict[int, list[Any]]()
        for row, item in enumerate(items):
            decided = self._decide(item)
            if isinstance(decided, Verdict):
                verdicts[row] = decided
            else:
                calls[row] = decided
        try:
            outcomes = self._pool.map(list(calls.values())) if calls else []
        except PoolError as error:
            outcomes = [Outcome(Fate.UNREACHED, detail=str(error))] * len(calls)
        for (row, call), outcome in zip(calls.items(), outcomes, strict=True):
            verdicts[row] = _judged(outcome, call[-1])
        return [verdicts[row] for row in range(len(items))]

    def prepare(self) -> None:
        """Start the pool, so that the first answer does not wait for its imports."""
        self._pool.start()

    def close(self) -> None:
        """Stop the processes."""
        self._pool.close()

    def _decide(self, item: Item) -> Verdict | list[Any]:
        """A verdict that needs no scorer, or the scorer's arguments."""
        try:
            puzzle = _puzzle(item)
        except (ValueError, TypeError, KeyError) as error:
            return Verdict.of(Status.BAD_GOLD, detail=f"the row has no puzzle: {error}")
        answer = answer_tag(item.split()[1])
        if not answer:
            return Verdict.of(Status.NO_ANSWER, detail="there is no <answer> after the thought")
        if len(answer) > MAX_CHARACTERS:
            return Verdict.of(Status.REJECTED, answer[:80], f"longer than {MAX_CHARACTERS} characters")
        if puzzle["dataset"] in EXECUTING:
            return Verdict.of(Status.BAD_GOLD, detail=f"the scorer of {puzzle['dataset']} executes what it is given")
        if answer == str(item.answer).strip():  # never so for puzzles without a gold answer: theirs is empty
            return Verdict.of(Status.CORRECT, answer)
        if puzzle["dataset"] == OWN_SCORER:
            return _countdown(answer, puzzle)
        where = [puzzle[key] for key in ("dataset", "config", "seed", "index")]
        return [*where, str(item.answer), answer]


def gold_of(entry: Mapping[str, Any]) -> str:
    """The library's answer to a puzzle; empty where it knows none."""
    return "" if entry["answer"] is None else str(entry["answer"])


def _puzzle(item: Item) -> Mapping[str, Any]:
    puzzle = json.loads(item.columns["puzzle"])
    needed = ("numbers", "target") if puzzle["dataset"] == OWN_SCORER else ("config", "seed", "index")
    if missing := [key for key in needed if key not in puzzle]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return dict(puzzle)


def _countdown(answer: str, puzzle: Mapping[str, Any]) -> Verdict:
    try:
        fault = check(answer, puzzle["numbers"], puzzle["target"])
    except ExpressionError as error:
        fault = str(error)
    return Verdict.of(Status.WRONG if fault else Status.CORRECT, answer, fault)


def _judged(outcome: Outcome, answer: str) -> Verdict:
    if outcome.fate is not Fate.DONE:
        return Verdict.of(STATUS_OF[outcome.fate], answer, outcome.detail, outcome.ms)
    if outcome.value is None:
        detail = "the library makes another problem of this puzzle now: was it updated?"
        return Verdict.of(Status.BAD_GOLD, answer, detail, outcome.ms)
    full = outcome.value >= 1.0
    return Verdict.of(Status.CORRECT if full else Status.WRONG, answer, f"score {outcome.value:g}", outcome.ms)
