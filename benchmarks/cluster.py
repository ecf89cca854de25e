"""Kill a run on a cluster at random moments, and compare what it ends in with a run that nobody touched.

    python -m benchmarks.cluster --kills 20 --out benchmarks/results/cluster-kills.json

Ray's own test cluster is two hosts on this machine (CPU). A tiny GRPO stage has a rank on each, which talk through
gloo. Once in each trial, at a random step or before the first, something is killed (SIGKILL): a rank, the launcher of
one host, an agent, the raylet of the second host (another host comes in its place), or the runner, which is started
again. Weights are compared with those of the untouched run, and what is still alive of the run is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tests.stages.driving import CORPUS, SUMS, TINY

HOST = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
WAIT_SECONDS = 600.0
STEPS = 24
START_SECONDS = 20.0
"""About as long as ranks take to load their libraries: a kill before the first step falls into it."""
KINDS = ("rank", "launcher", "agent", "raylet", "runner")


def recipe() -> dict[str, Any]:
    """A model, and a GRPO stage of two hosts."""
    trainer = {"num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "beta": 0.0}
    trainer |= {"learning_rate": 1e-3, "max_steps": STEPS, "save_steps": 4, "logging_steps": 1, "bf16": False}
    base = {"kind": "pretrain", "model": TINY, "vocabulary": {"kind": "words"}, "length": 32, "launch": {"gpus": 0}}
    base |= {"corpus": {"use": "corpus.py:Sums", "documents": 100}}
    base |= {"trainer": {"max_steps": 8, "learning_rate": 5e-3, "warmup_steps": 0, "bf16": False}}
    zero = {"kind": "grpo", "model": "@base", "tasks": ["sums.py:Sums"], "rewards": ["sums.py:shape"]}
    zero |= {"rollout": {"max_tokens": 8}, "launch": {"nodes": 2, "accelerate": "ddp", "restarts": 1}}
    return {"name": "killed", "seed": 3, "stages": {"base": base, "zero": {**zero, "trainer": trainer}}}


class Trial:
    """A run in a folder of its own, on a cluster."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder

    def start(self) -> subprocess.Popen[bytes]:
        """Start the run, or go on with it."""
        words = [str(Path(sys.executable).parent / "zero2r1"), "run", "recipe.yaml", "--json", "--cluster"]
        with (self.folder / "said.txt").open("ab") as sink:
            return subprocess.Popen([*words, self.cluster.address], cwd=self.folder, stdout=sink, stderr=sink)

    def processes(self, *words: str) -> list[int]:
        """The processes of this run whose command has all of these words."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                zombie = "\nState:\tZ" in (process / "status").read_text()
            except OSError:
                continue
            if not zombie and f"{self.folder}/runs" in command and all(word in command for word in words):
                found.append(int(process.name))
        return sorted(found)

    def ranks(self) -> list[int]:
        """The ranks: processes of the worker, whose name is in the commands of launchers as well."""
        others = set(self.processes("pipeline.runner.launcher"))
        return [number for number in self.processes("pipeline.runner.worker") if number not in others]

    def launchers(self) -> list[int]:
        """The launchers, one a host; not the guards that they have forked."""
        found = self.processes("pipeline.runner.launcher")
        return [number for number in found if parent(number) not in found]

    def agents(self) -> list[int]:
        """The actors that have started the launchers."""
        return [found for number in self.launchers() if (found := parent(number)) > 1]

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        names = self.folder.glob("runs/killed/scratch/zero-*/checkpoints/checkpoint-*/complete")
        return max((int(path.parent.name.partition("-")[2]) for path in names), default=0)

    def step(self) -> int:
        """The last step that was logged."""
        for path in self.folder.glob("runs/killed/scratch/zero-*/events.jsonl"):
            return max((json.loads(line)["step"] for line in path.read_text().splitlines() if line), default=0)
        return 0

    def weights(self) -> dict[str, Any]:
        """What the stage has published."""
        from safetensors.torch import load_file

        (file,) = self.folder.glob("runs/killed/stages/zero/*/model/model.safetensors")
        return load_file(file)


def parent(process: int) -> int:
    """The process that started one."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it has ended


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)


