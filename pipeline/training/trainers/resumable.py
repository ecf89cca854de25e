"""What transformers' and TRL's trainers lack to resume exactly: a mixin that wraps their hooks.

Six things go wrong in a stock trainer that was killed and resumed; they are put right here and in `grpo` beside this:

* the order of the data in a later epoch depends on how many epochs this process has seen (`EpochSampler`);
* one step too many is taken after the last step's own checkpoint (`_run_epoch`);
* a checkpoint that was being written when the process died is taken for a whole one (`checkpoints.mark_complete`);
* fused expert weights are saved under their official names and then not found again, so that the experts of a resumed
  mixture-of-experts model silently start from the base model (`_load_from_checkpoint`);
* several processes on a processor (DDP) cannot load their optimizer at all (`_prepare_for_training`);
* GRPO's synced reference model and half-used generation batches are lost (see there).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Generator
from torch.utils.data import Sampler

from pipeline.rollout.adapted import base_of
from pipeline.rollout.merging import as_given
from pipeline.training import checkpoints
from pipeline.training.health.finite import Watched
from pipeline.training.metrics import Measured
from pipeline.training.parallel.expert_parallel import division
from pipeline.training.parallel.sharding import (
    Weights,
    exact_outputs,
    head_in_root,
    hold_frozen_units,
    keep_gates_exact,
    refuse_sharded_head,
)


class EpochSampler(Sampler[int]):
    """What another sampler yields, from random numbers that depend on seed and epoch alone.

    Args:
        inner: a sampler that draws from its attribute `generator`.
        seed: the run's seed.
        epoch: gives the number of the epoch that begins.
    """

    def __init__(self, inner: Any, seed: int, epoch: Callable[[], int]) -> None:
        self.inner, self.seed, self.epoch = inner, seed, epoch

    def __iter__(self) -> Iterator[int]:
        mixed = random.Random(f"{self.seed} {self.epoch()}").getrandbits(63)
        self.inner.generator = Generator().manual_seed(mixed)
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


class Resumable(Measured, Watched):
    """Mixin, to be named before the trainer class: `class SftTrainer(Resumable, SFTTrainer)`."""

    args: Any
    model: Any
    state: Any
    control: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any
    processing_class: Any
    is_fsdp_enabled: bool
    rollbacks: int = 0
    """How often the stage has gone back; see `health`."""
    saving_seconds: float = 0.0
    """Spent on checkpoints so far."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)  # type: ignore[misc]
        if sampler is None:
            return None
        return EpochSampler(sampler, self.args.seed, lambda: int(self.state.epoch or 0))

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.device.type == "cpu":  # accelerate numbers it among several processes; torch.load knows no cpu:0
            vars(self.args)["_setup_devices"] = torch.device("cpu")
        self.weights = Weights(self.model)
        keep_gates_exact(self.model, self.accelerator)
        with head_in_root(self.model, self.accelerator):
            prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[misc]
        if self.accelerator.is_fsdp2:
            policy = self.accelerator.unwrap_model(self.model)
            hold_frozen_units(policy)
            refuse_sharded_head(base_of(policy))
            exact_outputs(policy)
        return prepared

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Called in `_prepare_for_training` when the model is sharded, and before a checkpoint is loaded."""
        self.weights.hand_out(self.accelerator.device)
        return super().create_scheduler(*args, **kwargs)  # type: ignore[misc]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        last = self.state.global_step >= self.state.max_steps  # killed between that step and the published model
        if last or self.control.should_training_stop:  # as a look at held-out scores has it
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        started = time.perf_counter()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.accelerator.wait_for_everyone()  # every rank writes the state of its random numbers
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{self.state.global_step}"
            self._say_what_model(folder)
            checkpoints.mark_complete(folder)
            checkpoints.rotate(Path(self.args.output_dir))
        self.saving_seconds += time.perf_counter() - started

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """With the learning rate of now: that of a checkpoint may be older than a rollback."""
        lowered = checkpoint is not None and self.rollbacks > 0
        rates = [group["initial_lr"] for group in self.optimizer.param_groups] if lowered else []
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if lowered:
            _follow_rate(self.optimizer, self.lr_scheduler, rates)

    def _say_what_model(self, checkpoint: Path) -> None:
        """Put config and tokenizer beside weights that each rank has written its part of, and nobody else named."""
        if any((checkpoint / name).exists() for name in ("config.json", "adapter_config.json")):
            return
        policy = self.accelerator.unwrap_model(self.model)
        config = copy.deepcopy(policy.config)
        config.architectures = [type(policy).__name__.removeprefix("FSDP")]
        config.save_pretrained(checkpoint)
        self.processing_class.save_pretrained(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        sharded = self.is_fsdp_enabled or (Path(resume_from_checkpoint) / "adapter_config.json").exists()
        if sharded or model is not None:
            with as_given():
                super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype, **division())
        self.model.load_state_dict(saved.state_dict())


def _follow_rate(optimizer: Any, scheduler: Any, rates: list[float]) -> None:
    """Give the groups of an optimizer that was loaded other rates than it was saved with; `rates` are the first ones.

    Nothing changes where they are the same.
    """
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if group["initial_lr"] != rate:
            group["lr"] *= rate / group["initial_lr"]
            group["initial_lr"] = rate
    inner = getattr(scheduler, "scheduler", scheduler)
    if list(inner.base_lrs) != rates:
        inner.base_lrs = list(rates)
        inner._last_lr = [group["lr"] for group in optimizer.param_groups]
