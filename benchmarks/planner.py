"""What the planner says of runs that were measured: peak of memory and seconds a step, against benchmarks/results/.

    python -m benchmarks.planner                             # the table
    python -m benchmarks.planner --write docs/results/planning.md    # into the page, between its markers

Every result on a GPU is taken whose peak and time are known, of every version of the code that made one. What is put in
is what a recipe says, and how long completions were on average, which no planner can know. Prompts are assumed to have
120 tokens (GSM8K with its template), 60 (counting) or 16 (chains of v3-small, whose vocabulary is of words). Constants
of time were set by the runs that `pipeline.cost.speed.CALIBRATED_ON` names; those of memory are counted, but for the
allocator's reserve.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import lora, pages, scaling
from pipeline.cost import memory, models, speed
from pipeline.cost.hardware import Cluster, cluster
from pipeline.cost.memory import Setup
from pipeline.planner.estimate import Estimate, estimate
from pipeline.planner.held import SAMPLING, TRAINER
from pipeline.planner.stages import Reader
from pipeline.planner.work import Given, Training, Work
from pipeline.recipe import Recipe, load
from pipeline.schema.efficiency import STOCK
from pipeline.stages.grpo import GrpoConfig

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = "planner"
"""What the markers of the table are called."""
MODELS = {
    "models/qwen2.5-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "models/qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
    "random": "Qwen/Qwen2.5-7B",
}
PROMPT, COUNTING_PROMPT, CHAIN_PROMPT = 120.0, 60.0, 16.0
GRPO = (
    *("grpo-h200-step", "grpo-h200", "grpo-h200-seed-0", "grpo-h200-50", "grpo-h200-1e-5", "fused-h200"),
    *("long-h200", "long-h200-micro-batches", "overlap-h200-x2"),
)
"""Results of `benchmarks.grpo` and `benchmarks.overlap`, in the order of the table; others follow."""
NOT_MERGED = "long-h200-micro-batches"
"""Made before micro-batches were merged."""
FIXED_BLOCKS = "grpo-h200-step"
"""Made with torch's blocks of memory as they are by default, which fragment; `zero2r1 run` lets them grow."""
SCALING = "scaling-h200"
ADAPTERS = ("lora-h200", "lora-h200-light")
GB, GIB, MIB = 1e9, 2**30, 2**20
MEMORY_BOUND, TIME_BOUND = 0.15, 0.30


@dataclass(frozen=True, slots=True)
class Row:
    """One run, planned and measured: GB and seconds a step; `None` where it was not measured."""

    result: str
    run: str
    seen: bool
    planned_gb: float
    gb: float
    planned_s: float
    seconds: float | None
    note: str = ""

    @property
    def memory_error(self) -> float:
        """Planned over measured, less 1."""
        return self.planned_gb / self.gb - 1

    @property
    def time_error(self) -> float | None:
        """The same for time."""
        return None if self.seconds is None else self.planned_s / self.seconds - 1