def kill(trial: Trial, kind: str, run: subprocess.Popen[bytes], rng: random.Random) -> subprocess.Popen[bytes]:
    """Kill something of a run, and start the runner again if it was that; returns the runner."""
    if kind == "runner":
        run.kill()
        run.wait()
        return trial.start()
    if kind == "raylet":
        cluster = trial.cluster
        (lost,) = cluster.worker_nodes
        lost.kill_raylet(check_alive=False)
        cluster.worker_nodes.remove(lost)
        cluster.add_node(**HOST)
        return run
    those = {"rank": trial.ranks, "launcher": trial.launchers, "agent": trial.agents}[kind]()
    if those:
        os.kill(rng.choice(those), signal.SIGKILL)
    return run


def trials(cluster: Any, folder: Path, kills: int, seed: int) -> Iterator[dict[str, Any]]:
    """The untouched run, and then one for each kill: what happened, and how it ended."""
    rng = random.Random(seed)
    whole = Trial(cluster, folder / "whole")
    whole.folder.mkdir()
    for name, text in (("corpus.py", CORPUS), ("sums.py", SUMS), ("recipe.yaml", yaml.safe_dump(recipe()))):
        (whole.folder / name).write_text(text)
    began, run = time.monotonic(), whole.start()
    if run.wait() != 0:
        raise RuntimeError((whole.folder / "said.txt").read_text())
    expected = whole.weights()
    yield {"kind": "untouched", "seconds": round(time.monotonic() - began, 1)}
    for number in range(kills):
        kind = KINDS[number % len(KINDS)]
        trial = Trial(cluster, folder / f"trial-{number}")
        shutil.copytree(whole.folder, trial.folder, ignore=shutil.ignore_patterns("zero", "zero-*", "said.txt"))
        began, run = time.monotonic(), trial.start()
        until(lambda: run.poll() is not None or len(trial.launchers()) == 2, "both launchers")  # noqa: B023
        moment = rng.randrange(STEPS + 1)
        if moment == 0:
            time.sleep(rng.uniform(0.0, START_SECONDS))
        until(lambda: run.poll() is not None or trial.step() >= moment, "a step")  # noqa: B023
        step, saved, running = trial.step(), trial.saved(), run.poll() is None
        run = kill(trial, kind, run, rng)
        code = run.wait()
        found = trial.weights() if code == 0 else {}
        difference = (
            max(((found[name] - weight).abs().max().item() for name, weight in expected.items()), default=0.0)
            if found
            else None
        )
        entry = {"kind": kind, "step": step, "saved": saved, "running": running, "code": code}
        entry["difference"] = difference
        yield entry | {"left": len(trial.processes()), "seconds": round(time.monotonic() - began, 1)}
        if code == 0:
            shutil.rmtree(trial.folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the trials, and write down each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(argv)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    os.environ["RAY_TMPDIR"] = sockets = tempfile.mkdtemp(prefix="z", dir="/tmp")  # names of sockets are short
    from ray.cluster_utils import Cluster

    cluster, folder = Cluster(), Path(tempfile.mkdtemp(prefix="kills"))
    versions = {name: version(name) for name in ("ray", "torch", "transformers", "trl", "accelerate")}
    done: list[dict[str, Any]] = []
    try:
        for _ in range(2):
            cluster.add_node(**HOST)
        for entry in trials(cluster, folder, options.kills, options.seed):
            print(json.dumps(entry), flush=True)
            done.append(entry)
            if options.out is not None:
                report = {
                    "seed": options.seed,
                    "steps": STEPS,
                    "python": platform.python_version(),
                    "versions": versions,
                }
                options.out.write_text(json.dumps({**report, "trials": done}, indent=2) + "\n")
    finally:
        cluster.shutdown()
        shutil.rmtree(sockets, ignore_errors=True)
    if any(entry["difference"] != 0.0 or entry["left"] for entry in done[1:]):
        sys.exit(f"a run did not end as the untouched one: see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
