"""What a recipe may say about engines: settings that would have no effect, and GPUs that do not fit, are refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.schema.pieces import RolloutSpec
from pipeline.stages.grpo import TrainingRollout

SERVER = "http://host:8000"
PARALLEL = {"pipeline_parallel_size": 2}


@pytest.mark.parametrize("kind", [RolloutSpec, TrainingRollout])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"server": ""}, "an address such as http://localhost:8000, not ''"),
        ({"server": "host:8000"}, "not 'host:8000'"),
        ({"server": "http://"}, "not 'http://'"),
        ({"server": "http://host:8000/v1/"}, "leave the path /v1 out"),
        ({"server": SERVER, "engine": "vllm"}, "server has no effect with the engine vllm"),
        ({"server": SERVER, "engine": "transformers"}, "server has no effect with the engine transformers"),
        ({"server": SERVER, "gpu_memory": 0.9}, "gpu_memory has no effect on a server that runs already"),
        ({"server": SERVER, "batch_size": 3}, "batch_size has no effect"),
        ({"server": SERVER, "engine_options": {"dtype": "float32"}}, "engine_options has no effect"),
        ({"server": SERVER, "speculative": {"tokens": 2}}, "speculative has no effect"),
        ({"server": SERVER, "scheduler_fast_path": False}, "scheduler_fast_path has no effect"),
        ({"server": SERVER, "process": {"devices": [1]}}, r"process\.devices has no effect"),
        ({"engine": "transformers", "engine_options": {"dtype": "float32"}}, "they are vLLM's"),
        ({"engine": "transformers", "process": {"devices": [[2, 3]]}}, "takes one GPU, not 2,3"),
        ({"process": {"devices": [[2, 2]]}}, "the GPUs 2,2 would have one of them twice"),
        ({"process": {"devices": ["2, 2"]}}, "the GPUs 2, 2 would have one of them twice"),
        (
            {"process": {"devices": [[2, 3]]}, "engine_options": {"tensor_parallel_size": 4}},
            r"tensor_parallel_size 4 is 4 GPUs, and process\.devices has '2,3'",
        ),
        ({"process": {"devices": [1]}, "engine_options": PARALLEL}, r"2 is 2 GPUs, and process\.devices has '1'"),
        (
            {"process": {"devices": [[1, 2, 3]]}, "engine_options": PARALLEL},
            r"2 GPUs, and process\.devices has '1,2,3'",
        ),
    ],
)
def test_what_has_no_effect_is_refused(kind: type[RolloutSpec], said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind.model_validate(said)


@pytest.mark.parametrize(
    ("device", "options", "tensor"),
    [
        ("2,3", {}, 2),
        ("2,3", PARALLEL, 1),
        ("0,1,2,3", PARALLEL, 2),
        ("2,3", {"data_parallel_size": 2}, 1),
        ("2", {}, None),
        ("2,3", {"tensor_parallel_size": 2}, 2),
    ],
)
def test_an_engine_is_parallel_over_all_of_its_gpus(device: str, options: dict[str, int], tensor: int | None) -> None:
    spec = RolloutSpec.model_validate({"process": {"devices": [device]}, "engine_options": options}).on(device)
    assert spec.engine_options.get("tensor_parallel_size") == tensor
    assert spec.gpus_together == len(device.split(","))
