"""Where the time of a GRPO step goes, and how much memory it takes: what the other GRPO benchmarks look with."""

from __future__ import annotations

import resource
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

MEMORY_EVERY_S = 0.05
LOGGED = (
    ("age", "rollout/staleness"),
    ("effective", "sampling/effective_sample_size"),
    ("mismatch", "sampling/sampling_logp_difference/mean"),
)
"""Metrics that are kept, one number a step, where they are logged, and what they are called there."""
PROFILED = 30
"""Kernels, and operators, of a profile that are kept."""


class Clock:
    """Seconds spent in named parts of a trainer.

    Attributes:
        steps: one mapping an optimizer step: part -> seconds.
        now: the same for the step that is under way.
        ends: when each step ended.

    Args:
        seconds: the clock's own clock, such as that of the process's processor time.
    """

    def __init__(self, seconds: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self.steps: list[dict[str, float]] = []
        self.now: defaultdict[str, float] = defaultdict(float)
        self.ends: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens within to a part."""
        started = self.time()
        try:
            yield
        finally:
            self.now[name] += self.time() - started

    def wrap(self, owner: Any, method: str, name: str | Callable[..., str]) -> None:
        """Count a method of an object to a part; a function is asked for the part's name at each call."""
        inner = getattr(owner, method)

        def outer(*args: Any, **kwargs: Any) -> Any:
            with self.part(name if isinstance(name, str) else name(*args, **kwargs)):
                return inner(*args, **kwargs)

        setattr(owner, method, outer)

    def end_of_step(self) -> None:
        """Begin the next step."""
        self.steps.append(dict(self.now))
        self.now.clear()
        self.ends.append(self.time())

    def time(self) -> float:
        """Seconds, once the device has done what it was given."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._seconds()


class Memory(threading.Thread):
    """The peak of what is in use on the device, whoever uses it; the process's own peak without a GPU.

    Attributes:
        peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._ended = 0, threading.Event()

    def run(self) -> None:
        """Look at the device until told to stop."""
        import torch

        while torch.cuda.is_available() and not self._ended.wait(MEMORY_EVERY_S):
            free, total = torch.cuda.mem_get_info()
            self.peak = max(self.peak, total - free)

    def stop(self) -> float:
        """Stop looking. Returns the peak in GB."""
        self._ended.set()
        self.join()
        return (self.peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9


def watch(trainer: Any, clock: Clock) -> list[dict[str, float]]:
    """Let a clock follow a trainer. Returns the list that its logs will be in, one entry a step."""
    from transformers import PrinterCallback, TrainerCallback

    logs: list[dict[str, float]] = []

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = clock.time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.now["step"] = clock.time() - self.started
            clock.end_of_step()

        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                entries.append(logs)

    entries = logs

    def of_pass(model: Any, *args: Any, **kwargs: Any) -> str:
        import torch

        if torch.is_grad_enabled():
            return "forward"
        return "old_logprobs" if trainer.accelerator.unwrap_model(model) is trainer.model else "reference"

    clock.wrap(trainer, "training_step", "training_step")
    clock.wrap(trainer, "_calculate_rewards", "rewards")
    if hasattr(trainer, "sampler"):
        clock.wrap(trainer, "generation_batch", "rollout")
        clock.wrap(trainer.sampler, "batch", "generation")
        clock.wrap(trainer, "old_logprobs", "old_logprobs")
        clock.wrap(trainer, "reference_logprobs", "reference")
        clock.wrap(trainer, "_pass_loss", "forward")
        for method, name in (("_wake", "sync"), ("_push", "sync"), ("_finish", "waiting")):
            if hasattr(trainer.sampler, method):
                clock.wrap(trainer.sampler, method, name)
    else:
        clock.wrap(trainer, "_generate_and_score_completions", "rollout")
        clock.wrap(trainer, "_generate", "generation")
        clock.wrap(trainer, "_get_per_token_logps_and_entropies", of_pass)
        if getattr(trainer, "vllm_generation", None) is not None:
            clock.wrap(trainer.vllm_generation, "sync_weights", "sync")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Steps())
    return logs


def profile(trainer: Any, at: int) -> dict[str, Any]:
    """Profile a step of a trainer. Returns what the result will be in: seconds by kernel and by operator."""
    import torch
    from transformers import TrainerCallback

    found: dict[str, Any] = {}

    class Profile(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == at:
                self.profiler = torch.profiler.profile()
                self.profiler.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == at + 1:
                self.profiler.stop()
                found.update(largest(self.profiler.key_averages()))

    trainer.add_callback(Profile())
    return found


def largest(events: Sequence[Any]) -> dict[str, Any]:
    """What took longest, on the device and on the processor: [name, calls, seconds] each, and the sums of all."""
    times = {"device": "self_device_time_total", "processor": "self_cpu_time_total"}
    found: dict[str, Any] = {}
    for name, attribute in times.items():
        # A kernel and the operator that launched it both have the device's time: the kernels are counted.
        counted = [event for event in events if name == "processor" or "CPU" not in str(event.device_type)]
        rows = sorted(counted, key=lambda event: -getattr(event, attribute))
        found[f"{name}_s"] = round(sum(getattr(event, attribute) for event in rows) / 1e6, 3)
        found[f"by_{name}"] = [
            [event.key[:80], event.count, round(getattr(event, attribute) / 1e6, 4)] for event in rows[:PROFILED]
        ]
    return found


def split(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Where the time of a step goes, in seconds; what is left over is the backward pass, and then the optimizer.

    Where an engine has a process of its own, `waiting` for it is told apart from the rest of `generation`.
    """
    mean = {name: fmean(step.get(name, 0.0) for step in steps) for name in {n for step in steps for n in step}}
    part = {name: mean.get(name, 0.0) for name in ("sync", "rewards", "old_logprobs", "reference", "forward")}
    if "waiting" in mean:
        part["waiting"] = mean["waiting"]
    part["generation"] = mean["generation"] - part["sync"] - part.get("waiting", 0.0)
    part["backward"] = mean["training_step"] - mean["rollout"] - part["forward"]
    part["optimizer_and_rest"] = mean["step"] - mean["training_step"]
    return {name: round(seconds, 5) for name, seconds in part.items()}


def summarise(
    clock: Clock, logs: Sequence[Mapping[str, float]], rows: int, peak_gb: float, warm: int
) -> dict[str, Any]:
    """The numbers of one run, its first `warm` steps left out of the speeds; `rows` are rollouts a step.

    Metrics that a step could not tell are `None` in its log, and left out.
    """
    counted = clock.steps[warm:]
    seconds = sum(step["step"] for step in counted)
    names = {name for entry in logs for name in entry}
    known = {name: [entry[name] for entry in logs if entry.get(name) is not None] for name in names}
    lengths = [entry.get("completions/mean_length") or 0.0 for entry in logs]
    tokens = sum(length * rows for length in lengths[warm:])
    elapsed = [sum(step["step"] for step in clock.steps[: index + 1]) for index in range(len(clock.steps))]
    return {
        "seconds_a_step": round(seconds / len(counted), 5),
        "samples_per_s": round(rows * len(counted) / seconds, 2),
        "wall_a_step": round((clock.ends[-1] - clock.ends[warm - 1]) / len(counted), 3) if warm else None,
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_gb": round(peak_gb, 2),
        "split": split(counted),
        "accuracy": [round(value, 4) for value in known.get("reward", [])],
        "length": [round(value, 1) for value in known.get("completions/mean_length", [])],
        "elapsed": [round(value, 2) for value in elapsed],
        **{name: [round(value, 5) for value in known[metric]] for name, metric in LOGGED if known.get(metric)},
    }
