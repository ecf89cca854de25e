"""New weights for a vLLM server: through shared memory where it was started here, else by vLLM's NCCL transfer.

Memory that this process shares is read by the server's workers themselves, each of which keeps its part, and loaded
as in an engine of this process (`pipeline.rollout.weights`). A server that is named by its address gets them through a
group of its workers and this process, tensor by tensor, from whichever GPU this process sees first. vLLM's calls for it
changed in 0.28; both are known, and a server of another version than the one in this environment is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from pipeline.rollout.base import RolloutError
from pipeline.schema import extras

if TYPE_CHECKING:
    import torch

OLDEST = Version("0.26")
"""vLLM whose routes are known to be these."""
STATEFUL = Version("0.28")
"""From here on `packed` is said when the group is made, and the static functions of the engine are gone."""

Ask = Callable[..., Any]
"""`Api.ask`."""


class Transfer:
    """Sends weights to a server that samples nothing meanwhile.

    Args:
        ask: sends it a request.
        here: whether it was started here, and reads this process's memory.

    Raises:
        RolloutError: the server is of another version, or takes no weights.
    """

    def __init__(self, ask: Ask, here: bool) -> None:
        self._ask, self._here = ask, here
        self._group: Any = None
        if not here:
            self._packed_at_start = shared_version(ask) >= STATEFUL
            self._join()

    def send(self, weights: Any) -> None:
        """Replace all weights.

        Args:
            weights: a `pipeline.rollout.shared.Placed`.

        Raises:
            RolloutError: the server refuses them, or has weights that are not among them.
        """
        if self._here:
            told = json.dumps([weights.path, [astuple(place) for place in weights.places]])
            answered = self._ask("/collective_rpc", {"method": "read_weights", "args": [told]})
            if missing := answered["results"][0]:
                raise RolloutError(f"{len(missing)} weights of the engine were not synchronised, such as {missing[0]}")
            return
        info: dict[str, Any] = {
            "names": [place.name for place in weights.places],
            "dtype_names": [place.dtype for place in weights.places],
            "shapes": [list(place.shape) for place in weights.places],
        }
        if not self._packed_at_start:
            info["packed"] = True
        self._ask("/start_weight_update", {})
        self._beside(lambda: self._broadcast(on_gpu(weights)), "/update_weights", {"update_info": info})
        self._ask("/finish_weight_update", {})

    def _join(self) -> None:
        """Make a group of the server's workers and this process, which is its first member."""
        from vllm.utils.network_utils import get_ip, get_open_port

        workers = self._ask("/get_world_size")["world_size"]
        where = {
            "master_address": get_ip(),
            "master_port": get_open_port(),
            "rank_offset": 1,
            "world_size": workers + 1,
        }
        if self._packed_at_start:
            where["packed"] = True

        def join() -> None:
            if self._packed_at_start:
                from vllm.distributed.weight_transfer.nccl_common import trainer_init

                self._group = trainer_init(where)
            else:
                from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

                self._group = NCCLWeightTransferEngine.trainer_init(where)

        try:
            self._beside(join, "/init_weight_transfer_engine", {"init_info": where})
        except RolloutError as error:
            raise RolloutError(
                f'{error}. A trainer needs a server with --weight-transfer-config \'{{"backend": "nccl"}}\''
            ) from error

    def _broadcast(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        if self._packed_at_start:
            from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

            packed_nccl_broadcast_producer(weights, self._group, src=0, post_iter_func=lambda item: item[1])
            return
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerSendWeightsArgs, NCCLWeightTransferEngine

        how = NCCLTrainerSendWeightsArgs(group=self._group, packed=True)
        NCCLWeightTransferEngine.trainer_send_weights(iterator=weights, trainer_args=how)

    def _beside(self, act: Callable[[], None], path: str, body: Mapping[str, Any]) -> None:
        """Do this process's part of something while the server does its own. What it refuses is told at once: a thread
        that waits for it in NCCL cannot be interrupted, and ends with the process."""
        failed: list[Exception] = []

        def part() -> None:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - carried over to the thread that waits
                failed.append(error)

        thread = threading.Thread(target=part, daemon=True)
        thread.start()
        self._ask(path, body)
        thread.join()
        if failed:
            raise RuntimeError(f"{path}: {failed[0]}") from failed[0]


def shared_version(ask: Ask) -> Version:
    """The version of vLLM that a server has, and this environment has to send weights with.

    Raises:
        RolloutError: they differ, one of them is not known, or weights cannot be sent from here.
    """
    from torch.cuda import is_available

    if not is_available():
        raise RolloutError("weights are sent to a server by NCCL, from a GPU of the trainer's, and there is none here")
    try:
        theirs, ours = Version(ask("/version")["version"]), Version(installed("vllm"))
    except PackageNotFoundError as error:
        raise RolloutError(f"weights are sent to a server by vLLM's own code: {extras.install('vllm')}") from error
    except (InvalidVersion, KeyError, TypeError) as error:
        raise RolloutError(f"the server does not say which version of vLLM it is: {error}") from error
    if theirs.release[:2] != ours.release[:2] or theirs < OLDEST:
        raise RolloutError(
            f"the server is vLLM {theirs.public}, and this environment has {ours.public}: weights are sent in the form"
            f" of one version, {OLDEST} or newer"
        )
    return ours


def on_gpu(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights as NCCL sends them: one at a time, on the first GPU."""
    for name, weight in weights:
        yield name, weight.to("cuda", non_blocking=True)


class ReadsSharedMemory:
    """Added to the workers of a server that was started here."""

    def read_weights(self, told: str) -> list[str]:
        """Load weights that lie in another process's memory; returns the names of those that were not among them."""
        from pipeline.rollout.shared import Place, placed
        from pipeline.rollout.weights import reload

        path, places = json.loads(told)  # which anybody on this host could send
        return reload(
            self, placed(path, tuple(Place(name, dtype, tuple(shape), at) for name, dtype, shape, at in places))
        )