def read(name: str) -> dict[str, Any]:
    """A result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def seen(name: str, way: str) -> bool:
    """Whether constants were set by it."""
    kind = "stock" if way == "stock" else "fp8" if way == "fp8" else "ours"
    return kind in speed.CALIBRATED_ON.get(f"{name}.json", "")


RENAMED = {"refill_rounds": "dynamic_sampling_rounds", "refill_queue": "dynamic_sampling_queue"}
"""Fields as older results call them, and their names of today."""


def grpo_work(settings: Mapping[str, Any], way: str, name: str, completion: float, gpus: Cluster) -> Work:
    """The work of a GRPO stage with these settings."""
    told = {**settings, "model": MODELS[settings["model"]]}
    if "efficiency" in told:
        told["efficiency"] = {RENAMED.get(name, name): value for name, value in told["efficiency"].items()}
    if way == "stock":
        told["efficiency"] = STOCK.model_dump()
        told["rollout"] = {**settings["rollout"], "scheduler_fast_path": False}
    if name == NOT_MERGED and way != "stock":
        told["efficiency"] = {**told["efficiency"], "merge_micro_batches": False}
    if name in ADAPTERS:
        told["adapter"] = lora.ADAPTERS[way]
    if name == "fused-h200":
        told["efficiency"] = {**told["efficiency"], "fused_kernels": way == "on"}
    if name == "overlap-h200-x2":
        told["launch"] = {"gpus": 2 if way == "ahead" else 1}
        rollout = dict(settings["rollout"])
        ahead = int(rollout.pop("overlap", False))  # as it was called
        told["rollout"] = {**rollout, "max_staleness": ahead}
    long = settings["rollout"]["max_tokens"] > 1000
    prompt = COUNTING_PROMPT if long else PROMPT
    config = GrpoConfig.model_validate(told)
    given = Given(gpus.count, gpus.gpu.bytes, prompt, completion)
    return Reader(Recipe("benchmark", ROOT / "recipe.yaml", {"zero": config}), given).work("zero")


def peak(found: Estimate) -> float:
    """Bytes of the GPU that trains, at its peak: of a step, or of sampling on the same GPU while the trainer waits."""
    return max(memory.total(found.memory[role]) for role in (TRAINER, SAMPLING) if role in found.memory)


def grpo_rows(name: str) -> Iterator[Row]:
    """The runs of a result of `benchmarks.grpo` or `benchmarks.overlap`."""
    result = read(name)
    for way, runs in result["runs"].items():
        settings = result["settings"].get(way, result["settings"])
        if way == "stock":
            settings = result.get("stock_settings", settings)
            if name == NOT_MERGED:  # the run of long-h200.json once more
                continue
        gpus = cluster("2xH200" if name == "overlap-h200-x2" else "H200")
        for number, run in enumerate(runs if isinstance(runs, list) else [runs]):
            work = grpo_work(settings, way, name, fmean(run["length"]), gpus)
            found = estimate(work, gpus)
            planned = peak(found) / GB
            label = f"{way}, seed {number}" if isinstance(runs, list) and len(runs) > 1 else way
            note = "blocks of memory that do not grow" if name == FIXED_BLOCKS else ""
            step = found.seconds["step"]
            yield Row(name, label, seen(name, way), planned, run["peak_gb"], step, run["seconds_a_step"], note)
            if name == FIXED_BLOCKS and way == "ours":
                grown = result["ours_with_growing_blocks"]["peak_gb"]
                yield Row(name, "ours, growing blocks", False, planned, grown, step, None)


def scaling_rows() -> Iterator[Row]:
    """Our runs of `benchmarks.scaling`, each on as many H200s as its name says; the peak is that of the first one."""
    result = read(SCALING)
    for way, run in result["runs"].items():
        if "peak_gb" not in run:  # a peer's
            continue
        count = scaling.parts(way)[0]
        gpus = cluster(f"{count}xH200")
        options = argparse.Namespace(**result["settings"], gpus=[str(gpu) for gpu in range(count)])
        config, _ = scaling.config_of(way, options)
        work = grpo_work({**config, "launch": {"gpus": count}}, way, SCALING, fmean(run["length"]), gpus)
        found = estimate(work, gpus)
        planned, step = peak(found) / GB, found.seconds["step"]
        yield Row(SCALING, way, False, planned, run["peak_gb"], step, run["seconds_a_step"])


def pretraining_work(rows: int, length: int, precision: str) -> Work:
    """A pre-training step of `small` without prediction blocks, as `benchmarks.model` and `benchmarks.fp8` take it."""
    shape, fp8 = models.preset("small", 256), precision == "fp8"
    setup = Setup(rows * length, accumulates=False, fp8=fp8, measured=False)
    return Work("base", "pretrain", (shape,), training=Training(setup, rows, length, fp8=fp8))


def pretraining_rows() -> Iterator[Row]:
    """The runs of `benchmarks.model` and `benchmarks.fp8`, whose peak is that of torch's allocator."""
    gpus = cluster("H200")

    def row(name: str, way: str, rows: int, length: int, gb: float, rate: float) -> Row:
        work = pretraining_work(rows, length, way)
        found = estimate(work, gpus)
        step = found.seconds["step"] / speed.MEASURED.rest  # there is nothing but the step
        return Row(name, way, seen(name, way), peak(found) / GB, gb, step, rows * length / rate)

    of_model = read("model-h200")
    ours = of_model["runs"]["ours"]
    yield row("model-h200", "ours", of_model["rows"], 1024, ours["peak_mib"] * MIB / GB, ours["tokens_per_second"])
    for name in ("fp8-h200", "fp8-h200-trained", "fp8-h200-shift"):
        result = read(name)
        rows = int(result["options"]["rows"])
        length = 256 if rows == 64 else 1024
        for way in ("plain", "fp8"):
            run = result["runs"][way]
            yield row(name, way, rows, length, run["peak_gib"] * GIB / GB, run["tokens_per_second"])


def probe_rows() -> Iterator[Row]:
    """The run of `benchmarks.probe`, with what was planned before and after the probe when it was made."""
    result = read("probe-h200")
    run = result["run"]
    for way in ("before_probe", "after_probe"):
        planned, note = result[way], "the probe still held memory"
        gb, step = planned["peak_gb_planned"], planned["seconds_a_step"]
        yield Row("probe-h200", way.replace("_", " "), False, gb, run["peak_gb"], step, run["seconds_a_step"], note)


