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
        patience: how many logged steps in a row cross a threshold before there is an alarm, so that a single step
            raises none.
        grad_norm: an alarm if the gradient's norm, before clipping, is above this many times its median in the steps
            before. Spikes are usually below ten times.
        entropy_fall: an alarm if the policy's entropy is below that of the first logged step by this factor: it no
            longer explores.
        entropy_rise: an alarm if the policy's entropy is above that of the first logged step by this factor: it writes
            noise.
        length: an alarm if completions are, on average, this many times as long as in the first logged step.
        truncated: an alarm if a larger share of the completions is cut off: their answers are not read.
        kl: an alarm if the KL divergence of the policy from the reference is above this, in nats a token.
        mismatch: an alarm if the log-probabilities of engine and trainer differ by more than this, in nats, on average.
        dead_groups: an alarm if a larger share of the groups has equal rewards, so that nothing can be learnt from it.
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
