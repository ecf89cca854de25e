"""Watches the difference between what the engine and the policy think of sampled tokens."""

from __future__ import annotations

import logging
from statistics import median

log = logging.getLogger(__name__)

DRIFT_STEPS = 5
"""Steps that make the level at the start, and the level now."""
DRIFT_FACTOR = 3.0
"""How much larger than at the start the difference may get: a policy that sharpens moves it by less."""
DRIFT_FLOOR = 0.02
"""A difference below this, in nats, is rounding: bf16 against fp32 makes 0.01 to 0.04."""


class Drift:
    """Notices when the difference grows, which is how a faulty weight sync shows."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: list[float] = []
        self.told = False

    def add(self, difference: float) -> None:
        """Take the mean difference of a step, in nats; warn if it has grown too large."""
        if len(self.first) < DRIFT_STEPS:
            self.first.append(difference)
            return
        self.last.append(difference)
        if len(self.last) < DRIFT_STEPS:
            return
        start, now = median(self.first), median(self.last)  # a single outlier does not count
        self.last = []
        if now > max(DRIFT_FACTOR * start, DRIFT_FLOOR):
            log.warning(
                "log-probabilities of sampled tokens differ by %.3g between the engine and the trainer, by %.3g at the"
                " start: the engine may sample with stale or rounded weights (rollout.engine_options.dtype)",
                now,
                start,
            )

    def look(self, unknown: float) -> None:
        """Take the share of sampled tokens without a finite log-probability of the engine's; says once if there are."""
        if unknown and not self.told:
            self.told = True
            log.warning(
                "the engine gave no finite log-probability for %.2g %% of the sampled tokens, so that their importance"
                " weights are not known (sampling/unknown_logprobs): its logits may be NaN",
                100 * unknown,
            )
