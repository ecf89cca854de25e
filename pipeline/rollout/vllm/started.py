"""A vLLM server that is started here, in the process group of the engine that asks it, and ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.rollout.base import RolloutError

POLL_SECONDS = 0.5
HEALTH_SECONDS = 5.0
"""Longest wait for a server to say that it is well."""
END_SECONDS = 10.0
"""Longest wait for a server that was told to end, before it is killed."""
HERE = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks servers of this machine, of which a proxy that the environment names knows nothing."""
SWITCHES = frozenset({"disable_log_stats", "aggregate_engine_logging", "data_parallel_multi_port_external_lb"})
"""Options that are off, and that the command line can only switch on."""
EXTENSION = "pipeline.rollout.vllm.transfer.ReadsSharedMemory"
"""What the server's workers can do besides vLLM's own."""


class ServerLostError(RuntimeError):
    """The server's process has ended, or lost its engine."""


class Started:
    """`vllm serve` for one model, at a free port of this machine.

    Args:
        path: folder or hub id.
        seed: of the engine.
        gpu_memory: share of the GPU's memory.
        options: further fields of vLLM's `EngineArgs`.
        for_trainer: whether it takes weights, and gives log-probabilities at the temperature of sampling.

    Attributes:
        address: where it listens.

    Raises:
        RolloutError: it ended before it could answer: its log says why.
    """

    def __init__(self, path: str, seed: int, gpu_memory: float, options: Mapping[str, Any], for_trainer: bool) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        # `vllm serve` is this module, and vLLM's CPU build does not have the command.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path, "--seed", str(seed)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
        command += ["--gpu-memory-utilization", str(gpu_memory), *flags(options)]
        if for_trainer:
            command += ["--logprobs-mode", "processed_logprobs", "--worker-extension-cls", EXTENSION]
        env = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, env.get("PYTHONPATH")]))
        env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
        while self._process.poll() is None and not self._answers():
            time.sleep(POLL_SECONDS)
        if self._process.returncode is not None:  # whoever answers at its port
            raise RolloutError(f"vllm serve ended with exit code {self._process.returncode}; the log has its words")

    def check(self) -> None:
        """Make sure that it is there.

        Raises:
            ServerLostError: it has ended.
        """
        if self._process.poll() is not None:
            raise ServerLostError(f"vllm serve ended with exit code {self._process.returncode}")

    def check_health(self) -> None:
        """Make sure that it is there and has its engine, which is another process; one that is busy counts as well.

        Raises:
            ServerLostError: it has not.
        """
        self.check()
        try:
            self._ask_health()
        except OSError as error:
            if not isinstance(getattr(error, "reason", error), TimeoutError):
                raise ServerLostError("vllm serve has lost its engine; the log has its words") from error

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            self._ask_health()
            return True
        return False

    def _ask_health(self) -> None:
        with HERE.open(f"{self.address}/health", timeout=HEALTH_SECONDS):
            pass


def flags(options: Mapping[str, Any]) -> Iterator[str]:
    """Engine options as the server's command line has them; vLLM's default stands for what is `None`."""
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True:
            yield f"--{flag}"
        elif value is False and name not in SWITCHES:
            yield f"--no-{flag}"
        elif value is not None and value is not False:
            yield f"--{flag}"
            yield from (one if isinstance(one, str) else json.dumps(one) for one in _several(value))


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
