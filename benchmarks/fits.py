"""What fits on a GPU: GRPO of three sizes, in full, by LoRA and by QLoRA, at three lengths, measured or planned.

    python -m benchmarks.fits                             # the table
    python -m benchmarks.fits --write docs/guides/memory.md     # into the page, between its markers
    python -m benchmarks.fits --measure --tokenizer path/to/qwen --devices 0 1 --lengths 1024 4096

A step is 64 rollouts (8 problems, 8 rollouts each) that all get as long as they may. The engine sleeps while the
trainer works and has room for all 64 at once; passes have 8,192 tokens, or one rollout, with gradient checkpointing.
Beside QLoRA the engine's weights are in FP8. Speeds are those of an H200.

`--measure` runs two steps of each cell, of which the second counts, on models of these shapes with random weights, and
adds to `RESULTS` after each cell; cells that are there are not run again. Cells that were not measured are planned,
with prompts of 128 tokens.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any

from benchmarks import children, lora, pages
from benchmarks.children import Place, side_by_side
from benchmarks.grpo import versions
from pipeline.cost import memory
from pipeline.cost.hardware import cluster
from pipeline.files import durable
from pipeline.planner.estimate import Estimate, estimate
from pipeline.planner.stages import Reader
from pipeline.planner.work import Given
from pipeline.recipe import Recipe, load

RECIPE = "lora/1.5b-12gb"
MODELS = {"0.5B": "Qwen/Qwen2.5-0.5B", "1.5B": "Qwen/Qwen2.5-1.5B", "7B": "Qwen/Qwen2.5-7B"}
WAYS = {"full": "null", "LoRA": "{}", "QLoRA": "{quantize: 4bit}"}
LENGTHS = (1024, 4096, 16_384)
ROLLOUTS, PROMPT, STEPS = 64, 128, 200
GPU = "H200"
RESULTS = Path("benchmarks/results/fits-h200.json")
PAGE = "fits"
"""What the markers of the table are called."""


def recipe(model: str, way: str, length: int, *more: str) -> Recipe:
    """The recipe of a cell."""
    overrides = [
        f"stages.base.model={model}",
        f"stages.zero.adapter={WAYS[way]}",
        f"stages.zero.rollout.max_tokens={length}",
        f"stages.zero.rollout.engine_options={{quantization: {'fp8' if way == 'QLoRA' else 'null'}}}",
        f"stages.zero.trainer.max_steps={STEPS}",
    ]
    return load(RECIPE, [*overrides, *more])


def planned(model: str, way: str, length: int) -> tuple[Estimate, int, float]:
    """The estimate of a cell, bytes of the engine's cache, and the engine's share of the GPU."""
    on = cluster(GPU)
    given = Given(1, on.gpu.bytes, PROMPT, length)
    work = Reader(recipe(model, way, length), given).work("zero")
    assert work.engine is not None
    (shape,) = work.models
    cache = ROLLOUTS * (PROMPT + length) * memory.kv_cache_bytes(shape)
    share = min(1.0, (memory.stored(shape, work.engine.base) + cache) / on.gpu.bytes)
    more = f"stages.zero.rollout.gpu_memory={share:.4f}"
    return estimate(Reader(recipe(model, way, length, more), given).work("zero"), on), int(cache), share


def cell(model: str, way: str, length: int, found: Mapping[str, Any] | None = None) -> str:
    """Gigabytes, rollouts a second and minutes of one kind of run: what was measured in bold, else what is planned."""
    if found is None:
        told = planned(model, way, length)[0]
        return f"{told.peak / 1e9:.0f} GB, {ROLLOUTS / told.seconds['step']:.1f}/s, {told.whole / 60:.0f} min"
    if "failed" in found:
        return "**does not fit**"
    minutes = STEPS * ROLLOUTS / found["samples_per_s"] / 60
    return f"**{found['peak_gb']:.0f} GB, {found['samples_per_s']:.1f}/s, {minutes:.0f} min**"


def table(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown.

    Args:
        cells: what was measured, by `name`.
    """
    lines = [
        "| model | way | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |",
        "|---|---|" + "---|" * len(LENGTHS),
    ]
    for size, model in MODELS.items():
        for way in WAYS:
            row = [cell(model, way, length, cells.get(name(size, way, length))) for length in LENGTHS]
            lines.append(f"| {size} | {way} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def name(size: str, way: str, length: int) -> str:
    """What a cell is called in the file of results."""
    return f"{size} {way} {length}"


def stage(size: str, way: str, length: int, model: str, smoke: bool) -> dict[str, Any]:
    """The stage of a cell, on a model of random weights."""
    _, cache, share = planned(MODELS[size], way, length)
    given = recipe(MODELS[size], way, length).stages["zero"].model_dump(mode="json", by_alias=True)
    given |= {"model": model, "after": [], "seed": None}
    given |= {"tasks": [{"use": "benchmarks/counting.py:Counting"}], "rewards": ["benchmarks/counting.py:every_second"]}
    given["trainer"] |= {"max_steps": 2, "save_steps": 3}
    options = {key: value for key, value in given["rollout"]["engine_options"].items() if value is not None}
    given["rollout"] |= {"gpu_memory": round(share, 4), "engine_options": {**options, "kv_cache_memory_bytes": cache}}
    if smoke:
        given["rollout"] |= {"engine": "transformers", "max_tokens": 16, "engine_options": {}}
        given["trainer"] |= {"num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        given["trainer"].pop("vllm_enable_sleep_mode")
    return given


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the cells that are missing, as many at a time as there are GPUs, and write each down when it ends."""
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"cells": {}}
    result |= {"versions": versions(), "command": shlex.join(["python", "-m", "benchmarks.fits", *sys.argv[1:]])}
    asked = list(product(options.lengths, options.models, options.ways))
    there = {cell for cell, found in result["cells"].items() if "failed" not in found}
    missing = [(length, size, way) for length, size, way in asked if name(size, way, length) not in there]
    writing = Lock()
    with tempfile.TemporaryDirectory() as folder:
        models = {
            size: lora.made(MODELS[size], options.tokenizer, Path(folder) / size, options.smoke)
            for size in dict.fromkeys(size for _, size, _ in missing)
        }

        def run(job: tuple[int, str, str], place: Place) -> dict[str, Any]:
            length, size, way = job
            found = lora.in_child(stage(size, way, length, models[size], options.smoke), options, place, 0)
            with writing:
                result["cells"][name(size, way, length)] = found
                print(name(size, way, length), cell(MODELS[size], way, length, found), flush=True)
                durable.write(options.out, json.dumps(result, indent=1) + "\n")
            return found

        side_by_side(missing, options.devices, run)
    return result


def measured(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The cells of a file of results; none if there is no file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))["cells"]) if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write it into a page, or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page to write the table into")
    parser.add_argument("--measure", action="store_true", help="run cells, and do not write the table")
    parser.add_argument("--tokenizer", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="folder or hub id")
    parser.add_argument("--devices", nargs="+", type=children.gpu, default=[], help="GPUs, with a cell at a time each")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--lengths", nargs="+", type=int, choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true", help="small models on a CPU")
    options = parser.parse_args(arguments)
    options.seed, options.limit_gb = 0, None
    if options.measure:
        found = measure(options)["cells"]
        sys.exit("a cell failed: see above" if any("failed" in cell for cell in found.values()) else 0)
    pages.tell(PAGE, table(measured()), options.write)


if __name__ == "__main__":
    main()
