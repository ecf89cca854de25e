"""When a training run counts as unwell: the field `health` of training stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.schema.strict import Strict

Times = Annotated[float, Field(gt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
DEAD_SHARE = 0.9
"""Share of groups without variance in their rewards from which on hardly anything is learnt."""
MISMATCH, EXACT_MISMATCH = 0.1, 0.0003
"""What `mismatch` is if not given: with 16 bits, or weights that are some steps old; and with float32 and new weights,
where an engine in float16 is 0.001 nats off, and another implementation of float32 less than 0.00001."""


class Health(Strict):
    """Thresholds of alarms. `{}` takes them as they are; metrics that a stage does not log raise none.

    Attributes:
        on_alarm: `warn` in the terminal, the events and the log; `stop` the stage with the reason; or `rollback` to the
            newest checkpoint before the symptom began, and go on from there with a lower learning rate. Checkpoints
            stay, and the batch that raised the alarm is kept for `zero2r1 why`.
        patience: how many logged steps in a row cross a threshold before there is an alarm, so that a single step
            raises none.
        rollbacks: how often a stage may go back; at the next alarm it stops.
        rollback_lr: what the learning rate is multiplied with each time that a stage goes back.
        grad_norm: an alarm if the gradient's norm, before clipping, is above this many times its median in the steps
            before. Spikes are usually below ten times.
        entropy_fall: an alarm if the policy's entropy is below that of the first logged step by this factor: it no
            longer explores. Where a stage learns from rows, entropy falls as it learns, and it is one only if the loss
            has risen meanwhile.
        entropy_rise: an alarm if the policy's entropy is above that of the first logged step by this factor: it writes
            noise.
        length: an alarm if completions are, on average, this many times as long as in the first logged step.
        truncated: an alarm if a larger share of the completions is cut off: their answers are not read.
        kl: an alarm if the KL divergence of the policy from the reference is above this, in nats a token.
        mismatch: an alarm if the log-probabilities of engine and trainer differ by more than this, in nats, on average.
            If not given, 0.1, which leaves room for 16 bits; 0.0003 where a trainer on a CPU computes in float32 and
            the engine samples with its newest weights, since there both are the same to rounding.
        effective_samples: an alarm if the effective sample size of the importance weights between engine and trainer is
            a smaller share of the tokens: few tokens decide about the gradient.
        dead_groups: an alarm if a larger share of the groups has equal rewards, so that nothing can be learnt from it.
        reward_gap: an alarm if the mean reward has risen by more than this since the first steps while the reward
            `accuracy` has not. Give that one weight 0 to only watch it.
        repetition: an alarm if a larger share of the passages of 20 tokens came before in the same completion.
        foreign_words: an alarm if a larger share of the words is in another script than the question.
    """

    on_alarm: Literal["warn", "stop", "rollback"] = "warn"
    patience: Annotated[int, Field(gt=0)] = 3
    rollbacks: Annotated[int, Field(gt=0)] = 3
    rollback_lr: Annotated[float, Field(gt=0, lt=1)] = 0.5
    grad_norm: Times = 10.0
    entropy_fall: Times = 10.0
    entropy_rise: Times = 3.0
    length: Times = 4.0
    truncated: Share = 0.5
    kl: Annotated[float, Field(gt=0)] = 1.0
    mismatch: Annotated[float, Field(gt=0)] | None = None
    effective_samples: Share = 0.3
    dead_groups: Share = DEAD_SHARE
    reward_gap: Annotated[float, Field(gt=0)] = 0.1
    repetition: Share = 0.5
    foreign_words: Share = 0.1
