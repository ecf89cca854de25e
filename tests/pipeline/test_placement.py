"""Stages and GPUs: who gets which, never two on one, and all of it free again whatever ends them.

A list in `CUDA_VISIBLE_DEVICES` stands for GPUs here: without a driver it is taken at its word. Names are those of one
test alone, since GPUs are shared by all runners of a host.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pipeline import gpus, placement
from pipeline.gpus import Gpu
from pipeline.recipe import RecipeError, load
from pipeline.runner import starting
from pipeline.runner.slots import Slots
from pipeline.schema.launch import VISIBLE
from pipeline.stages.registry import config_class
from tests.pipeline.test_runner import SECONDS, Runs, until

ZERO2R1 = str(Path(sys.executable).parent / "zero2r1")
GRPO = {"kind": "grpo", "model": "m", "tasks": ["gsm8k"]}
SFT = {"kind": "sft", "model": "m", "data": ["rows.jsonl"]}
SCORE = {"kind": "evaluate", "model": "m", "tasks": ["gsm8k"]}
SERVED = {**SCORE, "rollout": {"server": "http://localhost:1"}}
JUDGED = {**SERVED, "kind": "rejection_sample", "require": [{"use": "preference", "options": {"model": "r"}}]}
IMPORT = {"kind": "import_model", "model": "m"}
HERE = tuple(Gpu(name, name) for name in "4567")
NOBODY: Any = None
"""Who is told nothing: nobody waits."""


def stage(config: dict[str, Any]) -> Any:
    return config_class(config["kind"]).model_validate(config)


def launched(config: dict[str, Any], **launch: Any) -> dict[str, Any]:
    return {**config, "launch": launch}


def engines(config: dict[str, Any], *devices: int | str, **launch: Any) -> dict[str, Any]:
    return {**config, "rollout": {"process": {"devices": list(devices)}}, "launch": launch}


ACCELERATE = {"three.yaml": {"num_processes": 3}, "hosts.yaml": {"num_processes": 8, "num_machines": 2}}
PLACES: dict[str, tuple[dict[str, Any], str, str, list[str], int | None]] = {
    # what: (stage, GPUs wanted, those of its process, those of its engines, processes that a launcher starts)
    "training alone": (SFT, "1", "4", [], None),
    "on all": (launched(SFT, accelerate="ddp"), "all", "4,5,6,7", [], None),
    "on as many as its launcher says": (launched(SFT, accelerate="three.yaml"), "3", "4,5,6", [], None),
    "on its share of several hosts": (launched(SFT, accelerate="hosts.yaml"), "4", "4,5,6,7", [], None),
    "one line": (launched(GRPO, accelerate="fsdp2-1node", gpus=2), "2", "4,5", [], 2),
    "the whole node": (launched(GRPO, accelerate="fsdp2-1node", gpus="all"), "all", "4,5,6,7", [], 4),
    "on the CPU": (launched(SFT, gpus=0), "0", "", [], None),
    "several on the CPU": (launched(SFT, gpus=0, accelerate="ddp"), "0", "", [], None),
    "an engine apart": (engines(GRPO, 1, gpus=2), "2", "4", ["5"], None),
    "engines apart": (engines(GRPO, 2, 3, gpus=4, accelerate="ddp"), "4", "4,5", ["6", "7"], 2),
    "an engine on two": (engines(GRPO, "1,2", gpus=3), "3", "4", ["5,6"], None),
    "an engine beside": (engines(GRPO, 0, 0, gpus=1), "1", "4", ["4", "4"], None),
    "engines by name": (engines(GRPO, 7), "all", "4", ["7"], None),
    "pinned": (engines(GRPO, 6, env={VISIBLE: "5"}), "5,6", "5", [], None),
    "hidden": (launched(SFT, env={VISIBLE: ""}), "0", "", [], None),
    "sampling": (SCORE, "1", "4", [], None),
    "sampling on three": (launched(SCORE, gpus=3), "3", "4,5,6", ["4", "5", "6"], None),
    "by engines of two": (
        {**launched(SCORE, gpus=4), "rollout": {"engine_options": {"tensor_parallel_size": 2}}},
        *("4", "4,5,6,7", ["4,5", "6,7"], None),
    ),
    "by one of two": (
        {**SCORE, "rollout": {"engine": "vllm", "engine_options": {"tensor_parallel_size": 2}}},
        *("2", "4,5", [], None),
    ),
    "by engines named": (engines(SCORE, 5, 6), "5,6", "5,6", [], None),
    "by an engine on the CPU": (engines(SCORE, -1), "0", "", [], None),
    "trained beside an engine on the CPU": (engines(GRPO, -1), "1", "4", ["-1"], None),
    "by engines on the CPU and on a GPU": (engines(SCORE, -1, "", 6), "6", "6", [], None),
    "an engine on the CPU": (engines(GRPO, -1, env={VISIBLE: "5"}), "5", "5", [], None),
    "by a server": (SERVED, "0", "", [], None),
    "by a server of its own": ({**SCORE, "rollout": {"engine": "vllm_server"}}, "1", "4", [], None),
    "by two servers of its own": (
        {**launched(SCORE, gpus=2), "rollout": {"engine": "vllm_server"}},
        *("2", "4,5", ["4", "5"], None),
    ),
    "by a server, judged here": (JUDGED, "1", "4", [], None),
    "no model": (IMPORT, "0", "", [], None),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_stage_gets_what_it_uses(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in ACCELERATE.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    config, want, own, apart, ranks = PLACES[case]
    checked = stage(config)
    assert list(placement.faults(checked, tmp_path)) == []
    wanted = placement.wanted(checked, tmp_path)
    assert str(wanted) == want
    got = wanted.candidates(HERE)[: wanted.number(HERE)]
    placed = placement.placed(checked, tmp_path, got)
    assert (",".join(placed.own), list(placed.engines), placed.ranks) == (own, apart, ranks)
    if apart:
        assert placed.config(checked).rollout.process.devices == apart  # type: ignore[attr-defined]
    else:
        assert placed.config(checked) == checked


@pytest.mark.parametrize(("launch", "processes"), [({"gpus": 2}, 2), ({"gpus": "all"}, 4), ({}, "gpu")])
def test_accelerate_starts_a_process_on_each(launch: dict[str, Any], processes: int | str) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = stage(launched(SFT, accelerate="fsdp2-1node", **launch))
    node: Any = SimpleNamespace(config=config)
    got = placement.wanted(config, Path())
    placed = placement.placed(config, Path(), HERE[: got.number(HERE)])
    words = starting.command(node, Path(), Path("scratch/job.json"), placed)
    arguments = words[words.index("--config_file") :]
    assert _validate_launch_command(launch_command_parser().parse_args(arguments))[0].num_processes == processes


@pytest.mark.parametrize(
    ("config", "where", "what"),
    [
        (launched(SFT, gpus=2), "launch.gpus", "2 GPUs for one process, which trains on one: set launch.accelerate"),
        (launched(SFT, gpus="all"), "launch.gpus", "all GPUs for one process"),
        (launched(IMPORT, gpus=1), "launch.gpus", "has no effect on this stage: it computes on the CPU"),
        (launched(SERVED, gpus=1), "launch.gpus", "has no effect on this stage: completions come from a server"),
        (launched(SFT, gpus=1, env={VISIBLE: "0"}), "launch.gpus", "both say which GPUs the stage has"),
        (engines(GRPO, 1, gpus=1), "rollout.process.devices.0", "names GPU 1 of the 1 that the stage has"),
        (engines(SCORE, 0, 3, gpus=2), "rollout.process.devices.1", "launch.gpus (4 at least)"),
        (engines(GRPO, "GPU-aa11", gpus=2), "rollout.process.devices.0", "names GPU-aa11, and with launch.gpus"),
        (engines(SCORE, 0, 1, gpus=4), "launch.gpus", "2 of 4 GPUs would have no engine"),
        (launched(SFT, accelerate="ep-1node", gpus=3), "launch.gpus", "do not divide into the groups of 2"),
        (
            {**launched(SCORE, gpus=3), "rollout": {"engine_options": {"tensor_parallel_size": 2}}},
            *("launch.gpus", "3 GPUs do not divide into engines of 2"),
        ),
        (
            {**launched(GRPO, gpus=2), "rollout": {"process": {"env": {VISIBLE: "1"}}}},
            *(f"rollout.process.env.{VISIBLE}", "counted from 0 among those of the stage"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_gpus_that_nobody_would_use_are_refused(config: dict[str, Any], where: str, what: str) -> None:
    told = {".".join(map(str, loc)): message for loc, message in placement.faults(stage(config), Path())}
    assert what in told[where]


def test_a_recipe_says_it_once_for_all_stages(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1", "completion": "2"}\n')
    recipe = {
        "name": "r",
        "launch": {"accelerate": "fsdp2-1node", "gpus": 2},
        "defaults": {"grpo": {"launch": {"gpus": 1}}},
        "stages": {
            "base": {"kind": "import_model", "model": "some/model"},
            "tuned": {"kind": "sft", "model": "@base", "data": [str(rows)]},
            "zero": {"kind": "grpo", "model": "@tuned", "tasks": ["gsm8k"]},
            "score": {"kind": "evaluate", "model": "@zero", "tasks": ["gsm8k"]},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    read = load(path)
    assert {name: str(want) for name, want in placement.of_recipe(read).items()} == {
        "base": "0",
        "tuned": "2",
        "zero": "1",
        "score": "2",
    }
    with pytest.raises(RecipeError, match=r"stages\.zero\.launch\.gpus: 3 GPUs for one process"):
        load(path, ["stages.zero.launch.gpus=3"])


@pytest.mark.parametrize(
    ("exported", "seen"),
    [
        ("0,1", ["0", "1"]),
        (" 3 ,1", ["3", "1"]),
        ("GPU-8932f937-d72c,GPU-11", ["GPU-8932f937-d72c", "GPU-11"]),
        ("MIG-c6d4f1ef-42e4", ["MIG-c6d4f1ef-42e4"]),
        ("0,-1,1", ["0"]),
        ("0,,1", ["0"]),
        ("1,1", ["1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("void", []),
        ("0;1", []),
        (None, []),
    ],
)
def test_gpus_are_those_that_are_exported(
    exported: str | None, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "of_driver", tuple)
    assert [gpu.name for gpu in gpus.visible({} if exported is None else {VISIBLE: exported})] == seen


def test_a_gpu_is_the_same_under_each_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "of_driver", lambda: ("GPU-aa11", "GPU-bb22"))
    assert [gpu.key for gpu in gpus.visible({})] == ["GPU-aa11", "GPU-bb22"]
    assert gpus.visible({VISIBLE: "GPU-bb,0,7"}) == (Gpu("GPU-bb", "GPU-bb22"), Gpu("0", "GPU-aa11"))
    assert gpus.visible({VISIBLE: "1,GPU-bb22"}) == (Gpu("1", "GPU-bb22"),)
    assert gpus.visible({VISIBLE: "GPU-cc,0"}) == ()
    assert gpus.visible({VISIBLE: "GPU-"}) == (), "which could be either"
    assert gpus.visible({VISIBLE: "NoDevFiles"}) == (), "as Slurm says it"
    apart = stage({**engines(GRPO, 1), "launch": {"accelerate": "ddp"}})
    assert placement.placed(apart, Path(), gpus.visible({VISIBLE: "GPU-aa11,GPU-bb22"})).own == ("GPU-aa11",)
    assert placement.placed(apart, Path(), HERE).own == tuple("4567"), "of another host"
    assert placement.placed(stage(engines(GRPO, 5)), Path(), HERE).own == ("4",)


@pytest.mark.parametrize("exported", ["", "-1", "NoDevFiles"])
def test_where_no_gpu_is_exported_stages_wait_for_none(exported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "of_driver", lambda: ("GPU-aa11", "GPU-bb22"))
    monkeypatch.setenv(VISIBLE, exported)
    made = {"plain": SFT, "ddp": launched(SFT, accelerate="ddp"), "score": SCORE}
    nodes: Any = {name: SimpleNamespace(name=name, config=stage(config)) for name, config in made.items()}
    slots = Slots(nodes, Path(), NOBODY)
    assert slots.wanted == {}
    for node in nodes.values():
        assert slots.take(node)
        assert slots.of(node) == (None, None)


@pytest.mark.parametrize(
    ("config", "exported", "words"),
    [
        (engines(GRPO, 1), "0,2", "names GPU 1, and CUDA_VISIBLE_DEVICES exports 0,2"),
        (engines(SCORE, 1), "", "names GPU 1, and CUDA_VISIBLE_DEVICES exports none"),
        (engines(SCORE, "0,1"), "GPU-aa,GPU-cc", "names GPU 1, and CUDA_VISIBLE_DEVICES exports GPU-aa,GPU-cc"),
        (engines(SCORE, 7, 1), "1", "names GPU 7, which is not here: there are 3"),
        (engines(GRPO, 2), "0,2", ""),
        (engines(GRPO, 2), None, ""),
        (engines(GRPO, "GPU-cc33"), "0,2", ""),
        (engines(GRPO, 1, gpus=2), "0,2", ""),
        (engines(SCORE, 0, "GPU-aa11"), "0", ""),
        (launched(SFT, env={VISIBLE: "1"}), "0", ""),
    ],
)
def test_engines_are_on_gpus_that_are_exported(
    config: dict[str, Any], exported: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may be somebody else's; a variable of the stage's own says so on purpose."""
    for module in (gpus, placement):
        monkeypatch.setattr(module, "of_driver", lambda: ("GPU-aa11", "GPU-bb22", "GPU-cc33"))
    monkeypatch.delenv(VISIBLE, raising=False)
    if exported is not None:
        monkeypatch.setenv(VISIBLE, exported)
    recipe: Any = SimpleNamespace(stages={"one": stage(config)}, base=Path())
    told = [text for _, (_, text) in placement.unmet(recipe, ["one"], gpus.visible(os.environ))]
    assert told == [] if not words else words in "".join(told)


