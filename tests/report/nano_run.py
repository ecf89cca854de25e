"""Builds run folders as the runner leaves them: the nano chain with plausible numbers, whole, halved or hostile."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

START = datetime(2026, 3, 1, 9, 0, 0, tzinfo=UTC)
PACKAGES = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0", "zero2r1": "0.1.0"}
SAMPLING = {
    "engine": "transformers",
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 0,
    "samples": 4,
    "max_tokens": 96,
    "seed": 0,
}
N = 400
GRPO = {"rewards": [{"use": "accuracy"}, {"use": "think_format", "weight": 0.1}], "trainer": {"num_generations": 16}}

STAGES: dict[str, dict[str, Any]] = {
    "base": {"kind": "pretrain", "model": "nano", "length": 128},
    "zero": {"kind": "grpo", "model": "@base", **GRPO},
    "cold_data": {"kind": "rejection_sample", "model": "@zero"},
    "dev1": {"kind": "sft", "model": "@base", "data": ["@cold_data"]},
    "dev2": {"kind": "grpo", "model": "@dev1", **GRPO},
    "samples": {"kind": "rejection_sample", "model": "@dev2"},
    "dev3": {"kind": "sft", "model": "@base", "data": ["@samples"]},
    "r1": {"kind": "grpo", "model": "@dev3", **GRPO},
    "student_base": {"kind": "pretrain", "model": "nano-student", "length": 128},
    "student": {"kind": "distill", "model": "@student_base", "data": ["@samples"]},
    "student_rl": {"kind": "grpo", "model": "@student_base", **GRPO},
    "score": {
        "kind": "evaluate",
        "models": ["@base", "@zero", "@dev1", "@dev2", "@dev3", "@r1", "@student", "@student_rl"],
        "tasks": ["chain/test"],
    },
}
SPANS = {  # seconds from the beginning
    "base": (0, 150), "student_base": (2, 96), "zero": (150, 262), "cold_data": (262, 274), "student_rl": (97, 190),
    "dev1": (274, 300), "dev2": (300, 398), "samples": (398, 421), "dev3": (421, 470), "student": (423, 462),
    "r1": (470, 548), "score": (548, 581),
}  # fmt: skip
SCORES = {  # pass@1, tokens
    "base": (0.27, 14.2), "zero": (0.8125, 30.1), "dev1": (0.66, 26.8), "dev2": (0.8275, 29.4), "dev3": (0.79, 28.8),
    "r1": (0.8525, 31.0), "student": (0.7625, 28.1), "student_rl": (0.41, 17.5),
}  # fmt: skip
STATES = ("three", "one", "eight", "六", "nine", "two", "zero")
YIELD = {
    "problems": 600, "sampled": 2400, "correct": 1986, "kept": 1204, "pass@1": 0.8275,
    "dropped": {"wrong": 414, "duplicate": 611, "mixed_language": 128, "too_long": 43},
}  # fmt: skip


def build(
    path: Path,
    stages: dict[str, dict[str, Any]] | None = None,
    unfinished: tuple[str, ...] = (),
    waiting: tuple[str, ...] = (),
    metrics: dict[str, dict[str, Any]] | None = None,
    samples: dict[str, list[dict[str, Any]]] | None = None,
    events: dict[str, list[dict[str, Any]]] | None = None,
) -> Path:
    """Write a run folder; `metrics`, `samples` and `events` replace what a stage would have by its kind."""
    stages = STAGES if stages is None else stages
    name = path.name
    path.mkdir(parents=True)
    record = {
        "name": name,
        "description": "The R1 chain in miniature.",
        "recipe": "/somewhere/r1.yaml",
        "command": ["zero2r1", "run", "nano/r1"],
        "started": START.isoformat(),
        "stages": [
            {"name": s, "kind": c["kind"], "fingerprint": fingerprint(s), "inputs": inputs(c), "after": []}
            for s, c in stages.items()
        ],
    }
    (path / "run.json").write_text(json.dumps(record))
    (path / "recipe.yaml").write_text(yaml.safe_dump({"name": name, "seed": 0, "stages": stages}, sort_keys=False))
    for stage, config in stages.items():
        if stage in waiting:
            continue
        folder = path / "stages" / stage / fingerprint(stage)[:12]
        if stage in unfinished:
            folder = path / "scratch" / f"{stage}-{fingerprint(stage)[:12]}"
        folder.mkdir(parents=True)
        write_rows(folder / "events.jsonl", (events or {}).get(stage, nano_events(stage, config["kind"])))
        (folder / "log.txt").write_text(f"INFO {stage} <started>\nRuntimeError: out of <memory> & time\n")
        output = folder / "output" if stage in unfinished else folder
        output.mkdir(exist_ok=True)
        if rows := (samples or {}).get(stage, nano_samples(stage, config)):
            write_rows(output / "samples.jsonl", rows)
        if stage in unfinished:
            (folder / "job.json").write_text(json.dumps({"stage": stage, "config": config}))
        else:
            if config["kind"] in ("pretrain", "sft", "grpo", "distill"):
                write_weights(folder / "model", 310_000 if "student" in stage else 1_020_000)
            write_manifest(folder, stage, config, (metrics or {}).get(stage, nano_metrics(config["kind"])))
    return path


def fingerprint(stage: str) -> str:
    return hashlib.sha256(stage.encode()).hexdigest()


def inputs(config: dict[str, Any]) -> list[str]:
    refs = [config.get("model"), *config.get("models", []), *config.get("data", [])]
    return sorted({ref[1:] for ref in refs if isinstance(ref, str) and ref.startswith("@")})


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_weights(folder: Path, parameters: int) -> None:
    """A safetensors file that ends after its header: two tensors with so many parameters in all."""
    folder.mkdir()
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "embed": {"dtype": "BF16", "shape": [1000, parameters // 2000], "data_offsets": [0, 0]},
            "head": {"dtype": "BF16", "shape": [1000, parameters // 2000], "data_offsets": [0, 0]},
        }
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def write_manifest(folder: Path, stage: str, config: dict[str, Any], metrics: dict[str, Any]) -> None:
    start, end = SPANS.get(stage, (0, 60))
    files = {
        str(p.relative_to(folder)): {"sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "bytes": p.stat().st_size}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    manifest = {
        "stage": stage,
        "kind": config["kind"],
        "version": 1,
        "fingerprint": fingerprint(stage),
        "config": config,
        "inputs": {name: fingerprint(name) for name in inputs(config)},
        "metrics": metrics,
        "seed": 0,
        "started": (START + timedelta(seconds=start)).isoformat(timespec="milliseconds"),
        "finished": (START + timedelta(seconds=end)).isoformat(timespec="milliseconds"),
        "seconds": float(end - start),
        "resumed": 0,
        "device": "CPU x86_64, 2 cores",
        "packages": PACKAGES,
        "git": "0c15f2e4a1b2",
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def wilson(p: float, n: int) -> tuple[float, float]:
    z = 1.96
    middle, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def nano_scores() -> dict[str, Any]:
    found = {}
    for model, (accuracy, tokens) in SCORES.items():
        low, high = wilson(accuracy, N)
        found[model] = {
            "chain/test": {
                "n": N, "samples": 4, "pass@1": accuracy, "low": low, "high": high,
                "pass@2": min(1.0, accuracy + 0.05),
                "pass@k": min(1.0, accuracy + 0.08), "cons@k": min(1.0, accuracy + 0.03), "tokens": tokens,
                "thinking": 0.12 if model == "base" else 0.97, "truncated": 0.01, "language": 0.91,
            }
        }  # fmt: skip
    return found


def nano_metrics(kind: str) -> dict[str, Any]:
    if kind == "evaluate":
        return {"sampling": SAMPLING, "scores": nano_scores()}
    if kind == "rejection_sample":
        return YIELD
    if kind == "grpo":
        return {"steps": 80, "reward_first": 0.31, "reward_last": 0.84, "length_first": 14.0, "length_last": 30.2}
    return {"steps": 600, "train_loss": 1.234, "tokens_per_second": 19500.0}


def nano_events(stage: str, kind: str) -> list[dict[str, Any]]:
    noise = random.Random(stage)
    rows: list[dict[str, Any]] = []
    if kind == "grpo":
        first, last = SCORES.get(stage, (0.5, 20))[0] * 0.45, SCORES.get(stage, (0.5, 20))[0]
        for step in range(1, 81):
            grown = 1 - math.exp(-step / 25)
            accuracy = min(1.0, max(0.0, first + (last - first) * grown + noise.gauss(0, 0.05)))
            rows.append(
                {
                    "step": step, "total": 80, "loss": noise.gauss(0, 0.02), "reward": accuracy + 0.09 * grown,
                    "rewards/accuracy/score": accuracy, "rewards/think_format/score": min(1.0, 0.4 + 0.6 * grown),
                    "completions/mean_length": 14 + 16 * grown + noise.gauss(0, 1.2), "kl": 0.004 * grown,
                    "completions/clipped_ratio": max(0.0, 0.2 * (1 - grown)), "entropy": 0.9 - 0.5 * grown,
                    "groups/all_equal_above_zero": min(1.0, 0.1 + 0.5 * grown + abs(noise.gauss(0, 0.05))),
                    "groups/all_failed": 0.3 * (1 - grown), "learning_rate": 1e-4,
                }
            )  # fmt: skip
    elif kind in ("pretrain", "sft", "distill"):
        total = 600 if kind == "pretrain" else 150
        for step in range(5, total + 1, 5):
            loss = 0.4 + 3.2 * math.exp(-step / (total / 6)) + noise.gauss(0, 0.05)
            rows.append(
                {
                    "step": step,
                    "total": total,
                    "loss": loss,
                    "learning_rate": 1e-3,
                    "mean_token_accuracy": 0.9 - loss / 8,
                }
            )
    return rows


def nano_samples(stage: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Chains of operations on one digit; the later models carry the state in their thought."""
    noise = random.Random(7)
    rows = []
    if config["kind"] == "evaluate":
        problems = [
            ("".join(noise.choice(["+3", "*7", "-2", "+1"]) + " " for _ in range(6)), noise.randrange(10))
            for _ in range(40)
        ]
        for model, (accuracy, _) in SCORES.items():
            for index, (question, answer) in enumerate(problems):
                right = noise.random() < accuracy
                rows.append(
                    sample(f"chain-{index}", question, answer, right, noise, model=model, think=model != "base")
                )
    elif config["kind"] == "rejection_sample":
        for index, reason in enumerate(("kept", *YIELD["dropped"])):
            rows.append(sample(f"chain-r{index}", "+1 *7", 5, reason != "wrong", noise, think=True, reason=reason))
    elif config["kind"] == "grpo":
        for step in (1, 20, 40, 60, 80):
            identity = "chain-train-3" if stage == "zero" else f"chain-train-{step}"
            rows.append(sample(identity, "+3 *7 -2 ", 4, step > 30, noise, step=step, think=step > 1))
    return rows


