"""A stage that several processes share publishes the weights that one process does."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.elastic.utils.distributed import get_free_port

from pipeline.checks.launch import accelerate_config
from pipeline.context import StageContext
from pipeline.stages.registry import run_function
from pipeline.training.fit import TRAINED
from tests.stages.driving import CORPUS, TINY, context_of

ROWS = 8
TASKS = """
from pipeline.tasks.base import Problem, Task

class HeldOut(Task):
    grader = "exact"

    def problems(self, split, n=None, seed=0):
        return [Problem(f"{a}-{b}", f"{a} + {b} =", str(a + b)) for a in range(7) for b in range(3)]
"""


HELD_OUT = {"use": "tasks.py:HeldOut", "name": "sums"}


def prepared(folder: Path) -> Path:
    """A folder with the corpus and the held-out problems: 21, which two processes cannot share evenly."""
    (folder / "corpus.py").write_text(CORPUS)
    (folder / "tasks.py").write_text(TASKS)
    return folder


def looks(context: StageContext) -> dict[int, tuple[float, int]]:
    """Step -> mean length of the answers to held-out problems, and how many were judged."""
    events = map(json.loads, context.events.read_text().splitlines())
    name = "watch/sums/test"
    return {e["step"]: (e[f"{name}/tokens"], e[f"{name}/n"]) for e in events if f"{name}/n" in e}


def stage(processes: int) -> dict[str, Any]:
    """Six steps of eight rows, divided by the processes."""
    return {
        "kind": "pretrain",
        "model": {**TINY, "num_nextn_predict_layers": 1},
        "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
        "corpus": {"use": "corpus.py:Sums", "documents": 400},
        "length": 32,
        "decontaminate": [],
        "watch": {"tasks": [HELD_OUT], "every": 4, "max_tokens": 5, "temperature": 0.0, "batch_size": 8},
        "trainer": {
            "max_steps": 6,
            "save_steps": 3,
            "learning_rate": 5e-3,
            "warmup_steps": 0,
            "adam_epsilon": 1e-4,
            "per_device_train_batch_size": ROWS // processes,
            "bf16": False,
            "logging_steps": 1,
        },
    }


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight.float() - other[name].float()).abs().max() <= tolerance * weight.abs().max(), name


def join_ranks(number: int, processes: int, port: int) -> None:
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)


def rank(number: int, context: StageContext, processes: int, port: int) -> None:
    join_ranks(number, processes, port)
    run_function("pretrain")(context)
    torch.distributed.destroy_process_group()


def weights(context: StageContext) -> dict[str, torch.Tensor]:
    return load_file(context.output / "model" / "model.safetensors")


def again(context: StageContext, name: str) -> StageContext:
    """The same stage, interrupted after its checkpoint of step 3, with an output folder of its own."""
    scratch = context.scratch.with_name(f"{name}-scratch")
    shutil.copytree(context.scratch, scratch)
    shutil.rmtree(scratch / TRAINED)
    return dataclasses.replace(context, output=context.output.with_name(name), scratch=scratch)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """One process has run the stage."""
    folder = tmp_path_factory.mktemp("alone")
    context = context_of(prepared(folder), "one", stage(1), {})
    run_function("pretrain")(context)
    return context


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """Two processes of one host have run the stage.

    `accelerate launch` starts several processes on GPUs alone: here the ranks are started as torchrun would.
    """
    shared = context_of(prepared(tmp_path_factory.mktemp("together")), "two", stage(2), {})
    torch.multiprocessing.spawn(rank, (shared, 2, get_free_port()), nprocs=2)
    return shared


@pytest.mark.slow
def test_two_cpu_processes_publish_what_one_does(alone: StageContext, together: StageContext) -> None:
    assert_alike(weights(alone), weights(together), tolerance=1e-5)
    assert sorted(looks(together)) == [0, 4, 6]
    assert looks(together)[0] == looks(alone)[0], "each process answers its share"


class Hosts:
    """Two hosts: network namespaces with a cable between them, or two loopback addresses where that is not permitted.

    Attributes:
        addresses: of the first and of the second.
        words: what runs a command on each.
        interface: the network interface that leads from one to the other.
    """

    def __init__(self) -> None:
        self.names = [f"zero2r1-{uuid.uuid4().hex[:6]}-{number}" for number in range(2)]
        self.made = list[str]()
        permitted = shutil.which("ip") is not None and os.geteuid() == 0 and all(map(self._made, self.names))
        cable = f"link add eth0 netns {self.names[0]} type veth peer name eth0 netns {self.names[1]}"
        if permitted and _ip(cable):
            self.addresses, self.interface = ["10.77.0.1", "10.77.0.2"], "eth0"
            self.words = [["ip", "netns", "exec", name] for name in self.names]
            for name, address in zip(self.names, self.addresses, strict=True):
                told = (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up")
                assert all(_ip(f"-n {name} {words}") for words in told)
        else:
            self.addresses, self.interface, self.words = ["127.0.0.1", "127.0.0.2"], "lo", [[], []]

    def _made(self, name: str) -> bool:
        made = _ip(f"netns add {name}")
        self.made += [name] if made else []
        return made

    def start(self, number: int, *command: str, folder: Path) -> subprocess.Popen[bytes]:
        """Start a command on a host; what it says goes to `NUMBER.txt` in the folder."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "GLOO_SOCKET_IFNAME": self.interface}
        words = [*self.words[number], *command]
        with (folder / f"{number}.txt").open("w") as said:
            return subprocess.Popen(words, cwd=folder, env=env, stdout=said, stderr=subprocess.STDOUT)

    def close(self) -> None:
        for name in self.made:
            _ip(f"netns del {name}")


