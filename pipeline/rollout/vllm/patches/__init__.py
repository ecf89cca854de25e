"""What replaces parts of vLLM's scheduler, on private attributes of it, and for which versions.

    installed = patches.install(llm, wanted=True, logprobs=True)

Each module beside this one says what it replaces and why. vLLM offers no other way: a scheduler of one's own
(`scheduler_cls`) would have to copy the methods of which these leave out a part. An engine of a version that is not
listed runs vLLM's own code, and the log says so; `rollout.scheduler_fast_path: false` leaves every engine to it.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from packaging.version import Version

from pipeline.rollout.vllm.patches.logprobs import StepLogprobs
from pipeline.rollout.vllm.patches.scheduler import SchedulerFastPath

log = logging.getLogger(__name__)

TESTED = ("0.26.0", "0.31.0", "0.32.0")
"""Versions that tests/rollout/test_vllm_steps.py passes with: 0.26 on an H200, the others on a CPU."""


class Installed(NamedTuple):
    """What was put into an engine.

    Attributes:
        fast_path: deals with sequences that only get a token longer.
        logprobs: takes log-probabilities of sampled tokens, if they are wanted at all.
    """

    fast_path: SchedulerFastPath
    logprobs: StepLogprobs | None


def install(llm: Any, wanted: bool, logprobs: bool) -> Installed | None:
    """Patch the scheduler of an engine, if that is wanted and its vLLM is one of `TESTED`.

    Args:
        llm: a `vllm.LLM` whose engine core runs in this process.
        wanted: what `rollout.scheduler_fast_path` says.
        logprobs: whether log-probabilities will be asked for.

    Returns:
        What was installed; `None` if the engine is left to vLLM.
    """
    if not wanted:
        return None
    if (found := vllm_version()) not in TESTED:
        log.info("vLLM %s schedules every token itself: the fast path was tested with %s", found, ", ".join(TESTED))
        return None
    fast_path = SchedulerFastPath(llm)  # before the log-probabilities, which have to see every step first
    return Installed(fast_path, StepLogprobs(llm, fast_path) if logprobs else None)


def vllm_version() -> str:
    """The version of vLLM in this environment, without what a build adds to it (`+cu130`)."""
    import vllm

    return Version(vllm.__version__).public