def sample(
    identity: str, question: str, answer: int, right: bool, noise: random.Random, think: bool, **more: Any
) -> dict[str, Any]:
    said = answer if right else (answer + noise.randrange(1, 10)) % 10
    states = " ".join(f"{op} {word}" for op, word in zip(question.split(), STATES, strict=False))
    completion = f"<think>{states}</think><answer>{said}</answer>" if think else f"<answer>{said}</answer>"
    return {
        "task": "chain", "id": identity, "question": f"User: 4 {question}=", "answer": str(answer),
        "completion": completion, "status": "correct" if right else "wrong", "score": float(right),
        "extracted": str(said), "tokens": len(completion) // 3, "finish": "stop", "language": 0.9, **more,
    }  # fmt: skip


def many_samples(count: int, models: int = 8) -> list[dict[str, Any]]:
    """So many samples of an evaluation: each problem once by every model, with thoughts of some length."""
    noise = random.Random(3)
    rows = []
    for at in range(count // models):
        question, answer = f"problem {at}: " + "".join(noise.choice(["+3 ", "*7 ", "-2 "]) for _ in range(12)), at % 10
        for model in list(SCORES)[:models]:
            row = sample(f"chain-{at}", question, answer, noise.random() < 0.6, noise, think=True, model=model)
            thought = " ".join(noise.choice(STATES) for _ in range(60))
            rows.append(
                row
                | {"completion": f"<think>{thought}</think>{row['completion']}", "rewards": {"accuracy": row["score"]}}
            )
    return rows


ATTACKS = [
    "<script>window.pwned = 1</script>",
    "</div></li></ol></article></main></body></html>",
    "</style><style>body { display: none }</style>",
    '"><img src="https://evil.example/x.png" onerror="window.pwned = 1">',
    "<svg onload='window.pwned = 1'><foreignObject><iframe src='javascript:parent.pwned = 1'></iframe></svg>",
    "<!-- ]]> <![CDATA[ {{ 7 * 7 }} {% raw %} ${1 + 1} $\\frac{1}{0}$ \\",
    "\ud800 lone, \x00 nul, \x1b[31m escape, \u202e override, \ufffe noncharacter, \r\n",
    "x" * 100_000,
    "Z" + "\u0301" * 5_000,
    "<think>" * 500 + "never closed",
    "",
]


def hostile(path: Path) -> Path:
    """Models under names of the worst kind; each writes one of `ATTACKS` about every problem."""
    label = '<img src="https://evil.example/m.png" onerror="window.pwned=1">$\\frac$'
    entry = {"n": 11, "samples": 1, "pass@1": 0.5, "low": 0.2, "high": 0.8, "tokens": float("nan")}
    task = "</table><script>window.pwned=1</script>"
    models = ["base", *(f"{label}{index}" for index in range(1, len(ATTACKS)))]
    rows = [
        {
            "task": task, "id": question[:40], "question": question, "answer": question[:5000],
            "completion": attack if index % 2 else f"<think>{attack}</think>{attack}", "extracted": attack[:5000],
            "status": "wrong" if model == "base" else "correct", "finish": attack[:30], "tokens": 7, "model": model,
        }
        for question in ATTACKS[:3]
        for index, (model, attack) in enumerate(zip(models, ATTACKS, strict=True))
    ]  # fmt: skip
    stages = {
        "base": {"kind": "import_model", "model": "some/<b>hub</b>"},
        "odd": {"kind": "<script>odd</script>", "model": "@base", "deep": [[["@base"]], None, {"</pre>": "<i>"}]},
        "score": {"kind": "evaluate", "model": "@base"},
    }
    events = {
        "odd": [
            {"step": step, "<script>loss</script>": step * 1.5, "$x_{": -step, "nan": math.nan, "big": 1e300 * step}
            for step in range(30)
        ]
    }
    score = {
        "sampling": {"engine": "<u>", "temperature": 0, "samples": 1},
        "scores": {model: {task: entry} for model in models},
        "</script>": "<b>",
    }
    return build(path, stages, metrics={"score": score}, samples={"score": rows}, events=events)