def _ip(words: str) -> bool:
    return subprocess.run(["ip", *words.split()], capture_output=True).returncode == 0


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.close()


@pytest.mark.slow
def test_two_hosts_without_ray_publish_what_one_does(
    tmp_path: Path, together: StageContext, free_port: int, hosts: Hosts
) -> None:
    """The second one by recipes/cluster/join.sh. As many ranks add up the same gradients in the same order."""
    prepared(tmp_path)
    config = yaml.safe_load(accelerate_config("ddp", Path()).read_text())  # type: ignore[union-attr]
    config |= {"num_machines": 2, "num_processes": 2, "rdzv_backend": "static", "same_network": True}
    config |= {"main_process_ip": hosts.addresses[0], "main_process_port": free_port}
    (tmp_path / "hosts.yaml").write_text(yaml.safe_dump(config))
    shared = {**stage(2), "seed": 7, "launch": {"accelerate": "hosts.yaml"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "stages": {"base": shared}}))
    script = Path(__file__).parents[2] / "recipes" / "cluster" / "join.sh"
    second = hosts.start(1, "sh", str(script), "runs/r", "base", "hosts.yaml", "1", folder=tmp_path)
    first = hosts.start(0, "zero2r1", "run", "recipe.yaml", folder=tmp_path)
    try:
        codes = [first.wait(), second.wait()]
        told, joined = ((tmp_path / f"{number}.txt").read_text() for number in range(2))
        assert codes == [0, 0], told + joined
        assert joined.count("takes part in runs/r/scratch/base-") == 1
        assert "is published" in joined
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    (artifact,) = (tmp_path / "runs" / "r" / "stages" / "base").iterdir()
    saved = load_file(artifact / "model" / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in saved.values())
    assert_alike(weights(together), saved, tolerance=1e-6)


def launched(name: str) -> tuple[dict[str, str], int]:
    """What `accelerate launch` tells the processes that it starts with a config of ours, and where they meet."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = launch_command_parser().parse_args(["--config_file", str(accelerate_config(name, Path())), "worker.py"])
    arguments = _validate_launch_command(given)[0]
    told = prepare_multi_gpu_env(arguments)
    kept = {key: value for key, value in told.items() if key.startswith(("ACCELERATE_", "PARALLELISM_CONFIG_"))}
    return kept, int(arguments.master_port)


@pytest.mark.parametrize("name", ["ddp", "ep-1node", "fsdp2-1node"])
def test_two_stages_that_start_at_once_meet_at_different_ports(name: str) -> None:
    """accelerate's own choice is 29500 for whoever asks before somebody listens there."""
    assert launched(name)[1] != launched(name)[1]


def run_and_resume(number: int, context: StageContext) -> None:
    """Run the stage, then resume it from the middle."""
    run_function("pretrain")(context)
    resumed = dataclasses.replace(
        context,
        output=context.output.with_name("resumed"),
        scratch=context.scratch.with_name("resumed-scratch"),
    )
    if number == 0:
        again(context, "resumed")
    torch.distributed.barrier()
    run_function("pretrain")(resumed)
    torch.distributed.destroy_process_group()


