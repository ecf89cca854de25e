"""Where the time of training goes, and how much of the devices' arithmetic it uses.

    with trainer.clock.part("sampling"):
        ...                       # what a part inside of it takes is not counted twice

Each logged line has the seconds of a step by part (`seconds/sampling`, …), tokens and samples a second over all ranks,
and `mfu`: model FLOPs of forward and backward passes (`pipeline.cost.flops`: what is computed twice counts once) over
what the devices could do in the whole time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pipeline.cost import flops
from pipeline.cost.config import ShapeError, from_config
from pipeline.cost.hardware import HardwareError, named
from pipeline.cost.shape import Shape
from pipeline.training import adapters

if TYPE_CHECKING:
    from pipeline.training.grpo.batch import Batch

PARTS = ("rewards", "sampling", "scoring", "sync", "waiting", "watching")
"""Parts of a step beside `REST`: judging, completions, passes without gradient, weights to engines, idleness, held-out
scores."""
COUNTS = ("tokens", "samples", "flops")
REST = "training"
"""The part that everything belongs to which is in no other: passes with gradient, and the optimizer."""


class Clock:
    """Seconds by part, tokens, samples and FLOPs of this rank, since the last reading.

    Args:
        shape: of the model, if its FLOPs can be counted.

    Attributes:
        began: when that was.
        counts: what was counted, by the names of `COUNTS`.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = shape
        self.began = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self.counts: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a block; kernels that it has started count to it."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            took = time.perf_counter() - started
            self._seconds[name] += took - self._inner.pop()
            self._inner[-1] += took

    def trained(self, parts: Sequence[Batch], frozen: bool) -> None:
        """Count the model FLOPs of rows that a forward and a backward pass were made for.

        Args:
            parts: the rows; those of which no token counts are none.
            frozen: whether an adapter is trained in place of the weights.
        """
        if self.shape is not None:
            rows_2B = torch.cat([torch.stack([part.lengths, part.mask_BC.sum(1)]) for part in parts], dim=1)
            lengths, written = rows_2B.tolist()
            self.counts["flops"] += flops.training(self.shape, lengths, written, frozen=frozen).total

    def read(self, accelerator: Any, steps: int, peak: float | None) -> dict[str, float]:
        """Means over ranks, and begin anew. Collective; ranks may differ in the parts that they had.

        Args:
            accelerator: of the trainer.
            steps: optimizer steps since the last reading.
            peak: FLOPs a second that the device of a rank can do; no `mfu` without it.
        """
        elapsed = time.perf_counter() - self.began
        parts = {**dict.fromkeys(PARTS, 0.0), **self._seconds}
        parts[REST] = max(0.0, elapsed - sum(self._seconds.values()))
        row = [*(parts[name] for name in sorted(parts)), elapsed, *(self.counts[name] for name in COUNTS)]
        self.__init__(self.shape)  # type: ignore[misc]
        ranks = accelerator.gather(torch.tensor([row], dtype=torch.float64, device=accelerator.device))
        mean, total = ranks.mean(0).tolist(), ranks.sum(0).tolist()
        found = {f"seconds/{name}": value / max(1, steps) for name, value in zip(sorted(parts), mean, strict=False)}
        longest = float(ranks[:, len(parts)].max())
        counts = dict(zip(COUNTS, total[len(parts) + 1 :], strict=True))
        for name in ("tokens", "samples"):
            if counts[name]:
                found[f"{name}_per_second"] = counts[name] / longest
        if peak is not None and counts["flops"]:
            found["mfu"] = counts["flops"] / (longest * peak * len(ranks))
        return found


class Pace:
    """What a trainer's lines in the log say of its speed.

    Args:
        trainer: any of TRL's; one that counts its own parts and FLOPs has a `clock`,
            and the others get one.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        own: Clock | None = getattr(trainer, "clock", None)
        self.clock = trainer.clock = own or Clock(shape_of(trainer.accelerator.unwrap_model(trainer.model).config))
        self.counts_itself, self.peak = own is not None, peak_flops(trainer.args)
        self.step, self.tokens = 0, 0.0

    def begin(self, step: int) -> None:
        """Training begins, or goes on after this step."""
        self.step, self.clock.began = step, time.perf_counter()

    def read(self, step: int, logs: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of the steps since the last line. Collective."""
        trainer, steps = self.trainer, step - self.step
        tokens = max(0.0, float(logs.get("num_tokens", self.tokens)) - self.tokens)
        ranks = trainer.accelerator.num_processes
        self.step, self.tokens = step, self.tokens + tokens
        self.clock.counts["tokens"] += tokens / ranks  # of all ranks
        rows = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * ranks * steps
        if not self.counts_itself and self.clock.shape is not None and tokens and rows:
            of_token = flops.a_token(self.clock.shape, max(1, round(tokens / rows))).total
            self.clock.counts["flops"] += of_token * flops.passes(adapters.trained_by(trainer)) * tokens / ranks
        return self.clock.read(trainer.accelerator, steps, self.peak)


def peak_flops(args: Any) -> float | None:
    """What this rank's device can do in the type that a trainer computes in; `None` if that is not known."""
    if not torch.cuda.is_available() or not (args.bf16 or args.fp16):
        return None
    try:
        return named(torch.cuda.get_device_name()).bf16
    except HardwareError:
        return None


def shape_of(config: Any) -> Shape | None:
    """The shape of a model, by its config; `None` for one whose FLOPs nobody has counted here."""
    try:
        return from_config(config.to_dict())
    except ShapeError:
        return None
