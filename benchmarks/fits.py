"""What fits on a GPU: GRPO of three sizes, in full, by LoRA and by QLoRA, at three lengths, as the planner has it.

    python -m benchmarks.fits                             # the table
    python -m benchmarks.fits --write docs/guides/memory.md     # into the page, between its markers

A step is 64 rollouts (8 problems, 8 rollouts each) that all get as long as they may, with prompts of 128 tokens. The
engine sleeps while the trainer works and has room for all 64 at once; passes have 8,192 tokens, or one rollout, with
gradient checkpointing. Beside QLoRA the engine's weights are in FP8. Speeds are those of an H200.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.cost import memory
from pipeline.cost.hardware import cluster
from pipeline.planner.estimate import estimate
from pipeline.planner.stages import Reader
from pipeline.planner.work import Given
from pipeline.recipe import load

RECIPE = "lora/1.5b-12gb"
MODELS = {"0.5B": "Qwen/Qwen2.5-0.5B", "1.5B": "Qwen/Qwen2.5-1.5B", "7B": "Qwen/Qwen2.5-7B"}
WAYS = {"full": "null", "LoRA": "{}", "QLoRA": "{quantize: 4bit}"}
LENGTHS = (1024, 4096, 16_384)
ROLLOUTS, PROMPT, STEPS = 64, 128, 200
GPU = "H200"
BEGIN, END = "<!-- benchmarks.fits -->", "<!-- /benchmarks.fits -->"


def cell(model: str, way: str, length: int) -> str:
    """Gigabytes, rollouts a second and minutes of one kind of run."""
    on = cluster(GPU)
    engine = "fp8" if way == "QLoRA" else "null"
    overrides = [
        f"stages.base.model={model}",
        f"stages.zero.adapter={WAYS[way]}",
        f"stages.zero.rollout.max_tokens={length}",
        f"stages.zero.rollout.engine_options={{quantization: {engine}}}",
        f"stages.zero.trainer.max_steps={STEPS}",
    ]
    given = Given(1, on.gpu.bytes, PROMPT, length)
    work = Reader(load(RECIPE, overrides), given).work("zero")
    assert work.engine is not None
    (shape,) = work.models
    cache = ROLLOUTS * (PROMPT + length) * memory.kv_cache_bytes(shape)
    share = (memory.stored(shape, work.engine.base) + cache) / on.gpu.bytes
    overrides.append(f"stages.zero.rollout.gpu_memory={min(1.0, share):.4f}")
    found = estimate(Reader(load(RECIPE, overrides), given).work("zero"), on)
    step = found.seconds["step"]
    return f"{found.peak / 1e9:.0f} GB, {ROLLOUTS / step:.1f}/s, {found.whole / 60:.0f} min"


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| model | way | " + " | ".join(f"{length:,} tokens" for length in LENGTHS) + " |",
        "|---|---|" + "---|" * len(LENGTHS),
    ]
    for name, model in MODELS.items():
        for way in WAYS:
            cells = [cell(model, way, length) for length in LENGTHS]
            lines.append(f"| {name} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with the table of today between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if options.write is None:
        print(table())
    else:
        options.write.write_text(written(options.write.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
