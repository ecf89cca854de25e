"""How blocks of multi-token prediction are trained along with a stage's own loss.

See `pipeline.training.trainers.mtp`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.schema.strict import Strict


class MtpSpec(Strict):
    """How prediction blocks are trained. The schedule is DeepSeek-V3's (section 4.2): 0.3 for the first 10 of 14.8T
    tokens, 0.1 for the others.

    Attributes:
        weight: λ, the weight of the blocks' loss, in the first part of the steps.
        final_weight: λ in the rest of the steps.
        switch_at: share of the steps after which λ is the final one; DeepSeek-V3 changed it after 10 of 14.8T tokens.
        detach: whether the decoder, its embedding and its head learn nothing from this loss.
    """

    weight: Annotated[float, Field(ge=0)] = 0.3
    final_weight: Annotated[float, Field(ge=0)] = 0.1
    switch_at: Annotated[float, Field(ge=0, le=1)] = 0.68
    detach: bool = False

    def weight_at(self, step: int, steps: int) -> float:
        """λ for the step after `step` of `steps` steps."""
        return self.weight if step < self.switch_at * steps else self.final_weight


class DraftSpec(MtpSpec):
    """`MtpSpec` where something else is learnt than the next token: the blocks follow, and leave the rest alone."""

    detach: bool = True
