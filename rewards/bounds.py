"""What values the options of rewards may have, as annotations of the constructors that take them.

    def __init__(self, timeout: Positive = 6.0, workers: AtLeastOne | None = None) -> None: ...

`rewards.registry.check` holds the options of a recipe against them before anything is built, those of a verifier of
one's own as well; any constraint that pydantic knows will do.

Pydantic itself is not imported here: sandboxes import this package where there is nothing but the standard library.
"""

from __future__ import annotations

from typing import Annotated, Any


class Within:
    """What values are let pass, by the names of pydantic's `Field`."""

    def __init__(self, **constraints: Any) -> None:
        self.constraints = constraints

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Pydantic's hook: the schema of the type, with the constraints."""
        return {**handler(source), **self.constraints}


Positive = Annotated[float, Within(gt=0, allow_inf_nan=False)]
"""Seconds, and whatever else is more than nothing."""
Finite = Annotated[float, Within(allow_inf_nan=False)]
"""A score: advantages of infinite ones are no numbers."""
NotNegativeNumber = Annotated[float, Within(ge=0, allow_inf_nan=False)]
"""A difference that is let pass."""
AtLeastOne = Annotated[int, Within(ge=1)]
NotNegative = Annotated[int, Within(ge=0)]
Text = Annotated[str, Within(min_length=1)]
"""Text that is not empty."""


class OfReward:
    """Marks an option that names a reward; that reward's own options are in the option called `NAME_options`."""


RewardName = Annotated[str, OfReward()]
