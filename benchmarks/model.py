"""Training steps of our DeepSeek-V3 and of transformers', of the same shape, on the same tokens.

    OMP_NUM_THREADS=1 python -m benchmarks.model --out benchmarks/results/model-cpu.json
    python -m benchmarks.model --device cuda --preset small --rows 32 --length 1024 --out model-gpu.json

A step is forward, backward, AdamW; ours also counts the load, adds the sequence-wise loss and moves the biases, which
transformers does not do. transformers runs with each of its experts implementations, and its best one counts. Models
take turns, so that a busy machine is busy for all of them; on a CPU the time is the processor's, on a GPU the clock's.
Memory is what a process of its own takes beyond what it took before there was a model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from model import balance, factory, presets
from model.balance_loss import Balance, BalanceLoss

VOCABULARY = 128
IMPLEMENTATIONS = ("grouped_mm", "eager")
WARMUP = 3


def stepper(kind: str, options: argparse.Namespace) -> Callable[[], None]:
    """A function that takes one training step; `kind` is `ours`, or one of transformers' implementations."""
    shape, device = presets.load(options.preset), torch.device(options.device)
    torch.manual_seed(0)
    if kind == "ours":
        model = factory.build(shape, VOCABULARY, eos_token_id=1, pad_token_id=0, seed=0)
        balance.configure(model, Balance(BalanceLoss.SEQUENCE))
    else:
        config = DeepseekV3Config(**presets.fields(shape), vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0)
        model = DeepseekV3ForCausalLM(config)
        model.set_experts_implementation(kind)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids_BT = torch.randint(2, VOCABULARY, (options.rows, options.length), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        if kind == "ours":
            balance.update_bias(model)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    """What one step takes."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def peak(kind: str, options: argparse.Namespace) -> int:
    """The memory of a few steps in bytes; to be called in a fresh process."""
    cuda = options.device == "cuda"
    if not cuda:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: what importing took does not count
    before = resident("VmRSS")
    step = stepper(kind, options)
    for _ in range(WARMUP):
        step()
    return torch.cuda.max_memory_allocated() if cuda else resident("VmHWM") - before


def resident(which: str) -> int:
    """This process's memory in bytes: `VmRSS` is what it has now, `VmHWM` its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


def memory(kind: str, options: argparse.Namespace) -> int:
    """Peak memory in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak, kind, options).result()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kinds = ("ours", *IMPLEMENTATIONS)
    steps = {kind: stepper(kind, options) for kind in kinds}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(WARMUP + options.steps):
        for kind, step in steps.items():
            found = seconds(step, options.device)
            if turn >= WARMUP:
                taken[kind].append(found)
    del steps
    tokens = options.rows * options.length
    rows = {
        kind: {
            "tokens_per_second": round(tokens / statistics.median(values), 1),
            "best": round(tokens / min(values), 1),
            "peak_mib": round(memory(kind, options) / 2**20, 1),
        }
        for kind, values in taken.items()
    }
    theirs = max(IMPLEMENTATIONS, key=lambda kind: rows[kind]["tokens_per_second"])
    ratio = statistics.median(b / a for a, b in zip(taken["ours"], taken[theirs], strict=True))
    print(
        json.dumps(rows, indent=1), f"\nours / transformers' {theirs}: {ratio:.2f}x (median of {options.steps} turns)"
    )
    if options.out:
        device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread"
        settings = {name: getattr(options, name) for name in ("preset", "rows", "length", "steps")}
        record = {"device": device, "torch": torch.__version__, **settings, "runs": rows, "ratio": round(ratio, 3)}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