WHOLE = {"gsm8k-r1-zero": "gsm8k/r1-zero", "v3-small": "v3-small/r1-zero", "v3-small-r1-seed-0": "v3-small/r1"}
"""Results of whole recipes, whose stages' seconds are known and no peaks -> the recipe."""


def stage_rows() -> Iterator[tuple[str, str, float, float]]:
    """Result, stage, planned and measured seconds of whole stages, their start and their data included."""
    gpus = cluster("H200")
    for name, recipe in WHOLE.items():
        result = read(name)
        run = result["runs"][0] if "runs" in result else result
        times = {stage: told["seconds"] for stage, told in run.get("stages", {}).items()}
        times |= {stage: 60 * minutes for stage, minutes in run.get("minutes", {}).items()}
        scored = fmean(each["tokens"] for tasks in run["table"].values() for each in tasks.values())
        resumed = run.get("resumed", {})
        prompt = CHAIN_PROMPT if recipe.startswith("v3-small/") else PROMPT
        for stage, took in times.items():
            if stage in resumed:  # what is known is its last attempt alone
                continue
            lengths = run["curves"].get(stage, {}).get("completions/mean_length")
            given = Given(gpus.count, gpus.gpu.bytes, prompt, fmean(lengths) if lengths else scored)
            found = estimate(Reader(load(recipe), given).work(stage), gpus)
            if not found.work.unknown:
                yield name, stage, found.whole, took


def newer() -> list[str]:
    """Results of `benchmarks.grpo` on one H200 that are not in `GRPO`."""
    found = []
    for file in sorted(RESULTS.glob("*h200*.json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        settings = told.get("settings") if isinstance(told, dict) else None
        if isinstance(settings, dict) and settings.get("kind") == "grpo" and "runs" in told and file.stem not in GRPO:
            found.append(file.stem)
    return found


def table() -> list[Row]:
    """All runs."""
    grpo = (row for name in (*GRPO, *newer()) for row in grpo_rows(name))
    return [*grpo, *scaling_rows(), *probe_rows(), *pretraining_rows()]


def markdown(rows: list[Row]) -> str:
    """The table as a page has it."""
    lines = [
        "| result | run | GB, planned / measured | | s a step, planned / measured | | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        told = f"[{row.result}](../../benchmarks/results/{row.result}.json)"
        sized = f"{row.planned_gb:.1f} / {row.gb:.1f} | {_error(row.memory_error, MEMORY_BOUND)}"
        timed = f"{row.planned_s:.3g} |"
        if row.seconds is not None:
            timed = f"{row.planned_s:.3g} / {row.seconds:.3g} | {_error(row.time_error, TIME_BOUND)}"
        notes = ", ".join(note for note in ("calibrated" if row.seen else "", row.note) if note)
        lines.append(f"| {told} | {row.run} | {sized} | {timed} | {notes} |")
    sizes = [row.memory_error for row in rows]
    times = [(row.seen, row.time_error) for row in rows if row.time_error is not None]
    unseen = [error for was_seen, error in times if not was_seen]
    lines += [
        "",
        f"Memory: {_within(sizes, MEMORY_BOUND)}. Time: {_within([error for _, error in times], TIME_BOUND)}; of those"
        f" that no constant was set by, {_within(unseen, TIME_BOUND)}.",
    ]
    return "\n".join([*lines, "", *_stages()])


def _stages() -> Iterator[str]:
    """The table of whole stages."""
    yield "| whole stages | stage | s, planned / measured | |"
    yield "|---|---|---|---|"
    for name, stage, planned, took in stage_rows():
        told = f"[{name}](../../benchmarks/results/{name}.json)"
        yield f"| {told} | {stage} | {planned:.0f} / {took:.0f} | {_error(planned / took - 1, TIME_BOUND)} |"


def _within(errors: Sequence[float], bound: float) -> str:
    good = sum(abs(error) <= bound for error in errors)
    return f"{good} of {len(errors)} within {bound:.0%}, the worst {max(errors, key=abs):+.0%}"


def _error(error: float | None, bound: float) -> str:
    assert error is not None
    return f"{error:+.0%}" if abs(error) <= bound else f"**{error:+.0%}**"


def main() -> None:
    """Parse the command line; print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a page with the markers that the table goes between")
    options = parser.parse_args()
    pages.tell(PAGE, markdown(table()), options.write)


if __name__ == "__main__":
    main()
