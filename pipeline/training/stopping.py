"""What a recipe lets a completion stop at (`rollout.stop`), in TRL's trainers that sample.

They know end-of-sequence tokens alone: `generate` is called without anything that could look for a text, what stands
behind a stop is padding that they would train on, and a completion that ends with a text counts as cut off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import StoppingCriteriaList

from pipeline.rollout.stops import Stops
from pipeline.rollout.transformers import AtStops


def prepare(trainer: Any, stops: Stops) -> None:
    """Let a trainer, and the vLLM that it asks, know what ends a completion; call once it is made."""
    trainer.eos_token_ids = list(dict.fromkeys([*trainer.eos_token_ids, *stops.ids]))
    if stops and (engine := getattr(trainer, "vllm_generation", None)) is not None:
        asked = {"stop": list(stops.texts), "stop_token_ids": list(stops.ids)}
        engine.generation_kwargs = {**(engine.generation_kwargs or {}), **asked}


@contextmanager
def until(model: Any, stops: Stops) -> Iterator[None]:
    """Let a model's `generate` end sequences where they come to a stop, for as long as this lasts."""
    if not stops:
        yield
        return
    generate = model.generate

    def stopping(**given: Any) -> Any:
        return generate(**given, stopping_criteria=StoppingCriteriaList([AtStops(stops, given["input_ids"].size(1))]))

    model.generate = stopping
    try:
        yield
    finally:
        del model.generate  # the method of the class again


def ended(trainer: Any, completion: Sequence[int]) -> bool:
    """Whether a trainer's policy ended a completion by itself."""
    return bool(completion) and (completion[-1] in trainer.eos_token_ids or trainer.stops.ended(completion))


def log_lengths(trainer: Any, lengths_B: Tensor, ended_B: Tensor) -> None:
    """Log the lengths of completions and the share that was cut off, under TRL's names.

    Args:
        trainer: with its `stops`, and a `first_look` that warns where too many of the first are cut off.
        lengths_B: tokens of the completions of all processes.
        ended_B: which of them the policy ended by itself.
    """
    metrics, cut_off = trainer._metrics["train"], (~ended_B).float().mean().item()
    metrics["completions/clipped_ratio"].append(cut_off)
    trainer.first_look.look(cut_off, len(ended_B), trainer.max_completion_length)
    terminated = lengths_B[ended_B] if ended_B.any() else lengths_B.new_zeros(1)
    for name, tokens in (("", lengths_B.float()), ("terminated_", terminated.float())):
        for what in ("mean", "min", "max"):
            metrics[f"completions/{what}_{name}length"].append(getattr(tokens, what)().item())
