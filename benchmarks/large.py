"""GRPO of a 7B, and of DeepSeek-V3's architecture at 16B, on several GPUs: seconds by part, memory of GPUs and host.

    python -m benchmarks.large 7b --gpus 4 --tokenizer path/to/qwen --out benchmarks/results/scale-7b.json
    python -m benchmarks.large v3-16b --gpus 4 --tokenizer path/to/qwen --out benchmarks/results/scale-v3-16b.json
    python -m benchmarks.large 7b --gpus 2 --rollouts 128 --steps 4 --tokenizer path/to/qwen   # a part of it
    python -m benchmarks.large v3-16b --smoke --tokenizer path/to/tiny              # small ones like them, on a CPU

Weights are random and made here. The `grpo` stage trains under FSDP2 with a rank on each GPU, so that weights,
experts among them, gradients and optimizer are divided; beside each rank is an engine with a whole copy, which sleeps
while the ranks train. A step has 512 rollouts (64 prompts, 8 of each) that go on to their limit, for a random model
hardly ever ends; every second one is paid. The first two steps are not counted.

`peak_gb` is the most that was in use on each GPU, engine and context included. `host_gb` is the most by which the
host's free memory fell, `processes_gb` the most that the processes of the run held at once (PSS). `mismatch` is the
mean distance between log-probabilities of engine and trainer, in nats, one number a step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import lora
from benchmarks.grpo import train, versions
from benchmarks.jobs import present
from pipeline.runner.process import allocator
from pipeline.schema.launch import VISIBLE
from pipeline.stages.registry import config_class

CONFIG = Path("configs/accelerate/fsdp2-1node.yaml")
LOOK_SECONDS = 2.0
"""Between two looks at the host's memory."""
GROUP = 8
"""Rollouts of a prompt."""
VOCABULARY = 152_064
"""Rows of the embedding of `v3-16b`: Qwen's tokenizer and room, as Qwen2.5-7B has it."""


@dataclass(frozen=True)
class Size:
    """What is run.

    Attributes:
        like: the model's name on the hub, or that of a preset.
        tokens: of each rollout.
        gpu_memory: the engine's share of a GPU.
    """

    like: str
    tokens: int
    gpu_memory: float


SIZES = {"7b": Size("Qwen/Qwen2.5-7B", 2048, 0.4), "v3-16b": Size("v3-16b", 256, 0.45)}