def rank_with_experts(number: int, context: StageContext, processes: int, port: int, told: Mapping[str, str]) -> None:
    from accelerate import Accelerator
    from accelerate.state import PartialState

    join_ranks(number, processes, port)
    os.environ.update(told)
    Accelerator.multi_device = property(lambda self: True)  # accelerate divides no model on CPUs ...
    # ... and calls the CPU of several ranks cpu:0, which torch.load does not know.
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    run_and_resume(number, context)


@pytest.mark.slow
def test_experts_divided_between_two_processes_learn_what_they_do_in_one(
    tmp_path: Path, alone: StageContext, free_port: int
) -> None:
    """Trained, saved and resumed; a checkpoint of both is one that a single process goes on from."""
    spread = context_of(prepared(tmp_path), "spread", stage(1), {})
    torch.multiprocessing.spawn(rank_with_experts, (spread, 2, free_port, launched("ep-1node")[0]), nprocs=2)
    assert_alike(weights(alone), weights(spread), tolerance=1e-5)
    assert looks(spread) == looks(alone)
    resumed = dataclasses.replace(spread, output=spread.output.with_name("resumed"))
    assert_alike(weights(spread), weights(resumed), tolerance=1e-6)
    gathered = again(spread, "gathered")
    run_function("pretrain")(gathered)
    assert_alike(weights(spread), weights(gathered), tolerance=1e-5)


def published(folder: Path, processes: int, launch: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder.mkdir()
    prepared(folder)
    recipe = {"name": "shared", "seed": 3, "stages": {"base": {**stage(processes), "launch": launch}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "recipe.yaml"), "--runs", str(folder / "runs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (saved,) = (folder / "runs").glob("**/base/*/model/model.safetensors")
    return load_file(saved)


@pytest.fixture(scope="module")
def one_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that one GPU publishes."""
    if torch.cuda.device_count() != 2:
        pytest.skip("the recipe divides its batch by two GPUs")
    return published(tmp_path_factory.mktemp("one-gpu") / "one", 1, {"env": {"CUDA_VISIBLE_DEVICES": "0"}})


@pytest.mark.gpu
@pytest.mark.parametrize(("launch", "batches"), [("ddp", 2), ("fsdp2-1node", 2), ("ep-1node", 1)])
def test_two_gpus_publish_what_one_does(
    tmp_path: Path, one_gpu: dict[str, torch.Tensor], launch: str, batches: int
) -> None:
    assert_alike(one_gpu, published(tmp_path / "two", batches, {"accelerate": launch}), 1e-2)


def sharded_environment() -> None:
    """Let accelerate shard by FSDP2 what two CPU ranks train; by itself it does so on GPUs alone."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    os.environ.update(launched("fsdp2-1node")[0], **fsdp_settings())
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    initialise = AcceleratorState.__init__

    def on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        initialise(self, *args, **kwargs)

    AcceleratorState.__init__ = on_cpu


def fsdp_settings() -> dict[str, str]:
    """What `accelerate launch` puts into the environment for FSDP."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    config = str(accelerate_config("fsdp2-1node", Path()))
    given = launch_command_parser().parse_args(["--config_file", config, "worker.py"])
    return {
        key: value
        for key, value in prepare_multi_gpu_env(_validate_launch_command(given)[0]).items()
        if key.startswith("FSDP_")
    }


def sharded_rank(number: int, context: StageContext, processes: int, port: int) -> None:
    join_ranks(number, processes, port)
    sharded_environment()
    run_and_resume(number, context)


@pytest.mark.slow
def test_two_sharded_cpu_processes_publish_what_one_does(tmp_path: Path, alone: StageContext, free_port: int) -> None:
    shared = context_of(prepared(tmp_path), "two", stage(2), {})
    torch.multiprocessing.spawn(sharded_rank, (shared, 2, free_port), nprocs=2)
    assert_alike(weights(alone), weights(shared), tolerance=1e-3)
    assert sorted(looks(shared)) == [0, 4, 6]
    assert looks(shared)[0] == looks(alone)[0], "each process answers its share"
    resumed = dataclasses.replace(shared, output=shared.output.with_name("resumed"))
    assert_alike(weights(shared), weights(resumed), tolerance=1e-6)
