# ruff: noqa: E402  this script must mend sys.path before it imports
"""How fast the math reward judges, beside its peers, in one run.

    python -m benchmarks.rewards math --data math_train.jsonl     # a file of rows with `problem` and `answer`
    python -m benchmarks.rewards hostile                          # 5 hangs among 200 completions
    python -m benchmarks.rewards rollouts --data samples.jsonl    # what an evaluation stage wrote

`math`: rollouts of realistic length, in groups; half of them right (in another notation where there is one), half
wrong. Rounds of ours and of the peers alternate, so that whatever else the machine does hits all alike. Peers:
math-verify called in a loop, math-verify in a process pool over all cores, and TRL's `accuracy_reward`. Each round
judges rollouts that were not seen before; all pools are warm. `rollouts`: a model's own completions through
`rewards.load("math")`, as a trainer calls it, in batches as large as those of the recipe gsm8k/r1-zero; every batch is
seen for the first time. Results go to `benchmarks/results/rewards-<name>.json`. Code and language have scripts of their
own: `sandbox.py`, `mbpp.py`, `language.py`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

# This script is named like the package that it measures. Python puts a script's folder first on its path, so here and
# in the neighbouring scripts `import rewards` would find this file: let it find the package instead.
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
if __name__ == "rewards":
    del sys.modules["rewards"]
    importlib.import_module("rewards")

import rewards
from rewards import Item
from rewards.corpus import load
from rewards.corpus.paraphrase import REWRITES
from rewards.math import MathVerifier, gold_text

RESULTS = Path(__file__).parent / "results"
GROUP = 4  # rollouts of one prompt
BATCH = 512  # completions of one step of the recipe gsm8k/r1-zero
NEEDS_ALGEBRA = Item(r"\boxed{1}", r"\lim_{x \to 0} \frac{\sin x}{x}")
"""What warms the verifier's pool up: arithmetic does not decide it."""
STEPS = 6  # paragraphs of reasoning in a rollout: about 1,500 characters


def rollout(problem: str, answer: str, rng: random.Random) -> str:
    """A chain of thought about the problem that ends in this answer."""
    numbers = [rng.randint(2, 99) for _ in range(2 * STEPS)]
    steps = "\n\n".join(
        rf"Step {n + 1}. We use ${a} + {b} = {a + b}$ and $\frac{{{a}}}{{{b}}} x^2 = y_{n}$, so that the quantity in"
        rf" question is \[ {a} \cdot {b} = {a * b}. \] This follows from what was said: {problem[:120]}"
        for n, (a, b) in enumerate(zip(numbers[::2], numbers[1::2], strict=True))
    )
    return f"<think>\n{steps}\n</think>\nTherefore, the final answer is $\\boxed{{{answer}}}$."


def rollouts(rows: Sequence[dict[str, Any]], seed: int) -> list[Item]:
    """A group of rollouts for every row: half of them right, half with the answer of another row."""
    rng = random.Random(seed)
    items = []
    for row in rows:
        gold = gold_text(str(row["answer"]))
        for n in range(GROUP):
            other = gold_text(str(rng.choice(rows)["answer"]))
            answer = rng.choice(REWRITES)(gold) if n % 2 else other
            items.append(Item(rollout(str(row.get("problem", "")), answer, rng), gold))
    return items


def in_a_loop(items: Sequence[Item]) -> list[float]:
    """math-verify, one completion after another."""
    from rewards.peers import math_verify

    return [float(math_verify(item.completion, item.answer)) for item in items]


def one(completion: str, gold: str) -> float:
    """math-verify in a process of the peer's pool."""
    from rewards.peers import math_verify

    return float(math_verify(completion, gold))


def with_trl(items: Sequence[Item]) -> list[float]:
    """TRL's reward, with the gold in dollar signs as it wants it."""
    from trl.rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": item.completion}] for item in items]
    return [score or 0.0 for score in accuracy_reward(completions, [f"${item.answer}$" for item in items])]


def rounds(
    judges: dict[str, Callable[[Sequence[Item]], Iterable[float]]], batches: Sequence[Sequence[Item]]
) -> dict[str, dict[str, float]]:
    """Let every judge judge every batch, in turns; wall seconds and rewarded rollouts by judge."""
    seconds, rewarded = dict.fromkeys(judges, 0.0), dict.fromkeys(judges, 0.0)
    for batch in batches:
        for name, judge in judges.items():
            started = time.perf_counter()
            rewarded[name] += sum(judge(batch))
            seconds[name] += time.perf_counter() - started
    count = sum(map(len, batches))
    return {
        name: {
            "seconds": round(seconds[name], 3),
            "rollouts_per_s": round(count / seconds[name], 1),
            "rewarded": rewarded[name],
            "times_slower_than_ours": round(seconds[name] / seconds["ours"], 1),
        }
        for name in judges
    }


