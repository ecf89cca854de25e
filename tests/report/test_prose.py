"""The paragraph in plain words, against runs whose story is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.report.prose import paragraph
from pipeline.report.run_data import read_run
from pipeline.report.scores import build_table
from tests.report import nano_run

SAMPLING = {"engine": "vllm", "temperature": 0.6}


def words(run: Path) -> str:
    found = read_run(run)
    return paragraph(found, build_table(found))


def entry(accuracy: float, tokens: float, half: float = 0.02) -> dict[str, Any]:
    return {
        "t": {
            "n": 100,
            "samples": 1,
            "pass@1": accuracy,
            "low": accuracy - half,
            "high": accuracy + half,
            "tokens": tokens,
        }
    }


def test_the_whole_chain(nano: Path) -> None:
    assert words(nano) == (
        "All 12 stages finished in 9 min 41 s. `zero` answers 81.2 % (95 % CI 77.1–84.8) of chain/test against 27.0 % "
        "of `base`, and writes 2.1× as many tokens. At the end of the chain, `r1` answers 85.2 % (95 % CI 81.4–88.4) "
        "of chain/test: 4.0 points above `zero` (the two intervals overlap, so this may be chance). The student, "
        "`student`, with 30 % of the parameters of `dev2`, answers 76.2 % (95 % CI 71.8–80.2), 92 % of what its "
        "teacher `dev2` reaches; reinforcement learning alone brings the same student (`student_rl`) to 41.0 % "
        "(95 % CI 36.3–45.9)."
    )


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (entry(0.6, 40), "and writes 2.0× as many tokens."),
        (entry(0.6, 20.4), "and writes as many tokens."),
        (entry(0.6, 10), "and writes 0.5× as many tokens."),
        ({"t": {**entry(0.6, 1)["t"], "tokens": None}}, "against 30.0 % of `base`."),
    ],
)
def test_lengths_are_compared(tmp_path: Path, after: dict[str, Any], expected: str) -> None:
    stages = {
        "base": {"kind": "import_model", "model": "m"},
        "zero": {"kind": "grpo", "model": "@base"},
        "score": {"kind": "evaluate"},
    }
    metrics = {"score": {"sampling": SAMPLING, "scores": {"base": entry(0.3, 20), "zero": after}}}
    assert words(nano_run.build(tmp_path / "run", stages, metrics=metrics)).endswith(expected)


def test_a_worse_end_of_the_chain_is_called_worse(tmp_path: Path) -> None:
    scores = nano_run.nano_scores()
    scores["r1"]["chain/test"] |= {"pass@1": 0.5, "low": 0.45, "high": 0.55}
    metrics = {"score": {"sampling": SAMPLING, "scores": scores}}
    text = words(nano_run.build(tmp_path / "run", metrics=metrics))
    assert "`r1` answers 50.0 % (95 % CI 45.0–55.0) of chain/test: 31.2 points below `zero`." in text


def test_without_reinforcement_learning_the_best_is_named(tmp_path: Path) -> None:
    stages = {
        "a": {"kind": "import_model", "model": "m"},
        "b": {"kind": "sft", "model": "@a"},
        "score": {"kind": "evaluate"},
    }
    metrics = {"score": {"sampling": SAMPLING, "scores": {"a": entry(0.3, 20), "b": entry(0.4, 20)}}}
    text = words(nano_run.build(tmp_path / "run", stages, metrics=metrics))
    assert text.endswith("`b` answers 40.0 % (95 % CI 38.0–42.0) of t, the best of 2 evaluated models.")


def test_no_score_no_claim(tmp_path: Path) -> None:
    text = words(nano_run.build(tmp_path / "run", waiting=("score",), unfinished=("r1",)))
    assert text.endswith("No evaluation has finished, so there is no score to show.")
    assert "%" not in text
