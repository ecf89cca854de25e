"""Tokens a second with and without self-speculative decoding, on one model in one run.

    zero2r1 run benchmarks/speculative.yaml
    python -m benchmarks.speculative runs/speculative --out benchmarks/results/speculative.json

The prompts are the questions of the corpus that the model was trained on, drawn anew. Every row writes `TOKENS` tokens,
past the end of its answer (as documents follow each other in pre-training), so that all ways do the same work. The ways
take turns and the figures are medians. `plain` is transformers' `generate` on the same class, with absorbed decoding.

On a GPU, with vLLM's method `mtp` beside ours (its kernels there want MLA's published widths, which `small` has):

    zero2r1 run benchmarks/speculative.yaml name=speculative-small stages.base.model.preset=small \\
        stages.base.trainer.max_steps=3000 stages.base.trainer.learning_rate=1e-3
    python -m benchmarks.speculative runs/speculative-small --device cuda --vllm --batches 1 8 32 128
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from model.modeling import load
from model.speculative import Speculation
from pipeline import artifacts
from pipeline.corpora.chain import ChainCorpus
from pipeline.rollout.speculative import facts

TOKENS = 64
ANSWER = "Assistant:"
"""What the prompts end with."""


def prompts(tokenizer: Any, count: int, seed: int = 1) -> list[list[int]]:
    """Questions with nothing behind `Assistant:`, as token ids."""
    texts = (text for text in ChainCorpus().documents(20 * count, seed) if ANSWER in text)
    asked = [text.partition(ANSWER)[0] + ANSWER for text in texts][:count]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in asked]


def batch_of(rows: list[list[int]], pad: int, device: str) -> dict[str, torch.Tensor]:
    """Rows padded on the left."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def timed(model: Any, batch: dict[str, torch.Tensor], drafts: int, temperature: float) -> tuple[float, Any]:
    """Seconds, and what came out; no drafts is plain decoding."""
    settings: dict[str, Any] = {"max_new_tokens": TOKENS, "eos_token_id": None, "do_sample": temperature > 0}
    if temperature > 0:
        settings |= {"temperature": temperature, "top_k": 0}
    if drafts:
        settings |= {"use_mtp": True, "num_assistant_tokens": drafts}
    torch.manual_seed(0)
    started = time.perf_counter()
    out = model.generate(**batch, **settings)
    if out.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, out


def measure(model: Any, rows: list[list[int]], pad: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry a batch size and temperature."""
    results = []
    for size in arguments.batches:
        batch = batch_of(rows[:size], pad, arguments.device)
        for temperature in (0.0, 1.0):
            seconds: dict[int, list[float]] = {drafts: [] for drafts in (0, *arguments.drafts)}
            told, same = {}, {}
            for round_ in range(arguments.rounds + 1):
                for drafts in seconds:
                    model.speculation = Speculation()
                    took, out = timed(model, batch, drafts, temperature)
                    if round_:  # the first round warms up
                        seconds[drafts].append(took)
                    told[drafts] = facts(model.speculation)
                    same[drafts] = out.tolist()
            medians = {drafts: statistics.median(took) for drafts, took in seconds.items()}
            entry: dict[str, Any] = {"batch": size, "temperature": temperature, "ways": {}}
            for drafts, median in medians.items():
                way: dict[str, Any] = {"tokens_per_s": round(size * TOKENS / median, 1)}
                if drafts:
                    way |= {**told[drafts], "times_plain": round(medians[0] / median, 3)}
                if drafts and not temperature:
                    way["same_tokens_as_plain"] = same[drafts] == same[0]
                entry["ways"][f"{drafts} drafts" if drafts else "plain"] = way
            print(json.dumps(entry))
            results.append(entry)
    return results


def measure_vllm(drafts: int, path: str, rows: list[list[int]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The same through vLLM's method `mtp`, with one number of drafts."""
    from pipeline.rollout import open_engine, sampling
    from pipeline.schema.pieces import RolloutSpec, SpeculativeSpec

    results = []
    speculative = SpeculativeSpec(tokens=drafts) if drafts else None
    options = arguments.engine_options
    spec = RolloutSpec(
        engine="vllm", max_tokens=TOKENS, temperature=0.0, speculative=speculative, engine_options=options
    )
    engine: Any = open_engine(spec, path, seed=0)
    for size in arguments.batches:
        seconds, tokens, before = [], 0, engine.speculation or Speculation()
        for round_ in range(arguments.rounds + 1):
            started = time.perf_counter()
            groups = engine.generate(rows[:size], sampling(spec, 1, round_))
            if round_:
                seconds.append(time.perf_counter() - started)
            tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
        told = facts(since(before, engine.speculation or Speculation()))
        entry = {"batch": size, "drafts": drafts, "tokens_per_s": round(tokens / statistics.median(seconds), 1)}
        print(json.dumps(entry | told))
        results.append(entry | told)
    engine.close()
    return results


def in_children(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """`measure_vllm` for each number of drafts, in a process of its own: torch allows graphs to one engine in each."""
    results = []
    for drafts in (0, *arguments.drafts):
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "out.json"
            words = [*sys.argv[1:], "--vllm-alone", str(drafts), "--out", str(out)]
            subprocess.run([sys.executable, "-m", "benchmarks.speculative", *words], check=True)
            results += json.loads(out.read_text(encoding="utf-8"))
    plain = {entry["batch"]: entry["tokens_per_s"] for entry in results if not entry["drafts"]}
    return [
        {**entry, "times_plain": round(entry["tokens_per_s"] / plain[entry["batch"]], 3)} if entry["drafts"] else entry
        for entry in results
    ]


def since(before: Speculation, now: Speculation) -> Speculation:
    """What came in between; vLLM counts from the start of the engine."""
    return Speculation(now.rounds - before.rounds, now.drafted - before.drafted, now.accepted - before.accepted)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run of a recipe with a stage `base`, or a model folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--drafts", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--vllm", action="store_true", help="measure vLLM too")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="vLLM's: '{\"enforce_eager\": true}'")
    parser.add_argument("--vllm-alone", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.run
    if not (folder / "config.json").is_file():
        base = artifacts.current(folder)["base"]
        assert base is not None, f"{folder} has no finished stage `base`"
        folder = base.path / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = prompts(tokenizer, max(arguments.batches))
    if arguments.vllm_alone is not None:
        found = measure_vllm(arguments.vllm_alone, str(folder), rows, arguments)
        arguments.out.write_text(json.dumps(found), encoding="utf-8")
        return
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    model = load(str(folder), dtype=dtype).to(arguments.device).eval()
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.speculative", *sys.argv[1:]]),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "blocks": model.config.num_nextn_predict_layers,
        "tokens_a_row": TOKENS,
        "device": torch.cuda.get_device_name() if arguments.device != "cpu" else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "results": measure(model, rows, tokenizer.pad_token_id, arguments),
    }
    if arguments.vllm:
        del model
        gc.collect()
        torch.cuda.empty_cache()
        result["vllm"] = in_children(folder, arguments)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
