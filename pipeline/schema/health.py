"""When a training run counts as unwell: the field `health` of training stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.schema.strict import Strict

Times = Annotated[float, Field(gt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Health(Strict):
    """Thresholds of alarms. `{}` takes them as they are; metrics that a stage does not log raise none.

    Attributes:
        on_alarm: `warn` in the terminal, the events and the log, or `stop` the stage with the reason; checkpoints stay.
        patience: logged steps in a row for which a threshold is crossed before the alarm is raised.
        grad_norm: times the median of the steps before: the gradient's norm, before clipping.
        entropy_fall, entropy_rise: times below, or above, that of the first logged step: the policy's entropy.
        length: times that of the first logged step: the mean length of completions.
        truncated: share of completions that are cut off.
        kl: nats a token between policy and reference.
        mismatch: mean difference between the log-probabilities of engine and trainer, in nats.
        dead_groups: share of groups without variance in their rewards.
    """

    on_alarm: Literal["warn", "stop"] = "warn"
    patience: Annotated[int, Field(gt=0)] = 3
    grad_norm: Times = 10.0
    entropy_fall: Times = 10.0
    entropy_rise: Times = 3.0
    length: Times = 4.0
    truncated: Share = 0.5
    kl: Annotated[float, Field(gt=0)] = 1.0
    mismatch: Annotated[float, Field(gt=0)] = 0.1
    dead_groups: Share = 0.9
