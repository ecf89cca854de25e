"""Values of environment variables stand in no file of a run, an export or a report; their names do."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.conversion import cards
from pipeline.recipe import RecipeError, load
from pipeline.report.page import write_report
from pipeline.runner import graph
from pipeline.schema import environment
from pipeline.schema.environment import HIDDEN
from pipeline.schema.launch import Launch, ProcessSpec

ZERO2R1 = str(Path(sys.executable).parent / "zero2r1")
PLANTED = {
    name: f"planted-{number}-of-{name.lower()}" for number, name in enumerate(("LAUNCH", "PROCESS", "ALL", "OVERRIDE"))
}
PLANTED["API_TOKEN"] = 'inherited "quoted" \\ value'
"""Name of a variable -> its value, which is looked for in every file."""
RECIPE = f"""\
name: planted
launch: {{env: {{ALL: {PLANTED["ALL"]}}}}}
defaults: {{evaluate: {{rollout: {{process: {{env: {{PROCESS: {PLANTED["PROCESS"]}}}}}, max_tokens: 4}}}}}}
stages:
  score:
    kind: evaluate
    model: model
    launch: {{env: {{LAUNCH: {PLANTED["LAUNCH"]}}}}}
    tasks: [{{use: "spy.py:Spy", problems: 1}}]
  release: {{kind: export, model: model, scores: ["@score"]}}
  broken: {{kind: evaluate, model: model, after: [release], tasks: [{{use: "spy.py:Spy", options: {{fail: true}}}}]}}