def benchmark_math(options: argparse.Namespace) -> dict[str, Any]:
    """Ours against math-verify in a loop and in a pool, and TRL's reward."""
    if options.data:
        lines = options.data.read_text(encoding="utf-8").splitlines()
        rows = [row for row in map(json.loads, lines) if row.get("answer")]
    else:
        rows = [{"answer": pair.gold} for pair in load() if pair.equal]
    random.Random(options.seed).shuffle(rows)
    per_round = options.golds // options.rounds
    batches = [rollouts(rows[n * per_round : (n + 1) * per_round], n) for n in range(options.rounds)]
    verifier = MathVerifier(workers=options.processes)
    warm_up = rollouts(rows[-8:], options.seed)
    with ProcessPoolExecutor(options.processes) as peers:

        def in_a_pool(items: Sequence[Item]) -> Iterable[float]:
            return peers.map(one, [i.completion for i in items], [i.answer for i in items], chunksize=4)

        judges: dict[str, Callable[[Sequence[Item]], Iterable[float]]] = {
            "ours": lambda items: [verdict.score or 0.0 for verdict in verifier.verify(items)],
            "math-verify in a loop": in_a_loop,
            f"math-verify in {options.processes} processes": in_a_pool,
            "TRL accuracy_reward": with_trl,
        }
        verifier.verify([NEEDS_ALGEBRA])
        for judge in judges.values():
            list(judge(warm_up))
        table = rounds(judges, batches)
    verifier.close()
    return {"rollouts": sum(map(len, batches)), "judges": table}


def benchmark_hostile(options: argparse.Namespace) -> dict[str, Any]:
    """Five completions that would keep sympy busy for ever, among 200: seconds for the whole batch."""
    integral = r"\boxed{{\int_0^{{{0}}} \sin(x^{{x^{{x}}}}) e^{{-x^{{7}}}} dx}}"
    hangs = [Item(integral.format(1 + n), r"\int_0^1 \sqrt{x} dx") for n in range(5)]
    honest = [Item(rf"\boxed{{\sqrt{{{4 * n}}}}}", rf"2\sqrt{{{n}}}") for n in range(1, 196)]
    verifier = MathVerifier(workers=options.processes)
    verifier.verify([NEEDS_ALGEBRA])
    started = time.perf_counter()
    verdicts = verifier.verify([*hangs, *honest])
    seconds = time.perf_counter() - started
    verifier.close()
    statuses = [verdict.status.value for verdict in verdicts]
    return {
        "seconds": round(seconds, 2),
        "deadline_s": verifier.deadline_s,
        "within_deadline": seconds <= verifier.deadline_s,
        "hangs": statuses[:5],
        "honest_correct": statuses[5:].count("correct"),
    }


def benchmark_rollouts(options: argparse.Namespace) -> dict[str, Any]:
    """A model's own completions, in batches of `BATCH`: seconds that the reward function takes for each.

    Raises:
        SystemExit: no `--data`, or fewer completions in it than a batch has.
    """
    if options.data is None:
        raise SystemExit("rollouts: say --data FILE, JSON lines with `completion` and `answer`")
    rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows) - BATCH + 1, BATCH)]
    if not batches:
        raise SystemExit(f"rollouts: {len(rows)} completions are less than a batch of {BATCH}")
    score = rewards.load("math", workers=options.processes)
    score([""], [NEEDS_ALGEBRA.completion], answer=[NEEDS_ALGEBRA.answer])
    seconds, rewarded = [], 0.0
    for batch in batches:
        prompts, completions = [""] * BATCH, [row["completion"] for row in batch]
        started = time.perf_counter()
        scores = score(prompts, completions, answer=[row["answer"] for row in batch])
        seconds.append(time.perf_counter() - started)
        rewarded += sum(value or 0.0 for value in scores)
    score.close()
    judged = [row for batch in batches for row in batch]
    return {
        "rollouts": len(judged),
        "batch": BATCH,
        "mean_characters": round(statistics.mean(len(row["completion"]) for row in judged)),
        "mean_tokens": round(statistics.mean(row["tokens"] for row in judged)) if "tokens" in judged[0] else None,
        "seconds_per_batch": {
            "median": round(statistics.median(seconds), 4),
            "least": round(min(seconds), 4),
            "most": round(max(seconds), 4),
        },
        "rewarded": rewarded,
    }


BENCHMARKS = {"math": benchmark_math, "hostile": benchmark_hostile, "rollouts": benchmark_rollouts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--data", type=Path, help="JSON lines: `problem` and `answer`, or `completion` and `answer`")
    parser.add_argument("--golds", type=int, default=100, help="golds, each with a group of 4 rollouts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = BENCHMARKS[options.name](options)
    versions = {name: version(name) for name in ("math-verify", "sympy", "trl")} | {"python": platform.python_version()}
    command = ["python", "-m", "benchmarks.rewards", *(Path(a).name if "/" in a else a for a in sys.argv[1:])]
    report = {
        "command": " ".join(command),
        "device": f"{platform.machine()}, {options.processes} cores",
        "versions": versions,
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"rewards-{options.name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
