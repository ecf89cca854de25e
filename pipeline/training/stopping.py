"""What a recipe lets a completion stop at (`rollout.stop`), where TRL's trainers sample in their own ways.

They know end-of-sequence tokens alone: `generate` is called without anything that could look for a text, and what
stands behind a stop is padding that they would train on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
