"""GRPO on one, two and four GPUs of a host, engines beside the trainers or apart; and TRL's AsyncGRPOTrainer.

    python -m benchmarks.scaling --model models/qwen2.5-coder-1.5b --problems data/gsm8k --gpus 0 1 \\
        --out benchmarks/results/scaling-h200.json
    python -m benchmarks.scaling --smoke --model path/to/tiny --problems path/to/gsm8k          # on a CPU, a few steps

64 problems x 8 rollouts a step, at most 1,024 tokens, bf16; the rest is as in `benchmarks.grpo`. A way is named by the
number of GPUs and what is done with them, and runs in processes of its own:

    1            vLLM in the trainer's process
    2-beside     two trainers, each with vLLM in its process
    2-apart-K    a trainer and an engine, a GPU each, with `rollout.max_staleness: K`
    2-async-K    TRL's AsyncGRPOTrainer on one GPU, `vllm serve` on the other, with its `max_staleness: K`
    4-…          the same with two trainers, and two engines (or one server with two replicas)

Trainers of one way share the work by `--launch`. A second is one of the wall clock, from the end of the second step to
the end of the last one; `bound` is the larger of what sampling alone and training alone take of a step, both from
`2-apart-0`, where each waits for the other. Results are added to those that the file has already, if the settings are
the same, so that ways can be measured one at a time.

AsyncGRPOTrainer attends with a FlashAttention 3 kernel that it downloads. Where there is none, torch's variable-length
FlashAttention 2 takes its place, as in our own trainer; `attention` tells which it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import children
from benchmarks.grpo import WARM_UP, stage, train, versions
from pipeline.schema.launch import VISIBLE

WAYS = ("1", "2-beside", "2-apart-0", "2-apart-1", "2-apart-2", "2-async-1", "2-async-2")
MORE = ("4-beside", "4-apart-1", "4-apart-2", "4-async-1", "4-async-2")
SERVER_SECONDS = 600.0
"""Longest wait for `vllm serve`, which compiles and captures graphs."""
RUN_SECONDS = 900.0
"""Longest run of one way: one that hangs is ended, and told of."""
PACKED_ROWS = 16
"""Rollouts of a packed row of AsyncGRPOTrainer: about as many tokens as a pass of ours."""


def parts(way: str) -> tuple[int, str, int]:
    """GPUs, what is done with them, and the staleness of a way."""
    gpus, _, rest = way.partition("-")
    kind, _, staleness = rest.partition("-")
    return int(gpus), kind or "beside", int(staleness or 0)


def config_of(way: str, options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The config of the stage for a way, and how many trainers there are."""
    gpus, kind, staleness = parts(way)
    trainers = gpus if kind == "beside" else gpus // 2
    config = stage(options)
    trainer = config["trainer"]
    trainer["gradient_accumulation_steps"] = max(1, trainer["gradient_accumulation_steps"] // trainers)
    rollout: dict[str, Any] = {**config["rollout"], "engine_options": dict(options.engine_options)}
    if not options.smoke:
        rollout["max_tokens"] = options.max_tokens
    if kind == "apart":
        devices = options.gpus[trainers : 2 * trainers] if options.gpus else [""] * trainers
        rollout |= {"process": {"devices": [str(device) for device in devices]}, "max_staleness": staleness}
        if not options.smoke:
            rollout["gpu_memory"] = 0.85
    config["efficiency"] = {**config["efficiency"], "fused_kernels": options.fused_kernels}
    return {**config, "rollout": rollout}, trainers


def run(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a way in processes of its own: what `child` has found, or why there is nothing."""
    gpus, kind, staleness = parts(way)
    config, trainers = config_of(way, options)
    devices = options.gpus[:trainers]
    env = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # as `zero2r1 run` has it
    env |= {VISIBLE: ",".join(devices)} if devices else {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        job: dict[str, Any] = {"kind": "ours", "config": config, "folder": folder}
        if kind == "async":
            served = stack.enter_context(server(options, options.gpus[trainers:gpus], config))
            job |= {"kind": "async", "server": served, "staleness": staleness, "model": options.model}
        launch = [sys.executable, "-m"]
        if trainers > 1:
            file = Path("configs/accelerate") / f"{options.launch}.yaml"
            launch += ["accelerate.commands.launch", "--config_file", str(file), "--num_processes", str(trainers)]
            launch += ["--cpu"] if options.smoke else []
            launch += ["-m"]
        child = subprocess.Popen(
            [*launch, "benchmarks.scaling", "--child", json.dumps(job)], env=env, start_new_session=True
        )
        try:
            code = child.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        found = Path(folder) / "found.json"
        if code != 0 or not found.exists():
            return {"failed": "it did not end" if code is None else f"exit code {code}"}
        told: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        return {**told, "trainers": trainers, "with_start_s": round(time.monotonic() - began, 1)}


@contextlib.contextmanager
def server(options: argparse.Namespace, devices: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    """`vllm serve` as AsyncGRPOTrainer wants it; replicas where it has several GPUs. Yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options.model]
    command += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm", "--dtype", "bfloat16"]
    command += ["--gpu-memory-utilization", "0.85", "--max-model-len", "4096", "--logprobs-mode", "processed_logprobs"]
    command += ["--weight-transfer-config", '{"backend": "nccl"}', "--data-parallel-size", str(len(devices))]
    for name, value in config["rollout"]["engine_options"].items():
        flag = "--" + name.replace("_", "-")
        command += [flag if value else flag.replace("--", "--no-")] if isinstance(value, bool) else [flag, str(value)]
    env = {**os.environ, VISIBLE: ",".join(devices), "VLLM_SERVER_DEV_MODE": "1"}
    process = subprocess.Popen(command, env=env, start_new_session=True)
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + SERVER_SECONDS
    try:
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            if process.poll() is not None or time.monotonic() > until:
                sys.exit("vllm serve did not start")
            time.sleep(1)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def child(job: Mapping[str, Any]) -> None:
    """What each process of a way does; the first one writes down what it has found."""
    rank = int(os.environ.get("RANK", "0"))
    folder = Path(job["folder"])
    if job["kind"] == "ours":
        found = train("ours", job["config"], 0, folder / f"rank-{rank}")
        rows = found["samples_per_s"] * found["seconds_a_step"]
        found["samples_per_s"] = round(rows / found["wall_a_step"], 2)
    else:
        found = peer(job, folder / f"rank-{rank}")
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def peer(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train with TRL's AsyncGRPOTrainer on the same problems, and tell how fast it was."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import chat_template_utils
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

    import rewards
    from benchmarks.grpo import context_of
    from pipeline.tasks.resolve import prompt_rows
    from pipeline.training import setup

    context = context_of(job["config"], 0, folder)
    config, trainer_fields = context.config, context.config.trainer
    tokenizer = setup.load_tokenizer(job["model"])
    # AsyncGRPOTrainer parses answers by a schema that it only has for templates it knows; theirs are plain text.
    template, tokenizer.chat_template = tokenizer.chat_template, chat_template_utils.qwen2_5_chat_template
    chat_template_utils.add_response_schema(tokenizer)
    tokenizer.chat_template = template
    rows = prompt_rows(config.tasks, context)
    kept = ("learning_rate", "max_steps", "epsilon", "num_generations", "save_steps")
    rows_a_trainer = trainer_fields["per_device_train_batch_size"] * trainer_fields["gradient_accumulation_steps"]
    args = AsyncGRPOConfig(
        output_dir=str(folder / "out"),
        **{name: trainer_fields[name] for name in kept},
        per_device_train_batch_size=PACKED_ROWS,
        gradient_accumulation_steps=rows_a_trainer // PACKED_ROWS,
        gradient_checkpointing=trainer_fields["gradient_checkpointing"],
        max_completion_length=config.rollout.max_tokens,
        max_staleness=job["staleness"],
        token_budget=0,
        vllm_server_base_url=job["server"],
        report_to="none",
        seed=0,
    )
    ends, scores, waits = [], [], []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            scores.append(logs.get("reward"))
            waits.append(logs.get("perf/rollout_wait_s"))

    attention = torch_attention()
    trainer = AsyncGRPOTrainer(
        model=job["model"],
        reward_funcs=rewards.load("math"),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Watch()],
    )
    trainer.train()
    count = args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes
    seconds = (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP)
    return {
        "samples_per_s": round(count / seconds, 2),
        "seconds_a_step": round(seconds, 3),
        "accuracy": [round(value, 4) for value in scores if value is not None],
        "waits_s": [round(value, 3) for value in waits if value is not None],
        "attention": attention,
    }


def torch_attention() -> str:
    """Let AsyncGRPOTrainer attend with torch's kernel where it cannot get its own; which it does."""
    from trl.experimental.async_grpo import packing

    try:
        packing._flash_attn()
    except Exception as error:  # noqa: BLE001 - no package, no network, no kernel for this machine: all the same here
        reason = type(error).__name__
    else:
        return "FlashAttention 3"
    packing._flash_attn = TorchAttention
    return f"torch's FlashAttention 2 ({reason} at FlashAttention 3)"


class TorchAttention:
    """What AsyncGRPOTrainer asks of a flash attention package, from torch."""

    @staticmethod
    def flash_attn_varlen_func(
        query: Any, key: Any, value: Any, ends_q: Any, ends_k: Any, longest_q: int, longest_k: int, **how: Any
    ) -> Any:
        """Causal attention of segments to the paths that lead to them; (tokens, heads, width)."""
        from torch.nn.attention.varlen import varlen_attn

        groups = query.size(1) // key.size(1)
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        scale, window = how["softmax_scale"], (-1, 0)
        return varlen_attn(query, key, value, ends_q, ends_k, longest_q, longest_k, scale=scale, window_size=window)


def summary(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Samples a second by number of GPUs, the best of our ways and of the peer's, and what they come to."""
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for way, found in runs.items():
        gpus, kind, _ = parts(way)
        if "failed" not in found:
            best = theirs if kind == "async" else ours
            best[str(gpus)] = max(best.get(str(gpus), 0.0), found["samples_per_s"])
    told: dict[str, Any] = {"samples_per_second": ours, "async_grpo": theirs}
    if "1" in ours:
        told["speedup"] = {gpus: round(speed / ours["1"], 2) for gpus, speed in ours.items()}
    pairs = {
        way: (runs[way]["samples_per_s"], runs[peers]["samples_per_s"])
        for way in runs
        if "-apart-" in way and "failed" not in runs[way]
        for peers in [way.replace("apart", "async")]
        if "failed" not in runs.get(peers, {"failed": ""})
    }
    told["over_async_grpo"] = {way: round(mine / other, 2) for way, (mine, other) in pairs.items()}
    turns = runs.get("2-apart-0", {"failed": ""})
    if "failed" not in turns:
        sampling = turns["split"]["waiting"]
        bound = max(sampling, turns["seconds_a_step"] - sampling)
        steps = {
            way: found["seconds_a_step"]
            for way, found in runs.items()
            if way.startswith("2-apart-") and "failed" not in found
        }
        told["bound_s"] = {"sampling": sampling, "training": round(turns["seconds_a_step"] - sampling, 3)}
        told["over_bound"] = {way: round(seconds / bound, 2) for way, seconds in steps.items()}
    return told


def main() -> None:
    """Parse the command line, run, print, and write the result after each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--problems", help="folder with GSM8K's train.jsonl; from the hub if not given")
    parser.add_argument("--gpus", nargs="+", type=children.gpu, default=[], help="the GPUs that may be used")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *MORE], help="all that the GPUs are enough for")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--launch", default="ddp", help="of several trainers: a config in configs/accelerate")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--gpu-memory", type=float, default=0.3, help="vLLM's share of a GPU that a trainer is on")
    parser.add_argument("--tokens-per-pass", type=int, default=12288)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--engine-options", type=json.loads, default={"max_num_seqs": 512}, help="vLLM's, as JSON")
    parser.add_argument("--fused-kernels", action="store_true", help="Liger's, for our trainer")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    if Path(options.model).exists():
        options.model = str(Path(options.model).resolve())  # the server is asked for it by this name
    options.beta, options.dynamic_sampling_rounds, options.long = 0.0, 0, False
    if options.smoke:
        options.steps, options.engine_options = WARM_UP + 2, {}
    enough = [way for way in [*WAYS, *MORE] if parts(way)[0] <= (2 if options.smoke else len(options.gpus))]
    ways = options.ways or [way for way in enough if not (options.smoke and "async" in way)]
    if missing := [way for way in ways if way not in enough]:
        sys.exit(f"--gpus: {len(options.gpus)} are not enough for {missing[0]}")
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "child", "ways", "gpus")}
    result: dict[str, Any] = {"settings": settings, "versions": versions(), "runs": {}, "commands": []}
    if options.out is not None and options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if (before["settings"], before["versions"]) != (settings, result["versions"]):
            sys.exit(f"{options.out} is of other settings or versions: write to another file")
        result = before
    result["commands"].append(shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]]))
    for way in ways:
        found = result["runs"][way] = run(way, options)
        print(
            way, json.dumps({name: value for name, value in found.items() if not isinstance(value, list)}), flush=True
        )
        result |= summary(result["runs"])
        if options.out is not None:
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name not in ("runs", "settings", "versions")}))
    if failed := [way for way in ways if "failed" in result["runs"][way]]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
