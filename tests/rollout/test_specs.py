"""What a recipe may say about engines: settings that would have no effect, and GPUs that do not fit, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.recipe import Recipe, RecipeError, load
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
        ({"server": "http://host:80000"}, "not 'http://host:80000'"),
        ({"server": "http://host:port"}, "not 'http://host:port'"),
        ({"server": "http://[::1"}, "is an address such as"),
        ({"server": "http://host:8000/?model=m"}, "is an address such as"),
        ({"server": "https://sk-1@host/vllm"}, "an address with a password in it .* set VLLM_API_KEY"),
        ({"server": "http://host:8000/v1/"}, "leave the path /v1 out"),
        ({"server": SERVER, "engine": "vllm"}, "server has no effect with the engine vllm"),
        ({"server": SERVER, "engine": "transformers"}, "server has no effect with the engine transformers"),
        ({"server": SERVER, "process": {"devices": [1]}}, r"process\.devices has no effect"),
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


SETTINGS: dict[str, Any] = {
    "batch_size": 3,
    "gpu_memory": 0.9,
    "engine_options": {"enforce_eager": True},
    "speculative": {"tokens": 2},
    "scheduler_fast_path": False,
}
"""Settings of engines; whatever else stands in `rollout` is for each of them."""
READ_BY = {
    "transformers": {"batch_size", "speculative"},
    "vllm": {"gpu_memory", "engine_options", "speculative", "scheduler_fast_path"},
    "vllm_server": {"gpu_memory", "engine_options", "speculative"},
    SERVER: set[str](),
}
EVERY_ENGINE = {
    "engine",
    "server",
    "process",
    "max_tokens",
    "stop",
    "too_long",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
}
KINDS: dict[str, dict[str, Any]] = {
    "evaluate": {},
    "rejection_sample": {},
    "pass_rate": {},
    "grpo": {"rewards": ["accuracy"]},
}


def recipe(kind: str, rollout: dict[str, Any]) -> dict[str, Any]:
    """A recipe of a stage that samples."""
    return {
        "name": "x",
        "stages": {"it": {"kind": kind, "model": "owner/m", "tasks": ["countdown"], "rollout": rollout}},
    }


def loaded(folder: Path, data: dict[str, Any], *overrides: str) -> Recipe:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return load(folder / "recipe.yaml", overrides)


def chosen(engine: str) -> dict[str, Any]:
    return {"server": engine} if engine == SERVER else {"engine": engine}


def test_every_setting_of_an_engine_is_here() -> None:
    assert RolloutSpec.model_fields.keys() == SETTINGS.keys() | EVERY_ENGINE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", READ_BY)
def test_a_setting_that_the_engine_does_not_read_is_refused(engine: str, kind: str, tmp_path: Path) -> None:
    words = "a server that runs already" if engine == SERVER else f"the engine {engine}"
    for name, value in SETTINGS.items():
        data = recipe(kind, {**chosen(engine), name: value})
        if kind == "grpo" and name == "batch_size" and engine in ("transformers", "vllm"):
            continue  # without an engine of its own, the trainer's batch is what counts: refused in other words
        if name in READ_BY[engine]:
            assert loaded(tmp_path, data).notices == ()
        else:
            with pytest.raises(
                RecipeError, match=rf"stages\.it\.rollout\.{name}: has no effect with {words}"
            ) as refused:
                loaded(tmp_path, data)
            assert len(refused.value.issues) == 1


def test_the_command_line_may_choose_another_engine(tmp_path: Path) -> None:
    """What the recipe says for its own engine is told then, in a line; what the command line says itself is refused."""
    data = recipe("evaluate", {"engine": "vllm", "gpu_memory": 0.9, "engine_options": {"tensor_parallel_size": 2}})
    other = "stages.it.rollout.engine=transformers"
    notices = [str(notice) for notice in loaded(tmp_path, data, other).notices]
    file = tmp_path / "recipe.yaml"
    assert notices == [
        f"{file}:10: stages.it.rollout.gpu_memory: has no effect with the engine transformers",
        f"{file}:11: stages.it.rollout.engine_options: has no effect with the engine transformers",
    ]
    assert loaded(tmp_path, data, other, "stages.it.rollout.max_tokens=7").stages["it"].rollout.gpus_together == 1  # type: ignore[attr-defined]
    for typed in ([other, "stages.it.rollout.gpu_memory=0.5"], ["stages.it.rollout.batch_size=3"]):
        with pytest.raises(RecipeError, match=f"override '{typed[-1]}': .* has no effect with the engine"):
            loaded(tmp_path, data, *typed)
    with pytest.raises(RecipeError, match="gpu_memory: has no effect"):
        loaded(tmp_path, data, "stages.it.rollout={engine: transformers, gpu_memory: 0.5}")


def test_cuts_without_effect_at_temperature_0_are_refused_or_told(tmp_path: Path) -> None:
    data = recipe("evaluate", {"top_p": 0.9, "top_k": 5})
    greedy = ["stages.it.rollout.temperature=0", "stages.it.samples=1"]
    told = loaded(tmp_path, data, *greedy).notices
    assert [notice.loc for notice in told] == ["stages.it.rollout.top_k", "stages.it.rollout.top_p"]
    data["stages"]["it"] |= {"rollout": {"temperature": 0, "top_p": 0.9}, "samples": 1}
    with pytest.raises(RecipeError, match=r"rollout\.top_p: has no effect with temperature 0"):
        loaded(tmp_path, data)
    assert loaded(tmp_path, data, "stages.it.rollout.top_p=1.0").notices == ()


@pytest.mark.parametrize("place", ["stages.it", "defaults.evaluate"])
def test_settings_and_engines_of_all_stages_of_a_kind(place: str, tmp_path: Path) -> None:
    data = recipe("evaluate", {})
    data["defaults"] = {"evaluate": {"rollout": {"batch_size": 3}}}
    (notice,) = loaded(tmp_path, data, f"{place}.rollout.engine=vllm").notices
    assert "batch_size" in notice.message or notice.loc.endswith("rollout.batch_size")
    data["defaults"]["evaluate"]["rollout"]["engine"] = "vllm"
    with pytest.raises(RecipeError, match="batch_size: has no effect"):
        loaded(tmp_path, data)


def test_a_server_by_address_on_the_command_line(tmp_path: Path) -> None:
    data = recipe("evaluate", {"engine": "auto", "gpu_memory": 0.9, "speculative": {"tokens": 2}})
    told = loaded(tmp_path, data, f"stages.it.rollout.server={SERVER}").notices
    assert [notice.loc.rpartition(".")[2] for notice in told] == ["gpu_memory", "speculative"]


def test_fields_of_the_trainer_and_of_looks_are_told_alike(tmp_path: Path) -> None:
    data = recipe("grpo", {"engine": "vllm"})
    data["stages"]["it"] |= {"trainer": {"vllm_model_impl": "transformers"}}
    (notice,) = loaded(tmp_path, data, "stages.it.rollout.engine=transformers").notices
    assert "completions come from transformers" in str(notice)
    data = recipe("grpo", {"engine": "transformers"})
    data["stages"]["it"]["watch"] = {"tasks": ["countdown/test"], "every": 5, "batch_size": 8}
    (notice,) = loaded(tmp_path, data, "stages.it.rollout.engine=vllm").notices
    assert notice.loc == "stages.it.watch.batch_size"
    with pytest.raises(RecipeError, match=r"watch\.batch_size: has no effect"):
        data["stages"]["it"]["rollout"]["engine"] = "vllm"
        loaded(tmp_path, data)


def test_a_stage_may_read_a_setting_itself(tmp_path: Path) -> None:
    data = recipe("tree_search", {"engine": "vllm", "batch_size": 3})
    data["stages"]["it"] |= {"value": "owner/v", "budgets": [64]}
    assert loaded(tmp_path, data).notices == ()  # the value model has that batch size


def test_commands_tell_it_before_they_do_anything(tmp_path: Path) -> None:
    loaded(tmp_path, recipe("evaluate", {"engine": "vllm", "gpu_memory": 0.9}))
    words = ["plan", str(tmp_path / "recipe.yaml"), "--json", "stages.it.rollout.engine=transformers"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert done.stderr.splitlines()[0].endswith("rollout.gpu_memory: has no effect with the engine transformers")
