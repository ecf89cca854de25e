"""GRPO on the GPUs of one machine, as one host and as two hosts of a Ray cluster: samples a second.

    python -m benchmarks.two_hosts --gpus 2 --model models/qwen2.5-coder-0.5b --problems data/gsm8k \\
        --out benchmarks/results/two-hosts-h200-x2.json
    python -m benchmarks.two_hosts --smoke --model path/to/tiny --problems path/to/gsm8k             # on a CPU

Each way is a run of the same recipe, 64 problems x 8 rollouts a step of at most 400 tokens, with a rank and an engine
on each GPU (`ddp`):

    plain   `zero2r1 run`, without Ray
    one     `zero2r1 run --cluster` on a cluster of one host, with all GPUs
    two     the same with `launch.nodes: 2` on two hosts: a raylet each, with an address and half of the GPUs of its own

Two hosts on one machine have the links of one machine: the result says what hosts cost apart from their network. Steps
are counted from the third on; `of_one` is two hosts over the faster of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.grpo import WARM_UP, versions
from benchmarks.jobs import present
from benchmarks.runs import finished, keep
from pipeline.report.run_data import Stage, events
from pipeline.schema.launch import VISIBLE

WAYS = ("plain", "one", "two")
ROLLOUTS, MICRO = 512, 64
SECOND_ADDRESS = "127.0.0.2"
"""Of the second host; the first has the machine's own."""
CORES = 2
"""Of a host that Ray may give away: each stage asks for one."""


def recipe(way: str, gpus: int, options: argparse.Namespace) -> dict[str, Any]:
    """The recipe of a way."""
    rollouts, micro = (32, 8) if options.smoke else (ROLLOUTS, MICRO)
    trainer = {
        "num_generations": 8,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": max(1, rollouts // micro // gpus),
        "learning_rate": 1e-6,
        "beta": 0.0,
        "max_steps": options.steps,
        "save_steps": options.steps + 1,
        "logging_steps": 1,
    }
    rollout: dict[str, Any] = {"engine": "vllm", "max_tokens": 400, "gpu_memory": 0.3}
    if options.smoke:
        rollout = {"engine": "transformers", "max_tokens": 16}
    zero = {
        "kind": "grpo",
        "model": str(Path(options.model).resolve()),
        "tasks": [{"use": "gsm8k", "options": {"path": str(Path(options.problems).resolve())}, "template": "boxed"}],
        "rewards": ["accuracy"],
        "rollout": rollout,
        "launch": {"accelerate": "ddp", "gpus": gpus, **({"nodes": 2} if way == "two" else {})},
        "keep_state": False,
        "trainer": trainer,
    }
    return {"name": way, "seed": 0, "stages": {"zero": zero}}


@contextlib.contextmanager
def hosts(shares: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Ray cluster on this machine, a host for each share of the GPUs. Yields its address."""
    sockets = tempfile.mkdtemp(prefix="z", dir="/tmp")  # names of sockets are short
    before = dict(os.environ)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": sockets}
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for number, share in enumerate(shares):
            os.environ[VISIBLE] = ",".join(share)  # a raylet gives away those of its environment
            own = {"node_ip_address": SECOND_ADDRESS} if number else {}
            has = {"num_cpus": CORES, "num_gpus": len(share), "object_store_memory": 10**8}
            cluster.add_node(**has, **own, include_dashboard=False)
        yield cluster.address
    finally:
        cluster.shutdown()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before
        shutil.rmtree(sockets, ignore_errors=True)


def measure(way: str, gpus: Sequence[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run a way, and tell how fast it was and where it ran."""
    told = recipe(way, len(gpus), options)
    if way == "plain":
        return speed(finished(told, folder, environment={**os.environ, VISIBLE: ",".join(gpus)})["zero"])
    half = len(gpus) // 2
    with hosts([gpus] if way == "one" else [gpus[:half], gpus[half:]]) as address:
        return speed(finished(told, folder, "--cluster", address)["zero"])


def speed(stage: Stage) -> dict[str, Any]:
    """Samples a second of a finished stage, seconds of a step by part, and the addresses of its hosts."""
    steps = [line for line in events(stage) if "samples_per_second" in line]
    counted = steps[WARM_UP:]
    parts = {name for line in counted for name in line if name.startswith("seconds/")}
    return {
        "samples_per_s": round(len(counted) / sum(1 / line["samples_per_second"] for line in counted), 3),
        "split": {name.partition("/")[2]: round(fmean(line[name] for line in counted), 4) for name in sorted(parts)},
        "reward": [round(line["reward"], 4) for line in steps if "reward" in line],
        "hosts": {host["address"]: host["gpus"] for host in stage.manifest.get("hosts", ())},
        "with_start_s": stage.manifest["seconds"],
    }


def summary(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Two hosts over the faster of the ways with one, if there are both."""
    one = max((found["samples_per_s"] for way, found in runs.items() if way != "two"), default=None)
    return {"of_one": round(runs["two"]["samples_per_s"] / one, 3)} if one and "two" in runs else {}


def main() -> None:
    """Parse the command line, run, print, and write the result after each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder")
    parser.add_argument("--problems", required=True, help="folder with GSM8K's train.jsonl")
    parser.add_argument("--gpus", type=int, default=2, help="how many of those that are visible; an even number")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="on a CPU, with GPUs that Ray takes at its word")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gpus = present()[: options.gpus]
    if options.smoke:
        options.steps, options.ways, gpus = WARM_UP + 2, ["one", "two"], ["0", "1"]
    if len(gpus) != options.gpus or options.gpus % 2:
        sys.exit(f"--gpus {options.gpus}: an even number of those that are here, which are {len(gpus)}")
    result: dict[str, Any] = {"gpus": options.gpus, "runs": {}, "settings": recipe("two", len(gpus), options)}
    command = shlex.join(["python", "-m", "benchmarks.two_hosts", *sys.argv[1:]])
    result |= {"versions": versions(), "command": command}
    with tempfile.TemporaryDirectory() as folder:
        for way in options.ways:
            found = result["runs"][way] = measure(way, gpus, options, Path(folder))
            print(way, json.dumps(found), flush=True)
            keep(options.out, result | summary(result["runs"]))
    print(json.dumps(summary(result["runs"])))


if __name__ == "__main__":
    main()
