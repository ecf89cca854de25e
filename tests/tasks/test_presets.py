"""The sets that everyone uses: rows of the very shape that lies on the hub become problems whose golds are accepted."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.mixture import asked, shaped
from pipeline.files import hub as hub_module
from pipeline.schema.hub import HubSource
from pipeline.tasks.base import Split, TaskError, load
from tests.hub import Hub

CASES: dict[str, tuple[str, dict[str, Any], Split, list[dict[str, Any]], list[str]]] = {
    "dapo": (
        "open-r1/DAPO-Math-17k-Processed",
        {"config": "all"},
        "train",
        [
            {
                "prompt": "In triangle $ABC$, $AB = 3$. Find $AC$.",
                "solution": "34",
                "data_source": "math_dapo",
                "source_prompt": [{"role": "user", "content": "Solve the following math problem step by step. …"}],
                "ability": "MATH",
                "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079"},
            }
        ],
        ["34"],
    ),
    "deepmath": (
        "zwhe99/DeepMath-103K",
        {},
        "train",
        [
            {
                "question": "Evaluate the limit: $\\lim_{x \\to 0} \\frac{\\sin x}{x}$.",
                "final_answer": "1",
                "difficulty": 4.5,
                "topic": "Mathematics -> Calculus",
                "r1_solution_1": "Okay, …",
                "r1_solution_2": "…",
                "r1_solution_3": "…",
            }
        ],
        ["1"],
    ),
    "big_math": (
        "SynthLabsAI/Big-Math-RL-Verified",
        {},
        "train",
        [
            {
                "problem": "What is $3/4$ of $20$?",
                "answer": "15",
                "source": "orca_math",
                "domain": ["Mathematics -> Algebra -> Other"],
                "llama8b_solve_rate": 0.828125,
            }
        ],
        ["15"],
    ),
    "openr1_math": (
        "open-r1/OpenR1-Math-220k",
        {"config": "default"},
        "train",
        [
            {
                "problem": f"What is the speed of ship {n}?",
                "solution": "…",
                "answer": answer,
                "problem_type": "Algebra",
                "question_type": kind,
                "source": "olympiads",
                "uuid": "586fd646",
                "generations": ["<think>\n…"],
                "correctness_math_verify": [True],
                "messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "<think>\n…"}],
            }
            for n, (answer, kind) in enumerate([("10", "math-word-problem"), ("C", "MCQ"), ("proof", "proof")])
        ],
        ["10", "C"],
    ),
    "numina_math": (
        "AI-MO/NuminaMath-1.5",
        {},
        "train",
        [
            {
                "problem": f"Find $x$ in case {n}.",
                "solution": "…",
                "answer": answer,
                "problem_type": "Algebra",
                "question_type": "math-word-problem",
                "problem_is_valid": valid,
                "solution_is_valid": "Yes",
                "source": "cn_contest",
                "synthetic": False,
            }
            for n, (answer, valid) in enumerate([("\\frac{1}{2}", "Yes"), ("7", "Incomplete"), ("notfound", "Yes")])
        ],
        ["\\frac{1}{2}"],
    ),
    "math500": (
        "HuggingFaceH4/MATH-500",
        {"split": "test"},
        "test",
        [
            {
                "problem": "Convert the point $(0,3)$ to polar coordinates.",
                "solution": "We have … $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
                "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
                "subject": "Precalculus",
                "level": 2,
                "unique_id": "test/precalculus/807.json",
            }
        ],
        ["\\left( 3, \\frac{\\pi}{2} \\right)"],
    ),
    "aime-2024": (
        "HuggingFaceH4/aime_2024",
        {},
        "test",
        [{"id": 60, "problem": "Every morning Aya …", "solution": "…", "answer": "204", "url": "…", "year": "2024"}],
        ["204"],
    ),
    "aime-2025": (
        "math-ai/aime25",
        {"split": "test"},
        "test",
        [{"problem": "Find the sum of all integer bases $b>9$ …", "answer": "70", "id": "0"}],
        ["70"],
    ),
    "aime-2026": (
        "MathArena/aime_2026",
        {},
        "test",
        [{"problem_idx": 1, "problem": "Patrick started walking …", "answer": 277, "problem_type": ["Algebra"]}],
        ["277"],
    ),
    "hmmt": (
        "MathArena/hmmt_feb_2025",
        {},
        "test",
        [
            {
                "problem_idx": 1,
                "problem": "Compute the sum …",
                "answer": "\\frac{9 \\sqrt{23}}{23}",
                "problem_type": ["A", "G"],
            }
        ],
        ["\\frac{9 \\sqrt{23}}{23}"],
    ),
}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def published(hub: Hub, name: str, place: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    split, config = place.get("split", "train"), place.get("config", "default")
    card = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n    path: rows.jsonl\n---\n"
    return hub.add(name, {"rows.jsonl": lines(rows), "README.md": card.encode()})


@pytest.mark.parametrize("case", CASES)
def test_rows_of_the_hub_become_problems(case: str, hub: Hub, tmp_path: Path) -> None:
    name, place, split, rows, golds = CASES[case]
    commit = published(hub, name, place, rows)
    use, _, year = case.partition("-")
    options = {"year": int(year)} if year else {}
    task = load(use, {**options, "revision": commit})
    assert task.repository is not None and task.repository.hub == name
    problems = task.problems(split)
    assert sorted(str(problem.answer) for problem in problems) == sorted(golds)
    assert not task.validate(problems), "the grader accepts the golds"
    assert task.column_names is None or all(set(problem.columns) <= set(task.column_names) for problem in problems)
    (tmp_path / "rows.jsonl").write_bytes(lines(rows))
    assert load(use, {**options, "path": str(tmp_path / "rows.jsonl")}).problems(split) == problems


def test_a_set_to_train_on_has_no_test_problems_unless_some_are_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n} + 1?", "solution": str(n + 1), "data_source": "x"} for n in range(50)]
    (tmp_path / "dapo.jsonl").write_bytes(lines(rows))
    task = load("dapo", {"path": str(tmp_path / "dapo.jsonl")})
    assert len(task.problems("train")) == 50
    with pytest.raises(TaskError, match="hold some out with test_share"):
        task.problems("test")
    held = load("dapo", {"path": str(tmp_path / "dapo.jsonl"), "test_share": 0.2})
    assert len(held.problems("train")) + len(held.problems("test")) == 50


@pytest.mark.parametrize(("release", "count"), [(None, 3), (1, 1), (2, 2)])
def test_livecodebench_is_read_without_its_script(hub: Hub, release: int | None, count: int) -> None:
    def row(number: int) -> dict[str, Any]:
        cases = json.dumps([{"input": "3", "output": "6", "testtype": "stdin"}])
        packed = base64.b64encode(zlib.compress(pickle.dumps(cases))).decode()
        return {
            "question_title": "Double",
            "question_content": f"Print twice the number ({number}).",
            "question_id": f"abc{number}",
            "contest_date": "2024-10-05T00:00:00",
            "starter_code": "",
            "public_test_cases": json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}]),
            "private_test_cases": packed,
            "metadata": "{}",
        }

    files = {f"test{n if n > 1 else ''}.jsonl": lines([row(n)]) for n in (1, 2, 3)}
    hub.add("livecodebench/code_generation_lite", {**files, "code_generation_lite.py": b"raise SystemExit"})
    hub_module._commit.cache_clear()
    task = load("livecodebench", {} if release is None else {"release": release})
    problems = task.problems("test")
    assert len(problems) == count
    assert json.loads(str(problems[0].answer))["outputs"] == ["2", "6"]


def test_mixture_of_thoughts_is_known_by_its_name(hub: Hub) -> None:
    rows = [{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>…</think>4"}],
             "num_tokens": 7, "source": "open-r1/OpenR1-Math-220k"}]  # fmt: skip
    published(hub, "open-r1/Mixture-of-Thoughts", {"config": "all"}, rows)
    hub_module._commit.cache_clear()
    from pipeline.data.mixture import DataSource

    source = DataSource.model_validate({"from": {"hub": "mixture_of_thoughts"}})
    assert isinstance(source.source, HubSource) and source.source.config == "all"
    (row,) = shaped(source, Path)
    assert asked(row) == "2 + 2?"
