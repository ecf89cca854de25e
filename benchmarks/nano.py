"""The tables of docs/results/nano.md: what each model of the chain solves, which of the paper's claims hold, curves.

    python -m benchmarks.nano       # prints them as Markdown; a test compares them with the page

Everything in them is read from `benchmarks/results/nano-r1.json`. A model solves more than another where their 95 %
intervals lie apart, which asks for more than a test of the difference would.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.chain_page import curves

__all__ = ["CLAIMS", "MODELS", "Claim", "Run", "claims", "curves", "read", "scores"]

RESULTS = Path(__file__).resolve().parent / "results" / "nano-r1.json"
CHAINS, LISTS = "chain/test", "requests/test"
MODELS: Mapping[str, str] = {
    "base": "base",
    "zero": "R1-Zero",
    "dev1": "Dev1",
    "dev2": "Dev2",
    "dev3": "Dev3",
    "r1": "R1",
    "student_base": "student base",
    "student": "student",
    "student_rl": "student, RL only",
}

Run = Mapping[str, Any]


class Claim(NamedTuple):
    """That a task is solved more often, or less often, by one model than by another.

    Attributes:
        told: the claim in words.
        task: what is to be solved.
        first, then: the two models, in the order of the chain.
        change: 1 if `then` is to solve more than `first`, -1 if less, 0 if as much.
        paper: what the paper measured of the two.
    """

    told: str
    task: str
    first: str
    then: str
    change: int
    paper: str

    def found(self, run: Run) -> int:
        """The change that was measured: 0 where the 95 % intervals overlap."""
        first, then = (run["table"][model][self.task] for model in (self.first, self.then))
        return int(then["low"] > first["high"]) - int(then["high"] < first["low"])


CLAIMS = (
    Claim("RL alone teaches the base to reason", CHAINS, "base", "zero", 1, "AIME 15.6 → 77.9"),
    Claim("The small cold start costs reasoning", CHAINS, "zero", "dev1", -1, "AIME 77.9 → 59.0"),
    Claim("Reasoning RL wins it back", CHAINS, "dev1", "dev2", 1, "AIME 59.0 → 74.0"),
    Claim("It ends above R1-Zero", CHAINS, "zero", "dev2", 1, "code 50.0 → 63.5, but AIME 77.9 → 74.0"),
    Claim("The second fine-tuning is better still", CHAINS, "dev2", "dev3", 1, "AIME 74.0 → 78.1"),
    Claim("The last RL adds a little", CHAINS, "dev3", "r1", 1, "AIME 78.1 → 79.8"),
    Claim("The whole chain ends above RL alone", CHAINS, "zero", "r1", 1, "AIME 77.9 → 79.8"),
    Claim("RL on reasoning alone costs other skills", LISTS, "base", "zero", -1, "no number of the base"),
    Claim("The cold start brings them back", LISTS, "zero", "dev1", 1, "IF-Eval 46.6 → 71.7"),
    Claim("Reasoning RL leaves them as they are", LISTS, "dev1", "dev2", 0, "IF-Eval 71.7 → 72.0"),
    Claim("The second fine-tuning adds to them", LISTS, "dev2", "dev3", 1, "IF-Eval 72.0 → 78.1"),
    Claim("The last RL does, too", LISTS, "dev3", "r1", 1, "IF-Eval 78.1 → 83.3"),
    Claim("RL alone teaches a small base, too", CHAINS, "student_base", "student_rl", 1, "AIME 47.0 after it"),
    Claim("Distillation teaches it more", CHAINS, "student_rl", "student", 1, "AIME 47.0 → 72.6"),
    Claim("The student stays below its teacher", CHAINS, "r1", "student", -1, "AIME 79.8 → 72.6"),
)
"""In the order of the chain. The paper's numbers: Nature 645 (2025), Table 2 and the text; Qwen-32B as the student."""


def scores(runs: Sequence[Run]) -> Iterator[str]:
    """What every model solves, in percent; the other columns are means over the seeds, of its answers to chains."""
    seeds = [str(run["seed"]) for run in runs]
    chains, lists = ([f"{what}, seed {seeds[0]}", *seeds[1:]] for what in ("chains", "lists"))
    yield _row(["model", *chains, *lists, "with a thought", "thought in English", "tokens"])
    yield _row(["---"] * (4 + 2 * len(seeds)))
    for model, name in MODELS.items():
        solved = [_solved(run, model, task) for task in (CHAINS, LISTS) for run in runs]
        mean = {
            key: fmean(run["table"][model][CHAINS][key] for run in runs) for key in ("thinking", "language", "tokens")
        }
        shares = [f"{100 * mean[key]:.0f} %" for key in ("thinking", "language")]
        yield _row([name, *solved, *shares, f"{mean['tokens']:.1f}"])


def claims(runs: Sequence[Run]) -> Iterator[str]:
    """Each claim, what the paper measured, what was measured here in every seed, and in how many it holds."""
    yield _row(["claim", "in the paper", "here, by seed", "holds in"])
    yield _row(["---"] * 4)
    for claim in CLAIMS:
        task = "chains" if claim.task == CHAINS else "lists"
        measured = ", ".join(
            " → ".join(_solved(run, model, claim.task) for model in (claim.first, claim.then)) for run in runs
        )
        found = [claim.found(run) for run in runs]
        told = f"{found.count(claim.change)} of {len(runs)}"
        if claim.change and -claim.change in found:
            told += f"; the reverse in {found.count(-claim.change)}"
        yield _row([claim.told, claim.paper, f"{task} {measured}", told])


def _solved(run: Run, model: str, task: str) -> str:
    return f"{100 * run['table'][model][task]['pass@1']:.1f}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def read() -> list[Run]:
    """The committed runs, one a seed."""
    runs: list[Run] = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    return runs


if __name__ == "__main__":
    print("\n".join([*scores(read()), "", *claims(read()), "", *curves(read())]))