def test_gpus_are_taken_together_or_not_at_all(fake: list[str]) -> None:
    there = gpus.visible(os.environ)
    one = gpus.take(there, 1)
    assert one is not None and [gpu.name for gpu in one.gpus] == fake[:1]
    assert gpus.take(there, 2) is None
    two = gpus.take(there, 1)
    assert two is not None and [gpu.name for gpu in two.gpus] == fake[1:]
    one.release()
    assert gpus.take(there, 2) is None
    two.release()
    both = gpus.take(there, 2)
    assert both is not None
    both.release()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
def test_a_gpu_is_free_when_the_last_process_that_holds_it_has_ended(how: signal.Signals, fake: list[str]) -> None:
    lease = gpus.take(gpus.visible(os.environ), 1)
    assert lease is not None
    held = {**os.environ, gpus.HELD: os.pathsep.join(map(str, lease.paths))}
    said = "from pipeline import gpus; gpus.keep(); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", said], env=held, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        lease.release()
        assert gpus.take(lease.gpus, 1) is None
        process.send_signal(how)
        process.wait()
    again = gpus.take(lease.gpus, 1)
    assert again is not None
    again.release()


PLAY = """\
import os
import time
from pathlib import Path

from pipeline.tasks.base import Task, TaskError

HERE = Path(__file__).parent


class Play(Task):
    def __init__(self, name):
        self.name = name

    def problems(self, split, n=None, seed=0):
        sign = HERE / f"{self.name}.writing"
        sign.write_text(f"{os.getpid()} {os.getpid()}")
        (HERE / f"{self.name}.gpus").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
        sign.rename(HERE / f"{self.name}.started")
        while not (HERE / f"{self.name}.go").exists():
            time.sleep(0.02)
        raise TaskError("the cupboard is bare")
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two GPUs that this test has for itself."""
    names = [f"GPU-{uuid.uuid4()}" for _ in range(2)]
    monkeypatch.setenv(VISIBLE, ",".join(names))
    monkeypatch.setattr(gpus, "of_driver", tuple)
    yield names
    for name in names:
        gpus.lock_path(Gpu(name, name)).unlink(missing_ok=True)


