"""Shipped recipes load, and every config survives the trip to the stage's process: dumped, read, equal."""

from __future__ import annotations

import json

import pytest

from pipeline.recipe import load, shipped
from pipeline.stages.base import config_class


@pytest.mark.parametrize("name", sorted(shipped()))
def test_configs_survive_the_trip_to_their_process(name: str) -> None:
    for stage, config in load(name).stages.items():
        sent = json.loads(json.dumps(config.model_dump(mode="json", by_alias=True)))
        assert config_class(config.kind).model_validate(sent) == config, stage
