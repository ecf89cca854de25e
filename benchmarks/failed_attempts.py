"""What a process reward model and tree search came to in nano: one JSON file, and the tables of the docs page.

for seed in 0 1 2; do zero2r1 run nano/failed-attempts seed=$seed --runs runs/$seed; done
python -m benchmarks.failed_attempts runs/*/nano-failed-attempts --out benchmarks/results/failed-attempts.json
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.collect import collect, keep
from pipeline import artifacts
from pipeline.files.rows import read_rows
from pipeline.tasks.chain import results
from pipeline.tasks.requests import CHINESE, ENGLISH

DIGITS = {word: digit for words in (ENGLISH, CHINESE) for digit, word in enumerate(words)}
"""A word of a thought -> the digit that it says."""
LAST_STEPS = 10
"""Steps of RL at its end over which rewards are averaged."""


def run_of(folder: Path) -> dict[str, Any]:
    """The numbers of one run."""
    found = artifacts.current(folder)
    metrics = {name: dict(one.manifest["metrics"]) for name, one in found.items() if one is not None}
    numbers = collect(folder)
    del numbers["git"]  # runs may lie outside of any repository
    labels = found["labels"]
    assert labels is not None
    return {
        **numbers,
        "labels": {**metrics["labels"], **against_truth(row for _, row in read_rows(labels.path / "data.jsonl"))},
        "prm": metrics["prm"],
        "search": metrics["search"],
        "sampled": {name: sampled(folder, name) for name in metrics if name.startswith("by_")},
    }


def sampled(folder: Path, stage: str) -> int:
    """Tokens that a stage of RL sampled: its steps, times rollouts, times their mean length."""
    artifact = artifacts.current(folder)[stage]
    assert artifact is not None
    trainer = artifact.manifest["config"]["trainer"]
    lines = (line for _, line in read_rows(artifact.path / "events.jsonl") if "completions/mean_length" in line)
    lengths = {
        line["step"]: float(line["completions/mean_length"]) for line in lines
    }  # a resumed step stands there twice
    rollouts = trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"]
    return round(sum(lengths.values()) * rollouts)


def against_truth(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Labels against what each chain of steps really comes to.

    A step is right if it and all before it say what the chain comes to there. `hard` is the label of Math-Shepherd's
    hard estimation: right if any continuation was.
    """
    of_right, of_wrong = list[float](), list[float]()
    by_step: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        true = results(row["question"].removesuffix(" ="))
        good = True
        for at, (step, label) in enumerate(zip(row["completions"][:-1], row["labels"][:-1], strict=True)):
            good = good and at < len(true) and DIGITS.get(step.strip()) == true[at]
            (of_right if good else of_wrong).append(label)
            if good:
                by_step[at].append(label)
    return {
        "of_right_steps": _shares(of_right),
        "of_wrong_steps": _shares(of_wrong),
        "mean_of_right_by_step": [fmean(by_step[at]) for at in sorted(by_step)],
    }


def _shares(labels: Sequence[float]) -> dict[str, float]:
    return {"n": len(labels), "mean": fmean(labels), "hard": fmean(label > 0 for label in labels)}


def rl_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Held-out accuracy of each model, and the two rewards as RL went."""
    lines = ["| model | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for model in runs[0]["table"]:
        cells = [_percent(next(iter(run["table"][model].values())), "pass@1") for run in runs]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    lines += ["", "| model, reward | " + lines[0].partition(" | ")[2], lines[1]]
    for stage in (name for name in runs[0]["curves"] if name.startswith("by_")):
        for curve in ("rewards/process/score", "rewards/accuracy/score"):
            if curve in runs[0]["curves"][stage]:
                ends = [run["curves"][stage][curve] for run in runs]
                cells = [f"{fmean(c[:LAST_STEPS]):.2f} → {fmean(c[-LAST_STEPS:]):.2f}" for c in ends]
                lines.append(f"| {stage}, {curve.split('/')[1]} | {' | '.join(cells)} |")
    return lines


def search_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Shares right at each number of sampled tokens."""
    budgets = [one for one in next(iter(runs[0]["search"]["budgets"].values())) if one.isdigit()]
    lines = ["| sampled tokens a problem | " + " | ".join(budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for way in ("sampling", "majority", "best_of_n", "tree_search", "sampling_covers", "tree_covers"):
        for run in runs:
            scores = next(iter(run["search"]["budgets"].values()))
            cells = [_percent(scores[budget][way], "share") for budget in budgets]
            lines.append(f"| {way}, seed {run['seed']} | {' | '.join(cells)} |")
    return lines


def _percent(entry: Mapping[str, float], key: str) -> str:
    return f"{100 * entry[key]:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


def main() -> None:
    """Parse the command line, write the file, and print the tables."""
    runs = keep(run_of, __doc__)
    print("\n".join([*rl_table(runs), "", *search_table(runs)]))


if __name__ == "__main__":
    main()
