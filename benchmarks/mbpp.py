"""Does the code reward judge right? All references of MBPP must pass, and changed ones must fail.

    python -m benchmarks.mbpp path/to/mbpp.jsonl [--out benchmarks/results/mbpp-validate.json]

Three questions, over the 974 rows (Austin et al., arXiv 2108.07732):

* does the reference of every row pass its own tests? Those that do not are named;
* does it fail once its results are spoilt, each by a little, so that no test can hold?
* does one operator or constant changed at random lead to the same verdict as plain Python, asserts and all, in a
  process of its own? (A changed program may still be right; plain Python knows.) Every disagreement is named. A program
  that is stopped counts as a failure on both sides.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rewards import Item, Status
from rewards.code import CodeVerifier
from rewards.code.asserts import called_names

REFERENCE_S = 60.0
"""Seconds for a reference: one of them (row 123) looks for amicable numbers below 9,999 the slow way."""
CHANGED_S = 3.0
"""Seconds for a changed program, here and in plain Python; most of those that take longer never end."""

SPOIL = """

def _spoilt(value):
    if isinstance(value, (bool, type(None))):
        return not value
    if isinstance(value, (int, float, complex)):
        return value * 2 + 1 if abs(value) < 1e300 else None
    if isinstance(value, (str, list, tuple)):
        return value + type(value)("x")
    return "spoilt"

def _spoiling(inner):
    depth = 0
    def outer(*args, **kwargs):
        nonlocal depth
        depth += 1
        try:
            value = inner(*args, **kwargs)
        finally:
            depth -= 1
        return _spoilt(value) if depth == 0 else value
    return outer
"""


def spoilt(code: str, tests: Sequence[str]) -> str:
    """The program with every result of the functions under test made wrong."""
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names = sorted(defined & {name for test in tests for name in called_names(ast.parse(test))})
    return code + SPOIL + "\n".join(f"{name} = _spoiling({name})" for name in names)


def altered(code: str, rng: random.Random) -> str | None:
    """The program with one operator, comparison or constant changed; `None` if it has none."""
    tree = ast.parse(code)
    places = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.Compare) or _is_number(node)]
    if not places:
        return None
    place = rng.choice(places)
    if isinstance(place, ast.BinOp):
        place.op = rng.choice([ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod])()
    elif isinstance(place, ast.Compare):
        place.ops[0] = rng.choice([ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE])()
    elif isinstance(place, ast.Constant):
        place.value += rng.choice([-1, 1])
    return ast.unparse(tree)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def plainly(code: str, row: dict[str, Any]) -> bool:
    """Whether a program passes in a plain Python process."""
    program = "\n".join([code, row["test_setup_code"], *row["test_list"]])
    try:
        done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, timeout=CHANGED_S)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def judge(verifier: CodeVerifier, rows: Sequence[dict[str, Any]], codes: Sequence[str]) -> list[Any]:
    """Verdicts of programs, each on the tests of its row."""
    return verifier.verify(
        [
            Item(f"```python\n{code}\n```", {"tests": row["test_list"], "setup": row["test_setup_code"]})
            for row, code in zip(rows, codes, strict=True)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]

    def counted(timeout: float, chosen: Sequence[dict[str, Any]], codes: Sequence[str]) -> tuple[list[Any], float]:
        verifier, started = CodeVerifier(timeout=timeout), time.perf_counter()
        verdicts = judge(verifier, chosen, codes)
        verifier.close()
        return verdicts, time.perf_counter() - started

    references, seconds = counted(REFERENCE_S, rows, [row["code"] for row in rows])
    spoilt_ones, _ = counted(REFERENCE_S, rows, [spoilt(row["code"], row["test_list"]) for row in rows])
    rng = random.Random(arguments.seed)
    changed = [(row, code) for row in rows if (code := altered(row["code"], rng)) is not None]
    verdicts, _ = counted(CHANGED_S, [row for row, _ in changed], [code for _, code in changed])
    plain: Callable[[tuple[dict[str, Any], str]], bool] = lambda pair: plainly(pair[1], pair[0])  # noqa: E731
    with ThreadPoolExecutor(2) as threads:
        truth = list(threads.map(plain, changed))
    result = {
        "command": f"python -m benchmarks.mbpp mbpp.jsonl --seed {arguments.seed}",
        "python": platform.python_version(),
        "rows": len(rows),
        "references": dict(Counter(v.status.value for v in references)),
        "references_refused": _named(rows, references, lambda v: v.status is not Status.CORRECT),
        "references_seconds": round(seconds, 1),
        "spoilt": dict(Counter(v.status.value for v in spoilt_ones)),
        "spoilt_paid": _named(rows, spoilt_ones, lambda v: v.score != 0.0),
        "altered": len(changed),
        "altered_right_in_plain_python": sum(truth),
        "altered_statuses": dict(Counter(v.status.value for v in verdicts)),
        "altered_disagreements": [
            {"task_id": row["task_id"], "plain": right, "verdict": v.status.value, "detail": v.detail}
            for (row, _), v, right in zip(changed, verdicts, truth, strict=True)
            if (v.score == 1.0) != right
        ],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def _named(rows: Sequence[dict[str, Any]], verdicts: Sequence[Any], refused: Callable[[Any], bool]) -> dict[int, str]:
    return {
        row["task_id"]: f"{v.status.value}: {v.detail}" for row, v in zip(rows, verdicts, strict=True) if refused(v)
    }


if __name__ == "__main__":
    main()