def plays(folder: Path, name: str, **stages: dict[str, Any]) -> Runs:
    """A run in a folder of its own, whose stages wait for a sign."""
    (folder / name).mkdir()
    (folder / name / "play.py").write_text(PLAY)
    made = {
        stage: {"kind": "evaluate", "model": "no/model", "tasks": [{"use": "play.py:Play", "options": {"name": stage}}]}
        | fields
        for stage, fields in stages.items()
    }
    recipe = {"name": "play", "jobs": 4, "stages": made}
    (folder / name / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return Runs(folder / name)


def on(runs: Runs, name: str) -> str:
    """Wait until a stage works; the GPUs that it sees."""
    runs.stage(name)
    return (runs.folder / f"{name}.gpus").read_text()


def test_stages_run_side_by_side_each_on_its_own(tmp_path: Path, fake: list[str]) -> None:
    """Two on a GPU each, one without any beside them, and one that wants both and so waits for them."""
    served = {"rollout": {"server": "http://localhost:1"}}
    runs = plays(tmp_path, "a", one={}, both={"launch": {"gpus": 2}}, two={}, none=served)
    try:
        runner = runs.start("--json")
        assert [on(runs, "one"), on(runs, "two")] == fake
        assert on(runs, "none") == ""
        assert runner.stdout is not None
        notes: dict[str, str] = {}
        while "both" not in notes:
            event = json.loads(runner.stdout.readline())
            if "note" in event:
                notes[event["stage"]] = event["note"]
        assert notes == {
            "one": f"on GPU {fake[0]}",
            "two": f"on GPU {fake[1]}",
            "both": "waits for 2 GPUs; taken by stage 'one', stage 'two'",
        }
        status = subprocess.run([ZERO2R1, "status", "runs/play", "--json"], cwd=runs.folder, capture_output=True)
        placed = {row["stage"]: row.get("gpus") for row in json.loads(status.stdout)}
        assert placed == {"one": fake[:1], "two": fake[1:], "none": None, "both": "needs 2"}
    finally:
        runs.close()


def test_two_runs_of_a_host_share_its_gpus(tmp_path: Path, fake: list[str]) -> None:
    """The second run waits, says for whom, and has the GPUs when the first one's runner is killed, stages and all."""
    first, second = (plays(tmp_path, name, one={"launch": {"gpus": 2}}) for name in "ab")
    try:
        runner = first.start()
        assert on(first, "one") == ",".join(fake)
        waiting = second.start("--json")
        assert waiting.stdout is not None
        until(lambda: (second.folder / "runs/play/run.json").exists(), "the second run")
        note = ""
        while not note:
            note = json.loads(waiting.stdout.readline()).get("note", "")
        assert note.startswith("waits for 2 GPUs; taken by process ") and str(runner.pid) in note
        assert not (second.folder / "one.started").exists()
        runner.kill()
        assert on(second, "one") == ",".join(fake)
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("gone", [False, True], ids=["too few", "none"])
def test_more_than_there_are_is_refused_before_anything_starts(
    gone: bool, tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plays(tmp_path, "a", one={}, many={"launch": {"gpus": 3}})
    if gone:
        monkeypatch.setenv(VISIBLE, "")
    runner = runs.start()
    _, errors = runner.communicate(timeout=SECONDS)
    here, fix = ("none", "leave it out, or set it to all") if gone else ("2", "set it to 2 or less, or to all")
    assert runner.returncode == 1
    where = "there are none here" if gone else f"there are {here} here"
    said = f"stages.many.launch.gpus: asks for 3 GPUs, and {where} ({VISIBLE} counted): {fix}"
    assert "nothing was started" in errors and said in errors
    assert not (runs.folder / "one.started").exists()


def test_the_plan_shows_who_gets_what(tmp_path: Path, fake: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plays(tmp_path, "a", one={}, many={"launch": {"gpus": 2}})

    def plan(*arguments: str) -> str:
        return subprocess.run(
            [ZERO2R1, "plan", "recipe.yaml", *arguments], cwd=runs.folder, capture_output=True, text=True, check=True
        ).stdout

    assert {row["stage"]: row["gpus"] for row in json.loads(plan("--json"))} == {"one": 1, "many": 2}
    assert [line.split()[2] for line in plan().splitlines()] == ["GPUs", "1", "2"]
    monkeypatch.delenv(VISIBLE)
    (runs.folder / "recipe.yaml").write_text(
        (runs.folder / "recipe.yaml").read_text().replace("gpus: 2", "restarts: 2")
    )
    assert "GPUs" not in plan()
