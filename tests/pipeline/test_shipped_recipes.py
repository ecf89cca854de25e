"""Shipped recipes load, and every config survives the trip to the stage's process: dumped, read, equal."""

from __future__ import annotations

import json

import pytest

from pipeline.recipe import RecipeError, load, shipped
from pipeline.stages.registry import config_class


@pytest.mark.parametrize("name", sorted(shipped()))
def test_configs_survive_the_trip_to_their_process(name: str) -> None:
    for stage, config in load(name).stages.items():
        sent = json.loads(json.dumps(config.model_dump(mode="json", by_alias=True)))
        assert config_class(config.kind).model_validate(sent) == config, stage


def test_only_training_stages_take_several_processes() -> None:
    stages = load("r1/r1").stages
    assert stages["zero"].launch.accelerate == "fsdp2-1node"
    assert stages["reasoning"].launch.accelerate is None
    with pytest.raises(
        RecipeError, match=r"stages\.score\.launch\.accelerate: the stage kind evaluate runs in one process"
    ):
        load("nano/r1", ["stages.score.launch.accelerate=ddp"])
