"""Runs on a real Ray cluster of two hosts: stages on both of them, and hosts and processes that are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.context import StageContext
from pipeline.stages.registry import run_function
from tests.cluster.conftest import WITH_GPU
from tests.hub import made_whole
from tests.pipeline.test_runner import PLAY, alive, until
from tests.stages.driving import CORPUS, PRELOAD, SUMS, TINY, context_of

SECONDS = 280
"""Longest wait for a command, on a machine that is busy with other tests."""
SEED = 3
RECIPE: dict[str, Any] = {
    "name": "both",
    "seed": SEED,
    "jobs": 2,
    "stages": {
        "base": {
            "kind": "pretrain",
            "model": TINY,
            "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
            "corpus": {"use": "corpus.py:Sums", "documents": 100},
            "length": 32,
            "trainer": {"max_steps": 8, "learning_rate": 5e-3, "warmup_steps": 0, "bf16": False},
        },
        "zero": {
            "kind": "grpo",
            "model": "@base",
            "tasks": ["sums.py:Sums"],
            "rewards": ["sums.py:shape"],
            "rollout": {"max_tokens": 8},
            "launch": {"nodes": 2, "accelerate": "ddp"},
            "trainer": {
                "num_generations": 4,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
                "beta": 0.0,
                "learning_rate": 1e-3,
                "max_steps": 4,
                "save_steps": 2,
                "bf16": False,
            },
        },
        # 25 problems with 64 samples each are four chunks of the transformers engine, two for each host
        "pick": {
            "kind": "rejection_sample",
            "model": "@base",
            "tasks": ["sums.py:Sums"],
            "samples": 64,
            "require": [{"use": "sums.py:shape", "min": 0.5}],
            "rollout": {"max_tokens": 8},
            "launch": {"nodes": 2, "gpus": 0},
        },
    },
}

SLOW_AND_LATE = "import time; time.sleep(10); now = time.time; time.time = lambda: now() - 8"
"""Every process of a host takes longer to start than its clock is behind."""


class Runs:
    """Runs of a recipe on the cluster, in a folder of a test."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        made_whole(folder / "no" / "model")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, recipe: dict[str, Any], address: str | None = None) -> subprocess.Popen[str]:
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        process = subprocess.Popen(
            [
                *zero2r1("run", "recipe.yaml", "--json", "--cluster"),
                self.cluster.address if address is None else address,
            ],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def ended(self, process: subprocess.Popen[str], code: int) -> tuple[list[dict[str, Any]], str]:
        """The events of a run that ends with this code, and what it said besides; all that it prints is JSON."""
        output, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == code, output + errors
        return list(map(json.loads, output.splitlines())), errors

    def status(self, run: str, *options: str) -> str:
        command = zero2r1("status", f"runs/{run}", *options)
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout

    def hosts_of(self, stage: str) -> list[str]:
        """Ray's numbers of the hosts that a stage runs on."""
        (path,) = self.folder.glob(f"runs/*/scratch/{stage}-*/hosts.json")
        said = json.loads(path.read_text())
        assert not said["over"]
        return [host["node"] for host in said["hosts"]]

    def at_work(self, stage: str) -> tuple[int, int]:
        """The process of a stage of `PLAY` and a child of it, once it is at work; each attempt is told once."""
        sign = self.folder / f"{stage}.started"
        until(sign.exists, f"{stage} to start")
        process, child = map(int, sign.read_text().split())
        sign.unlink()
        return process, child

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture
def runs(two_hosts: Any, tmp_path: Path) -> Iterator[Runs]:
    """The cluster, with two hosts again if one was lost, and a folder."""
    found = Runs(two_hosts, tmp_path)
    yield found
    found.close()


def zero2r1(*words: str) -> list[str]:
    return [str(Path(sys.executable).parent / "zero2r1"), *words]


def play(name: str, **fields: Any) -> dict[str, Any]:
    """A stage that waits for a sign, and then fails."""
    task = {"use": "play.py:Play", "options": {"name": name}}
    return {"kind": "evaluate", "model": "no/model", "tasks": [task], **fields}


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(weight.dtype == torch.float32 for weight in one.values())
    assert max((weight - other[name]).abs().max().item() for name, weight in one.items()) <= 1e-6


def rank(number: int, port: int, context: StageContext) -> None:
    """One of two ranks of a stage on one host, as torchrun starts them."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    run_function(context.config.kind)(context)
    torch.distributed.destroy_process_group()


def on_one_host(folder: Path, port: int) -> dict[str, Path]:
    """What the stages of `RECIPE` leave where there is no cluster."""
    base = context_of(folder, "base", RECIPE["stages"]["base"], {}, SEED)
    run_function("pretrain")(base)
    zero = context_of(folder, "zero", RECIPE["stages"]["zero"], {"base": base.output}, SEED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ranks = [context.Process(target=rank, args=(number, port, zero)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(SECONDS)
    assert [process.exitcode for process in ranks] == [0, 0]
    pick = context_of(folder, "pick", RECIPE["stages"]["pick"], {"base": base.output}, SEED)
    run_function("rejection_sample")(pick)
    return {context.name: context.output for context in (base, zero, pick)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_end_as_one_does(runs: Runs, free_port: int) -> None:
    """After a stage on one host, GRPO whose ranks are on both and talk through gloo, and samples of both."""
    for name, text in (("corpus.py", CORPUS), ("sums.py", SUMS)):
        (runs.folder / name).write_text(text)
    process = runs.start(RECIPE)
    alone = on_one_host(runs.folder, free_port)
    runs.ended(process, 0)
    for name, expected in alone.items():
        (artifact,) = runs.folder.glob(f"runs/both/stages/{name}/*")
        if name == "pick":
            kept, samples = ((artifact / file).read_text() for file in ("data.jsonl", "samples.jsonl"))
            assert kept and kept == (expected / "data.jsonl").read_text()
            assert samples == (expected / "samples.jsonl").read_text()
        else:
            assert_equal(weights(artifact), weights(expected))
        hosts = {host["node"] for host in json.loads((artifact / "manifest.json").read_text())["hosts"]}
        assert len(hosts) == (1 if name == "base" else 2)
    rows = {row["stage"]: row for row in json.loads(runs.status("both", "--json"))}
    known = {host["name"] for host in json.loads((runs.folder / "runs/both/cluster.json").read_text())}
    assert set(rows["zero"]["hosts"]) == known == set(rows["pick"]["hosts"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stage_survives_the_loss_of_its_agent_its_runner_and_its_host(runs: Runs) -> None:
    """A stage on the only GPU, which comes back with another host, and one that nothing happens to."""
    (runs.folder / "play.py").write_text(PLAY)
    stages = {"one": play("one", launch={"gpus": 1, "restarts": 1}), "two": play("two", launch={"gpus": 0})}
    recipe = {"name": "play", "jobs": 2, "stages": stages}
    first = runs.start(recipe)
    lost, child = runs.at_work("one")
    other, _ = runs.at_work("two")
    environment = Path(f"/proc/{lost}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=0" in environment
    assert b"CUDA_VISIBLE_DEVICES=" in Path(f"/proc/{other}/environ").read_bytes().split(b"\0")

    os.kill(parent(lost), signal.SIGKILL)
    until(lambda: not (alive(lost) or alive(child)), "the processes of a killed agent to end")
    lost, child = runs.at_work("one")
    assert alive(other), "the other stage goes on"

    first.kill()
    until(lambda: not any(map(alive, (lost, child, other))), "the stages of a killed runner to end")
    second = runs.start(recipe)
    lost, child = runs.at_work("one")
    runs.at_work("two")
    (node,) = runs.hosts_of("one")
    (gpu_host,) = [host for host in runs.cluster.worker_nodes if host.node_id == node]
    told = runs.status("play").splitlines()
    (of_stage,) = [line for line in told if line.startswith("one ")]
    (of_host,) = [line for line in told if node[:6] in line and not line.startswith("one ")]
    assert f"({node[:6]}):0" in of_stage and of_host.split()[-1] == "one"
    name = " ".join(of_host.split()[:2])

    gpu_host.kill_raylet(check_alive=False)
    runs.cluster.worker_nodes.remove(gpu_host)
    until(lambda: not (alive(lost) or alive(child)), "the process on a lost host to end")
    assert second.stdout is not None
    before = []
    for line in second.stdout:
        before.append(json.loads(line))
        if "waits for 1 GPU on one host; the cluster has 0 GPUs" in before[-1].get("note", ""):
            break
    (why,) = [event["message"] for event in before if event["event"] == "restarted"]
    assert f"lost host {name}: " in why
    left = [line for line in runs.status("play").splitlines() if not line.startswith("one ")]
    assert not any(node[:6] in line for line in left), "a lost host is no host of the cluster"
    runs.cluster.add_node(**WITH_GPU)
    runs.at_work("one")
    for name in stages:
        (runs.folder / f"{name}.go").touch()
    events, _ = runs.ended(second, 1)
    ends = {event["stage"]: event["message"] for event in events if event["event"] == "failed"}
    assert ends.keys() == set(stages) and all("the cupboard is bare" in message for message in ends.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_that_joins_late_is_compared_first_and_no_stage_holds_one_ahead_of_its_turn(runs: Runs) -> None:
    """Two stages for the only GPU, and a third beyond `jobs`; a host without bubblewrap comes, and then one like us."""
    import ray
    from ray.util import placement_group_table

    (runs.folder / "play.py").write_text(PLAY)
    stages = {name: play(name, launch={"gpus": 1}) for name in ("one", "two", "three")}
    process = runs.start({"name": "play", "jobs": 2, "stages": stages})
    runs.at_work("one")
    before = set(runs.cluster.worker_nodes)
    (runs.folder / "sitecustomize.py").write_text(SLOW_AND_LATE)
    odd = runs.cluster.add_node(**WITH_GPU, env_vars={"PATH": str(runs.folder), "PYTHONPATH": str(runs.folder)})
    assert process.stderr is not None
    try:
        told = next(line for line in process.stderr if "has no part in this run" in line)
        assert f"({odd.node_id[:6]}): bubblewrap is missing, and on" in told and "its clock is 8 s behind" in told
        more = runs.cluster.add_node(**WITH_GPU)
        later = [runs.folder / f"{name}.started" for name in ("two", "three")]
        until(lambda: any(sign.exists() for sign in later), "a stage to start on the host that is like us")
        (placed,) = [sign.stem for sign in later if sign.exists()]
        assert runs.hosts_of(placed) == [more.node_id]
        assert odd.node_id[:6] not in runs.status("play")
        ray.init(address=runs.cluster.address, log_to_driver=False)
        until(lambda: _held(placement_group_table()) == 2, "the claim of the third stage to be given back")
    finally:
        ray.shutdown()
        for node in runs.cluster.worker_nodes - before:
            runs.cluster.remove_node(node)
    process.send_signal(signal.SIGINT)
    runs.ended(process, 130)


def _held(groups: Any) -> int:
    return sum(group["state"] != "REMOVED" for group in groups.values())


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing_behind(runs: Runs) -> None:
    (runs.folder / "play.py").write_text(PLAY)
    process = runs.start({"name": "play", "stages": {"one": play("one", launch={"gpus": 0})}})
    stage, child = runs.at_work("one")
    process.send_signal(signal.SIGINT)
    _, errors = runs.ended(process, 130)
    assert "the same command goes on from here" in errors
    assert not (alive(stage) or alive(child))
    (said,) = runs.folder.glob("runs/play/scratch/one-*/hosts.json")
    assert json.loads(said.read_text())["over"]


def test_a_stage_that_no_host_can_take_is_refused(runs: Runs) -> None:
    (runs.folder / "play.py").write_text(PLAY)
    process = runs.start({"name": "play", "stages": {"one": play("one", launch={"gpus": 3})}})
    _, errors = runs.ended(process, 1)
    assert "stages.one.launch: needs 3 GPUs on one host, and" in errors
    assert not list(runs.folder.glob("runs/play/scratch/*"))


def test_an_address_without_a_cluster_is_one_line(runs: Runs, free_port: int) -> None:
    (runs.folder / "play.py").write_text(PLAY)
    process = runs.start({"name": "play", "stages": {"one": play("one")}}, f"127.0.0.1:{free_port}")
    _, errors = runs.ended(process, 1)
    (line,) = errors.strip().splitlines()
    assert f"--cluster 127.0.0.1:{free_port}: nobody answers there" in line and "ray start --head" in line


@pytest.mark.slow
def test_a_port_where_something_else_listens_is_one_line(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for ever; the run waits for as long as a busy head may take."""
    (runs.folder / "play.py").write_text(PLAY)
    monkeypatch.setenv("RAY_gcs_rpc_server_connect_timeout_s", "1")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        process = runs.start({"name": "play", "stages": {"one": play("one")}}, address)
        _, errors = runs.ended(process, 1)
    assert f"--cluster {address}: no head of a Ray cluster answers at {address}" in errors.splitlines()[-1]


def test_a_head_with_another_python_is_named_with_both_versions(runs: Runs) -> None:
    import ray._private.ray_constants as constants
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray._raylet import GcsClient

    (runs.folder / "play.py").write_text(PLAY)
    head = GcsClient(address=runs.cluster.address)
    said = get_cluster_metadata(head)

    def tell(version: str) -> None:
        changed = json.dumps({**said, "python_version": version}).encode()
        head.internal_kv_put(b"CLUSTER_METADATA", changed, True, namespace=constants.KV_NAMESPACE_CLUSTER)

    tell("3.99.1")
    try:
        process = runs.start({"name": "play", "stages": {"one": play("one")}}, runs.cluster.address)
        _, errors = runs.ended(process, 1)
    finally:
        tell(said["python_version"])
    (line,) = errors.strip().splitlines()
    assert "Python: 3.99.1" in line and f"Python: {said['python_version']}" in line
    assert line.endswith("install the same versions on all hosts")


def test_an_empty_address_is_no_run_on_this_host(runs: Runs) -> None:
    """As a shell makes it of a variable that is not set."""
    (runs.folder / "play.py").write_text(PLAY)
    process = runs.start({"name": "play", "stages": {"one": play("one")}}, "")
    _, errors = runs.ended(process, 1)
    assert "'' is neither auto nor the HOST:PORT of a cluster's head" in errors
