"""What values the options of rewards may have, as annotations of the constructors that take them.

    def __init__(self, timeout: Positive = 6.0, workers: AtLeastOne | None = None) -> None: ...

`rewards.registry.check` holds the options of a recipe against them before anything is built, those of a verifier of
one's own as well; any constraint that pydantic knows will do.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Seconds, and whatever else is more than nothing."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A score: advantages of infinite ones are no numbers."""
NotNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A difference that is let pass."""
AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
"""Text that is not empty."""


class OfReward:
    """Marks an option that names a reward; that reward's own options are in the option called `NAME_options`."""


RewardName = Annotated[str, OfReward()]
