"""What FP8 costs in loss and brings in speed: the same model, data and seed, with and without it.

python -m benchmarks.fp8 --steps 200 --out benchmarks/results/fp8-cpu.json
python -m benchmarks.fp8 --constant --out benchmarks/results/fp8-cpu-constant.json
python -m benchmarks.fp8 --preset small --rows 16 --length 1024 --steps 250 --learning-rate 4.2e-4 --out FILE
python -m benchmarks.fp8 --model FOLDER --rows 64 --length 256 --steps 250 --constant --learning-rate 1e-4 --out FILE

The text is this repository's own (Python and Markdown files), as bytes; the base model of `v3-small/r1-zero`
(`--model`) goes on with new documents of its corpus, in rows as long as it is used to. On a CPU FP8 is simulated,
exact in its numbers and slow, and compared with FP32; on a GPU it is torchao's kernels, compared with BF16. A third
run starts from weights that differ by a millionth: how far two runs part by rounding alone, which early in training
is far. The DeepSeek-V3 report has a relative error of the loss below 0.25 % (arXiv 2412.19437, section 3.3).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import math
import shlex
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "model", "pipeline", "rewards")
BYTES = 256
JITTER = 1e-6
DOCUMENTS = 100_000
SMOOTHED = 50
"""Steps that a loss is averaged over before two curves are compared."""

TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 96,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "max_position_embeddings": 4096,
    "initializer_range": 0.05,
}
"""As `nano`, with experts as wide as a block."""


def text() -> torch.Tensor:
    """The bytes of the repository's files, in the order of their names."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md"))
    return torch.tensor(list(b"".join(path.read_bytes() for path in files)))


def documents(folder: str, steps: int) -> torch.Tensor:
    """New documents about chains of so many steps, as a model's tokenizer has them."""
    from transformers import AutoTokenizer

    from pipeline.corpora.chain import ChainCorpus

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(list(ChainCorpus(length=steps).documents(DOCUMENTS, seed=1)), add_special_tokens=False).input_ids
    return torch.tensor([token for row in ids for token in [*row, tokenizer.eos_token_id]])


def batches(data_N: torch.Tensor, options: argparse.Namespace, device: str) -> Any:
    """One batch a step of rows from random places, the same for every run."""
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.steps):
        starts = torch.randint(len(data_N) - options.length, (options.rows,), generator=generator)
        yield torch.stack([data_N[start : start + options.length] for start in starts]).to(device)


def rate(step: int, options: argparse.Namespace) -> float:
    """Share of the learning rate: a line up, then, unless it is to stay, a cosine down to a tenth."""
    if step < options.warmup or options.constant:
        return min(1.0, (step + 1) / options.warmup)
    return 0.55 + 0.45 * math.cos(math.pi * (step - options.warmup) / (options.steps - options.warmup))


def train(mode: str, data_N: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Train one model and keep its losses: `plain`, `jitter` or `fp8`."""
    from model import balance, factory, fp8, modeling, presets

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        gc.collect()  # the run before lives in cycles: a schedule and its optimizer know each other
        torch.cuda.reset_peak_memory_stats()
    if options.model:
        model = modeling.load(options.model, dtype=torch.float32).to(device).train()
    else:
        shape = presets.load(options.preset or TINY)
        model = factory.build(shape, BYTES, eos_token_id=0, pad_token_id=0, seed=options.seed).to(device).train()
    if mode == "jitter":
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + JITTER)
    if mode == "fp8":
        fp8.fp8_training(model, fp8.usable_backend())
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, options))
    precision = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()
    losses, seconds = [], []
    for step, ids_BT in enumerate(batches(data_N, options, device)):
        started = time.perf_counter()
        with precision:
            loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        balance.update_bias(model)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
        if step % SMOOTHED == 0:
            logging.info("%s step %d loss %.4f", mode, step, losses[-1])
    return {
        "losses": [round(loss, 5) for loss in losses],
        "tokens_per_second": round(options.rows * options.length / statistics.median(seconds), 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None,
    }


def apart(losses: list[float], plain: list[float]) -> dict[str, Any]:
    """How far a curve lies above another, in per cent: averaged over windows of `SMOOTHED` steps, and over all."""

    def above(start: int, stop: int) -> float:
        return round(100 * (math.fsum(losses[start:stop]) / math.fsum(plain[start:stop]) - 1), 4)

    starts = range(0, len(plain) - SMOOTHED + 1, SMOOTHED)
    return {"windows": [above(start, start + SMOOTHED) for start in starts], "all": above(0, len(plain))}


def main() -> None:
    """Parse the command line, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", help="a model under configs/model/; a tiny one of whole blocks if not given")
    parser.add_argument("--model", help="a trained model to go on with, on new documents of its corpus")
    parser.add_argument(
        "--chain", type=int, default=12, help="steps of a chain there; those of v3-small/r1-zero's base"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--constant", action="store_true", help="no decay of the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data_N = documents(options.model, options.chain) if options.model else text()
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.fp8", *sys.argv[1:]]),
        "options": {name: str(value) for name, value in vars(options).items()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "text": {"tokens": len(data_N), "sha256": hashlib.sha256(data_N.numpy().tobytes()).hexdigest()},
        "per_cent_from_plain": {},
        "runs": {},
    }
    runs = result["runs"]
    for mode in ("plain", "fp8", "jitter"):
        runs[mode] = train(mode, data_N, options)
        if mode != "plain":
            result["per_cent_from_plain"][mode] = apart(runs[mode]["losses"], runs["plain"]["losses"])
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")  # each run at once: they take long
    logging.info("%s", result["per_cent_from_plain"])


if __name__ == "__main__":
    main()