"""
SPY = '''\
import json
import os
import sys
from pathlib import Path

from pipeline.tasks.base import Problem, Task

NAMES = ("LAUNCH", "PROCESS", "ALL", "OVERRIDE", "API_TOKEN")


class Spy(Task):
    """Says aloud what it finds in its environment."""

    def __init__(self, fail=False):
        self.fail = fail

    def problems(self, split, n=None, seed=0):
        seen = {name: os.environ.get(name) for name in NAMES}
        print("seen", seen, json.dumps(seen), flush=True)
        Path(__file__).with_name("seen.json").write_text(json.dumps([seen, sorted(os.environ)]))
        if self.fail:
            raise RuntimeError(f"no luck with {seen}")
        return [Problem("1", "1 + 1 =", "2")]
'''


def planted_in(folder: Path) -> list[str]:
    """Every file below a folder that holds a planted value, in whatever form."""
    forms = [form for value in PLANTED.values() for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1])]
    return [
        f"{path.relative_to(folder)}: {form}"
        for path in folder.rglob("*")
        if path.is_file()
        for form in forms
        if form.encode() in path.read_bytes()
    ]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "API_TOKEN": PLANTED["API_TOKEN"]}
    return subprocess.run([ZERO2R1, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_value_stands_in_any_file_of_a_run_an_export_or_a_report(calculator: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(calculator)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "spy.py").write_text(SPY)
    override = f"stages.score.rollout.process.env.OVERRIDE={PLANTED['OVERRIDE']}"
    done = run(tmp_path, "run", "recipe.yaml", override)
    assert done.returncode == 1
    assert "stage 'broken' ended" in done.stderr
    assert "no luck with" in done.stderr
    seen, names = json.loads((tmp_path / "seen.json").read_text())
    assert seen == {"LAUNCH": None, "PROCESS": None, "OVERRIDE": None, **{n: PLANTED[n] for n in ("ALL", "API_TOKEN")}}
    assert environment.HANDED_ON not in names
    runs = tmp_path / "runs" / "planted"
    write_report(runs)
    assert planted_in(runs) == []
    assert not [value for value in PLANTED.values() if value in done.stdout + done.stderr]
    assert len(list(runs.glob("stages/release/*/model/README.md"))) == 1
    (manifest,) = runs.glob("stages/score/*/manifest.json")
    config = json.loads(manifest.read_text())["config"]
    assert config["launch"]["env"] == {"LAUNCH": HIDDEN}
    assert config["rollout"]["process"]["env"] == {"PROCESS": HIDDEN, "OVERRIDE": HIDDEN}
    for name in ("recipe.yaml", "report.html"):
        assert "PROCESS" in (runs / name).read_text()
    assert json.loads((runs / "run.json").read_text())["command"][-1] == override.partition("=")[0] + f"={HIDDEN}"
    (log,) = runs.glob("scratch/broken-*/log.txt")
    assert "no luck with {'LAUNCH': None, 'PROCESS': None, 'ALL': '$ALL'" in log.read_text()
    again = run(tmp_path, "plan", str(runs / "recipe.yaml"))
    assert again.returncode == 2
    assert "a run's records have no values of environment variables" in again.stderr


def test_a_card_has_no_values_of_runs_that_recorded_them() -> None:
    config = {"kind": "rejection_sample", "rollout": {"process": {"env": {"TOKEN": "planted-value"}}}}
    stage = {"stage": "samples", "kind": "rejection_sample", "fingerprint": "0" * 64, "inputs": {}, "config": config}
    card = cards.Card("name", "name", "", None, None, 1, "F32", [{**stage, "seconds": 1.0}], []).text()
    assert f"TOKEN: {HIDDEN}" in card
    assert "planted-value" not in card


def test_a_value_changes_no_fingerprint_and_shows_in_no_plan(tmp_path: Path) -> None:
    text = (
        RECIPE.replace("model: model", "model: some/model")
        .replace("spy.py:Spy", "arithmetic")
        .replace(", options: {fail: true}", "")
    )
    (tmp_path / "recipe.yaml").write_text(text)
    override = "stages.score.rollout.process.env.PROCESS=other-value"
    before, after = (graph.build(load(tmp_path / "recipe.yaml", more)) for more in ([], [override]))
    assert [node.fingerprint for node in before.values()] == [node.fingerprint for node in after.values()]
    named = graph.build(load(tmp_path / "recipe.yaml", [override.replace("PROCESS", "ANOTHER")]))
    assert named["score"].fingerprint != before["score"].fingerprint
    for node in after.values():
        written = f"{node!r} {json.dumps(node.identity)}"
        assert not any(value in written for value in (*PLANTED.values(), "other-value"))


@pytest.mark.parametrize(
    "override",
    [
        "stages.score.launch.env.TOKEN=[planted-value]",
        "stages.score.launch.env.TOKEN={a: planted-value}",
        "stages.score.launch.env=planted-value",
        "stages.score.launch={env: [planted-value]}",
        "launch={env: {TOKEN: 1.5, OTHER: [planted-value]}}",
        "stages.score.rollout.process.env.TOKEN=[planted-value",
        "stages.score.rollout.process.environment.env=planted-value",
    ],
)
def test_a_faulty_value_is_not_repeated(override: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("model: model", "model: some/model"))
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.yaml", [override])
    assert "planted-value" not in str(caught.value)
    assert "env" in str(caught.value)


SFT = "{{kind: sft, model: some/model, data: [rows.jsonl], trainer: {{{}}}}}"
GRPO = "{{kind: grpo, model: some/model, tasks: [arithmetic], {}}}"
SECRETS = {
    "the hub's": (SFT.format("hub_token: planted"), "hub_token"),
    "a model's": (SFT.format("model_init_kwargs: {token: planted}"), "token would be recorded"),
    "vLLM's": (GRPO.format("rollout: {engine: vllm, engine_options: {hf_token: planted}}"), "would be recorded"),
    "a reward's": (GRPO.format("rewards: [{use: math, options: {api_key: planted}}]"), "would be recorded"),
    "in an address": (
        GRPO.format("rollout: {engine: vllm_server, server: 'http://me:planted@host:8000'}"),
        "an address with a password",
    ),
}


@pytest.mark.parametrize("where", SECRETS)
def test_a_secret_elsewhere_in_a_recipe_is_refused(where: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    stage, message = SECRETS[where]
    (tmp_path / "recipe.yaml").write_text(f"name: r\nstages:\n  a: {stage}\n")
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path / "recipe.yaml")
    assert "planted" not in str(caught.value)


def test_records_have_names_and_processes_have_values() -> None:
    whole = {
        "config": {"launch": {"env": {"A": "one"}}, "rollout": [{"process": {"env": {"B": "two"}}}]},
        "tasks": {"t": {"options": {"env": {"C": "not an environment"}}}},
    }
    named = environment.names_only(whole)
    assert named["config"] == {"launch": {"env": {"A": HIDDEN}}, "rollout": [{"process": {"env": {"B": HIDDEN}}}]}
    assert named["tasks"] == whole["tasks"]
    process = environment.handed_on(whole)
    assert environment.restored(named, process) == whole
    assert process == {}
    assert environment.handed_on({"launch": {"env": {}}}) == {}


def test_a_value_shows_in_no_repr_and_is_text_otherwise() -> None:
    launch, process = Launch(env={"A": "planted"}), ProcessSpec(env={"A": "planted"})
    assert launch.env == process.env == {"A": "planted"}
    assert "planted" not in f"{launch!r} {process} {launch.env} {[*process.env.values()]}"
    assert {**os.environ, **launch.env}["A"] == "planted"


def test_names_take_the_place_of_values_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text('zero 0 secret-value secret-value-2 "C:\\\\dir\\\\x" inherited-token')
    inherited = {"MY_TOKEN": "inherited-token", "HOME": "zero", "GIT_AUTHOR": "secret"}
    environment.scrub(log, environment.secrets(_Stage(), inherited))
    assert log.read_text() == 'zero 0 $ONE $TWO "$PLACE" $MY_TOKEN'


class _Stage(ProcessSpec):
    """A config with values in it."""

    launch: Launch = Launch(env={"ZERO": "0", "ONE": "secret-value", "TWO": "secret-value-2", "PLACE": "C:\\dir\\x"})


def test_configs_are_written_down_in_one_way(repository: Path) -> None:
    """Whatever else dumps a config as JSON would write values down."""
    for path in (repository / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".model_dump_json"):
                assert path.name == "doctor.py", f"{path}:{node.lineno}"  # tasks, which are compared
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".model_dump"):
                # starting.py dumps jobs, of which names alone are written
                assert path.name in ("environment.py", "recipe.py", "checks.py", "doctor.py", "starting.py") or any(
                    part in ast.unparse(node)
                    for part in ("definition.", "node.config.model_dump(mode='json', by_alias")
                ), f"{path}:{node.lineno}"
    starting = (repository / "pipeline" / "runner" / "starting.py").read_text()
    assert starting.count("durable.write(") == starting.count("JOB, json.dumps(environment.names_only(")


def test_looking_for_values_takes_no_time(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"a line of a log that says nothing\n" * 200_000)
    started = time.process_time()
    environment.scrub(log, {f"secret-number-{number}": f"N{number}" for number in range(20)})
    assert time.process_time() - started < 1.0
