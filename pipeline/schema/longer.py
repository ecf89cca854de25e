"""Whether a longer training goes on from where a shorter one has come: where it would have come there, too.

zero: {kind: grpo, trainer: {max_steps: 200}}     # and then max_steps: 400
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.schema.mtp import MtpSpec
from pipeline.schema.pieces import RolloutSpec, TrainingConfig

LENGTH = ("max_steps", "num_train_epochs")
"""Trainer fields that say how long a stage trains."""
EXACT_SCHEDULES = ("constant", "constant_with_warmup")
"""Schedules of the learning rate that do not follow the number of steps."""
SCHEDULE = "lr_scheduler_type"
KEPT_BYTES = 16 * 2**30
"""The largest trainer's state that is kept unasked: that of a model of 1.4B weights trained in full."""


def why_inexact(config: TrainingConfig) -> str | None:
    """Why a stage's steps depend on how many there are in all; `None` if they do not."""
    trainer = {**config.trainer_defaults, **config.trainer}
    schedule = str(trainer.get(SCHEDULE, "linear"))
    if schedule not in EXACT_SCHEDULES:
        return f"the schedule {schedule} follows the number of steps ({' and '.join(EXACT_SCHEDULES)} do not)"
    warmup = trainer.get("warmup_steps", 0) or 0
    if schedule != EXACT_SCHEDULES[0] and (trainer.get("warmup_ratio") or 0 < warmup < 1):
        return "the warm-up is a share of all steps (give warmup_steps as a number of steps)"
    mtp = config.blocks
    if isinstance(mtp, MtpSpec) and mtp.weight != mtp.final_weight and 0 < mtp.switch_at < 1:
        return "the weight of the prediction blocks changes after a share of all steps (mtp.switch_at)"
    return None


def why_anew(config: TrainingConfig, before: Mapping[str, Any], step: int) -> str | None:
    """Why a stage cannot go on from the checkpoint of a stage that differs in its length alone; `None` if it can.

    Args:
        config: the stage's.
        before: the trainer fields of the other stage.
        step: of its checkpoint.
    """
    if (why := why_inexact(config)) is not None:
        return why
    now, then = ({**config.trainer_defaults, **fields} for fields in (config.trainer, before))
    most, most_then = (fields.get("max_steps") or -1 for fields in (now, then))
    if (most > 0) != (most_then > 0):
        return "one has max_steps and the other has not, so which is longer is not known before"
    name = LENGTH[0] if most > 0 else LENGTH[1]
    if (now.get(name) or 0) < (then.get(name) or 0) and (most < 0 or step > most):
        return f"{name} is smaller, and there is no checkpoint of before" if most > 0 else f"{name} is smaller"
    rollout = getattr(config, "rollout", None)
    ahead = getattr(rollout, "max_staleness", 0) if isinstance(rollout, RolloutSpec) else 0
    batch = (now.get("steps_per_generation") or 1) * (now.get("num_iterations") or 1)
    if ahead and not (most_then > 0 and step + (ahead + 1) * batch <= most_then):
        return f"rollouts are sampled {ahead} ahead, and none was for steps beyond the last one of before"
    return None
