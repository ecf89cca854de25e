"""Which numbers the fields of trainers take, where their type alone does not say it.

transformers and TRL check few of them: a batch of 0 rows ends in a division by zero, `max_steps: 0` trains for as long
as `num_train_epochs` says, and a negative learning rate learns the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LEAST: Mapping[str, float] = {
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "save_total_limit"), 1),
    **dict.fromkeys(("num_iterations", "steps_per_generation", "generation_batch_size"), 1),
    **dict.fromkeys(("learning_rate", "weight_decay", "warmup_steps", "warmup_ratio", "max_grad_norm", "beta"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "dataloader_num_workers"), 0),
}
_AT_MOST_ONE = ("adam_beta1", "adam_beta2", "warmup_ratio")
_UNBOUNDED = ("max_grad_norm",)
"""Fields that may be infinite."""
_ABOVE_ZERO = ("num_train_epochs", "save_steps", "logging_steps", "adam_epsilon")
STEPS = "max_steps"
NO_LIMIT = -1
"""Steps of a trainer that goes by its epochs."""


def fault(name: str, value: Any) -> str | None:
    """What is wrong with the number of a field; `None` where nothing is, and for what is no number.

    Args:
        name: the field's.
        value: what a recipe gives it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if math.isnan(value) or (math.isinf(value) and name not in _UNBOUNDED):
        return "has to be a finite number"
    if name == STEPS and value < 1 and value != NO_LIMIT:
        return "has to be 1 or more, or left out to go by num_train_epochs"
    if name in _LEAST and not value >= _LEAST[name]:
        return f"has to be {_LEAST[name]:g} or more"
    if name in _ABOVE_ZERO and not value > 0:
        return "has to be above 0"
    return "has to be 1 at most" if name in _AT_MOST_ONE and value > 1 else None
