"""Processes that train together: on GPUs where there are enough of them, else on CPUs, which talk through gloo."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch

RANKS = 2
RANK_SECONDS = 280
"""A process that takes longer waits for ever; on an idle machine it is a matter of seconds."""
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
"""What `accelerate launch` tells its processes of configs/accelerate/fsdp2-1node.yaml."""


def on_gpus() -> bool:
    """Whether each rank has a GPU."""
    return torch.cuda.device_count() >= RANKS


def join(number: int, port: int, sharded: bool) -> None:
    """Let this process be one of the ranks, as `accelerate launch` would; before anything of accelerate's is made."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(RANKS), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "localhost", "OMP_NUM_THREADS": "1", **(FSDP2 if sharded else {})}
    torch.set_num_threads(1)
    if on_gpus():
        return
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if sharded:
        from accelerate.state import DistributedType, PartialState

        def as_gpu(state: Any) -> None:
            state.device, state.distributed_type = torch.device("cpu"), DistributedType.MULTI_GPU

        PartialState.set_device = as_gpu  # accelerate shards on GPUs alone, and trains by DDP on CPUs without a word


def started(target: Callable[..., None], *arguments: Any) -> None:
    """Run a function in every rank, and make sure that all of them end, and well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.replay"])
    processes = [context.Process(target=target, args=(number, *arguments)) for number in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(RANK_SECONDS)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung
    assert [process.exitcode for process in processes] == [0] * RANKS
