"""What keeps experts busy: every way of balancing them, on the nano base with one more layer of experts.

    python -m benchmarks.routing --out benchmarks/results/routing.json     # trains: 5 ways x 3 seeds
    python -m benchmarks.routing --plot benchmarks/results/routing.json docs/results/routing.svg

Each run is a `pretrain` stage of its own: corpus and learning rate of recipes/nano, half its batch, STEPS steps. The
load is that of single optimizer steps (384 tokens, 96 an expert), so that chance alone leaves some imbalance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.context import StageContext
from pipeline.stages.pretrain import PretrainConfig, run

STEPS = 220
LAST = 60
"""Steps at the end that loss and load are averaged over."""
SEEDS = (0, 1, 2)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "none": {"bias_update_speed": 0.0, "balance": "none"},
    "bias": {"bias_update_speed": 1e-3, "balance": "none"},
    "sequence": {"bias_update_speed": 0.0, "balance": "sequence", "balance_alpha": 1e-4},
    "bias + sequence": {"bias_update_speed": 1e-3, "balance": "sequence", "balance_alpha": 1e-4},
    "switch": {"bias_update_speed": 0.0, "balance": "switch", "balance_alpha": 1e-2},
}
"""γ and α as published: DeepSeek-V3, section 4.2, and the Switch Transformer, section 2.2."""
VIOLATION = "routing/max_violation"


def train(way: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One run: what it logged, by step."""
    preset = yaml.safe_load(Path("configs/model/nano.yaml").read_text(encoding="utf-8"))
    config = {
        "kind": "pretrain",
        "model": {**preset, "num_hidden_layers": preset["num_hidden_layers"] + 1},
        "vocabulary": {"kind": "words"},
        "corpus": {"use": "chain", "documents": STEPS * 20},
        "length": 64,
        "routing": dict(way),
        "trainer": {
            "max_steps": STEPS,
            "per_device_train_batch_size": 6,
            "learning_rate": 3e-3,
            "lr_scheduler_kwargs": {"min_lr_rate": 0.05},
            "weight_decay": 0.01,
            "logging_steps": 10,
            "save_steps": STEPS,
        },
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("output", "scratch"):
            (folder / part).mkdir()
        events = folder / "events.jsonl"
        checked = PretrainConfig.model_validate(config)
        run(StageContext("base", checked, {}, folder / "output", folder / "scratch", folder, seed, events))
        lines = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if VIOLATION in line]
    names = [name for name in lines[0] if name == "loss" or name.startswith(VIOLATION)]
    return {"step": [line["step"] for line in lines], **{n: [round(line[n], 4) for line in lines] for n in names}}


def summary(runs: list[Mapping[str, Any]]) -> dict[str, str]:
    """Metric -> mean ± standard deviation over the seeds, of the mean over the last steps."""
    names = [name for name in runs[0] if name != "step"]
    found = {}
    for name in names:
        values = [statistics.mean(run[name][-LAST // 10 :]) for run in runs]
        found[name] = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
    return found


def plot(results: Mapping[str, list[Mapping[str, Any]]], path: Path) -> None:
    """Draw the load of both layers over the steps, one line a way, the mean of the seeds."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "routing", "font.size": 8})
    from matplotlib import pyplot as plt

    layers = sorted(name for name in next(iter(results.values()))[0] if name.startswith(f"{VIOLATION}/"))
    figure, axes = plt.subplots(1, len(layers), figsize=(7.2, 2.6), sharey=True, layout="constrained")
    for axis, name in zip(axes, layers, strict=True):
        for way, runs in results.items():
            curve = [statistics.mean(values) for values in zip(*(run[name] for run in runs), strict=True)]
            axis.plot(runs[0]["step"], curve, label=way, linewidth=1.2)
        axis.set_title(f"layer {name.rpartition('/')[2]}")
        axis.set_xlabel("step")
    axes[0].set_ylabel("MaxVio")
    axes[0].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train and keep the numbers, or draw kept ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, nargs=2, metavar=("RESULTS", "SVG"))
    options = parser.parse_args()
    if options.plot:
        kept = json.loads(options.plot[0].read_text(encoding="utf-8"))
        plot(kept["runs"], options.plot[1])
        return
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way, routing in WAYS.items():
            results[way].append(train(routing, seed))
            print(seed, way, {name: values[-1] for name, values in results[way][-1].items()}, flush=True)
    numbers = {way: summary(runs) for way, runs in results.items()}
    for way, found in numbers.items():
        print(f"{way:16} {found}")
    if options.out:
        record = {"command": f"python -m benchmarks.routing --out {options.out}", "steps": STEPS, "seeds": SEEDS}
        text = json.dumps({**record, "summary": numbers, "runs": results}, ensure_ascii=False)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