class HostMemory(threading.Thread):
    """The peak of what a process and all that it starts take of the host's memory.

    Attributes:
        peaks: bytes by name; see the module.
    """

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        import psutil

        self._root, self._ended = psutil.Process(process), threading.Event()
        self._before = psutil.virtual_memory().available
        self.peaks = {"host_gb": 0.0, "processes_gb": 0.0}

    def run(self) -> None:
        """Look until told to stop."""
        import psutil

        while not self._ended.wait(LOOK_SECONDS):
            held = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (self._root, *self._root.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        held += process.memory_full_info().pss
            taken = self._before - psutil.virtual_memory().available
            for name, value in (("host_gb", taken), ("processes_gb", held)):
                self.peaks[name] = max(self.peaks[name], value / 1e9)

    def stop(self) -> dict[str, float]:
        """Stop looking. Returns the peaks in GB."""
        self._ended.set()
        self.join()
        return {name: round(value, 1) for name, value in self.peaks.items()}


def of_v3(preset: str, tokenizer: str, folder: Path, layers: int | None, small: bool) -> str:
    """A model of DeepSeek-V3's architecture with random weights, or a small one like it. Returns its folder."""
    import torch
    from transformers import AutoTokenizer

    from model import factory, presets

    read = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    given: dict[str, Any] = {"preset": "nano" if small else preset}
    shape = presets.load({**given, **({"num_hidden_layers": layers} if layers else {})})
    ends = {"eos_token_id": read.eos_token_id, "pad_token_id": read.pad_token_id}
    torch.set_default_dtype(torch.float32 if small else torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = factory.build(shape, vocab_size=len(read) if small else VOCABULARY, seed=0, **ends)
    model.save_pretrained(folder)
    read.save_pretrained(folder)
    return str(folder)


def made(options: argparse.Namespace, folder: Path) -> str:
    """The model, made in a process of its own, which leaves nothing on a GPU."""
    like = SIZES[options.size].like
    if options.size == "7b":
        return lora.made(like, options.tokenizer, folder, options.smoke)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        told = (options.tokenizer, folder, options.layers, options.smoke)
        return pool.submit(of_v3, like, *told).result()


def stage(options: argparse.Namespace, model: str) -> dict[str, Any]:
    """The stage's config, as a recipe would have it."""
    size = SIZES[options.size]
    rows = options.rollouts // options.gpus
    micro = min(rows, 2 * GROUP)
    trainer: dict[str, Any] = {
        "num_generations": GROUP,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "learning_rate": 1e-6,
        "beta": 0.0,
        "max_steps": options.steps,
        "save_steps": options.steps + 1,
        "logging_steps": 1,
        "gradient_checkpointing": True,
        "vllm_enable_sleep_mode": True,
    }
    rollout: dict[str, Any] = {"engine": "vllm", "max_tokens": size.tokens, "gpu_memory": size.gpu_memory}
    if options.smoke:
        trainer.pop("vllm_enable_sleep_mode")
        rollout = {"engine": "transformers", "max_tokens": 16}
    counting = Path(__file__).with_name("counting.py")
    return {
        "kind": "grpo",
        "model": model,
        "tasks": [{"use": f"{counting}:Counting"}],
        "rewards": [f"{counting}:every_second"],
        "rollout": rollout,
        "efficiency": {"tokens_per_pass": options.tokens_per_pass},
        "launch": {} if options.smoke else {"accelerate": "fsdp2-1node", "gpus": options.gpus},
        "trainer": trainer,
    }


def run(config: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train in processes of their own: what their ranks have found, and the memory of the host."""
    gpus = present()[: options.gpus]
    env = {**os.environ, **allocator(config_class("grpo").model_validate(config), os.environ)}
    launcher = [sys.executable, "-m"]
    if not options.smoke:
        if len(gpus) < options.gpus:
            sys.exit(f"--gpus {options.gpus}: there are {len(gpus)} here")
        env[VISIBLE] = ",".join(gpus)
        launcher += ["accelerate.commands.launch", "--config_file", str(CONFIG), "--num_processes", str(options.gpus)]
        launcher += ["-m"]
    with tempfile.TemporaryDirectory() as folder:
        job = json.dumps({"config": config, "folder": folder})
        began = time.monotonic()
        child = subprocess.Popen(
            [*launcher, "benchmarks.large", options.size, "--child", job], env=env, start_new_session=True
        )
        memory = HostMemory(child.pid)
        memory.start()
        try:
            code = child.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        found = {**memory.stop(), "with_start_s": round(time.monotonic() - began, 1)}
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("found-*.json"))]
    if code or len(ranks) != (1 if options.smoke else options.gpus):
        return {"failed": f"exit code {code}", **found}
    first = ranks[0]
    gaps = first.get("mismatch", [])
    half = len(gaps) // 2
    drift = {"drift": round(fmean(gaps[half:]) / fmean(gaps[:half]), 3)} if half and fmean(gaps[:half]) else {}
    return {**first, **drift, "peak_gb": [rank["peak_gb"] for rank in ranks], **found}


def child(job: str) -> None:
    """What each rank does; each leaves what it has found."""
    import torch

    task, rank = json.loads(job), int(os.environ.get("RANK", "0"))
    folder = Path(task["folder"])
    found = train("ours", task["config"], 0, folder / f"rank-{rank}")
    (folder / f"found-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def main() -> None:
    """Parse the command line, run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--tokenizer", default="Qwen/Qwen2.5-Coder-0.5B-Instruct", help="folder or hub id")
    parser.add_argument("--gpus", type=int, default=4, help="how many of those that are visible")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=512, help="of a step, on all GPUs together")
    parser.add_argument("--tokens-per-pass", type=int, default=8192)
    parser.add_argument("--layers", type=int, help="fewer than v3-16b has")
    parser.add_argument("--smoke", action="store_true", help="a small model on a CPU, three steps")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    if options.smoke:
        options.gpus, options.steps, options.rollouts = 1, 3, 2 * GROUP
    if options.rollouts % (GROUP * options.gpus):
        sys.exit(f"--rollouts: a multiple of {GROUP * options.gpus} divides among {options.gpus} GPUs")
    with tempfile.TemporaryDirectory() as folder:
        config = stage(options, made(options, Path(folder) / "model"))
        found = run(config, options)
    command = shlex.join(["python", "-m", "benchmarks.large", *sys.argv[1:]])
    told = {"size": options.size, "gpus": options.gpus, "rollouts": options.rollouts, "layers": options.layers}
    result = {**told, **found, "settings": {**config, "model": "random"}, "versions": versions(), "command": command}
    print(json.dumps({name: value for name, value in result.items() if name != "settings"}))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if "failed" in found:
        sys.exit("the run failed: see above")


if __name__ == "__main__":
    main()
