"""Runs whose files are not what was written, and surroundings that fail: one line each, and what is finished stays."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from pipeline import artifacts, recipe
from pipeline.cli import app
from pipeline.commands import display, doctor, status
from pipeline.files import durable
from pipeline.runner import graph, scratch
from pipeline.runner.inputs import Inputs
from pipeline.runner.observer import Failure

RECIPE = """\
name: play
stages:
  base: {kind: import_model, model: no/model}
  zero: {kind: evaluate, model: "@base", tasks: ["play.py:Play"]}
"""
PLAY = """\
from pathlib import Path

from pipeline.tasks.base import Task, TaskError

HERE = Path(__file__).parent


class Play(Task):
    def problems(self, split, n=None, seed=0):
        if (HERE / "fill").exists():
            (HERE / "disk" / "much").write_bytes(bytes(100_000))
        raise TaskError("the cupboard is bare")
"""
WEIGHTS = bytes(range(256)) * 64


class Play:
    """A run whose first stage is finished, without anything heavy having been done for it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe, self.run = folder, folder / "recipe.yaml", folder / "runs" / "play"
        if not self.recipe.exists():
            self.recipe.write_text(RECIPE)
            (folder / "play.py").write_text(PLAY)
            self.publish("base")
        node = graph.build(recipe.load(self.recipe))["base"]
        found = artifacts.find(self.run, "base", node.fingerprint)
        assert found is not None
        self.base = found

    def publish(self, stage: str) -> artifacts.Artifact:
        node = graph.build(recipe.load(self.recipe))[stage]
        source = artifacts.scratch(self.run, stage, node.fingerprint) / "output"
        (source / "model").mkdir(parents=True)
        (source / "model" / "model.safetensors").write_bytes(WEIGHTS)
        (source / "model" / "config.json").write_text("{}")
        manifest = {"fingerprint": node.fingerprint, "identity": node.identity, "metrics": {}, "seconds": 1.0}
        manifest |= {"config": {}, "inputs": {}, "finished": "2026-01-01T00:00:00.000+00:00"}
        made = artifacts.publish(source, artifacts.folder(self.run, stage, node.fingerprint), manifest)
        source.parent.rmdir()
        return made

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in a process of its own."""
        command = [str(Path(sys.executable).parent / "zero2r1"), *arguments]
        done = subprocess.run(command, cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert "\nTraceback" not in f"\n{done.stderr}", done.stderr
        return done

    def call(self, *arguments: str) -> Result:
        """A command in this process."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            done = CliRunner().invoke(app, list(arguments))
        finally:
            os.chdir(before)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    def counter(self) -> Path:
        """Counts the attempts of the second stage."""
        (found,) = (self.run / "scratch").glob("zero-*/attempts")
        return found

    def damage(self, name: str = "model/model.safetensors") -> Path:
        """Flip a bit, as a disk does: the times stay."""
        path = self.base.path / name
        before, data = path.stat(), bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose second stage has failed."""
    folder = tmp_path_factory.mktemp("ran")
    done = Play(folder).start("run", "recipe.yaml")
    assert "zero: started" in done.stdout
    assert "the cupboard is bare" in done.stderr
    return folder


@pytest.fixture
def play(ran: Path, tmp_path: Path) -> Play:
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    return Play(tmp_path)


def test_no_stage_starts_from_a_damaged_input(play: Play) -> None:
    play.damage()
    counter = play.counter()
    done = play.start("run", "recipe.yaml")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    damage = "model/model.safetensors has other content than was written"
    assert line.startswith(f"zero2r1: stage 'zero' cannot start: its input @base is damaged ({damage}). Put the file")
    assert str(play.base.path.relative_to(play.folder)) in line
    assert counter.read_text() == "1"
    play.damage()  # the same bit once more: the file is what it was, and its times do not matter
    os.utime(play.base.path / "model" / "model.safetensors")
    assert "the cupboard is bare" in play.start("run", "recipe.yaml").stderr
    assert counter.read_text() == "2"


def test_what_changes_while_a_run_goes_on_is_looked_at_again(play: Play) -> None:
    inputs, done = Inputs(), {"base": play.base}
    inputs.trust(play.base)
    assert inputs.fault("zero", ["base"], done) is None
    play.damage()  # the time of its content is what it was; that of the file's record cannot be set
    told = inputs.fault("zero", ["base"], done)
    assert told is not None and "has other content than was written" in told


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/config.json"])
def test_plan_and_doctor_find_it_when_asked(name: str, play: Play) -> None:
    assert play.call("plan", "recipe.yaml", "--verify").exit_code == 0
    assert play.call("doctor", "--run", "runs/play").exit_code == 0
    play.damage(name)
    rows = json.loads(play.call("plan", "recipe.yaml", "--json").stdout)
    assert rows[0]["state"] == "fresh", "without --verify, sizes alone are looked at"
    done = play.call("plan", "recipe.yaml", "--verify", "--json")
    row = json.loads(done.stdout)[0]
    assert (done.exit_code, row["state"]) == (1, "damaged")
    assert row["reason"].startswith(f"{name} has other content than was written in ")
    assert "damaged" in play.call("plan", "recipe.yaml", "--verify").stdout
    done = play.call("doctor", "--run", "runs/play", "--json")
    (found,) = [finding for finding in json.loads(done.stdout) if finding["subject"] == "base"]
    assert (done.exit_code, found["level"]) == (1, "error")
    assert found["message"].startswith(f"{name} has other content than was written in ")


@pytest.mark.parametrize("command", ["eval MODEL arithmetic", "export MODEL out", "generate MODEL -p hello"])
def test_a_damaged_model_is_not_used_outside_of_its_run_either(command: str, play: Play) -> None:
    play.damage()
    done = play.call(*command.replace("MODEL", "runs/play@base").split())
    assert done.exit_code == 2
    assert done.stderr.startswith("zero2r1: runs/play@base is damaged (model/model.safetensors has other content")


@pytest.mark.parametrize("position", range(0, 100, 9))
def test_a_damaged_manifest_is_no_manifest(position: int, play: Play, caplog: pytest.LogCaptureFixture) -> None:
    path = play.base.path / artifacts.MANIFEST
    data = bytearray(path.read_bytes())
    data[position * len(data) // 100] ^= 4
    path.write_bytes(data)
    assert artifacts.find(play.run, "base", play.base.manifest["fingerprint"]) is None
    assert f"{path} is " in caplog.text and "the stage will run again" in caplog.text


def test_scratch_that_a_kill_left_after_publication_is_removed(play: Play) -> None:
    left = artifacts.scratch(play.run, "base", str(play.base.manifest["fingerprint"]))
    (left / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    copy = play.base.path.parent / f".{play.base.path.name}.part"
    shutil.copytree(play.base.path, copy)
    other = artifacts.scratch(play.run, "base", "f" * 64)  # of other settings: it may be gone on with
    other.mkdir(parents=True)
    assert artifacts.latest(play.run, "base") == play.base
    play.start("run", "recipe.yaml")
    assert not left.exists()
    assert not copy.exists()
    assert other.exists()


@pytest.mark.parametrize("content", ["", "1\0", "\0" * 8, "two", "-1"], ids=ascii)
def test_attempts_that_cannot_be_read_are_counted_anew_and_said(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = tmp_path / "attempts"
    assert [scratch.count_attempt(counter) for _ in range(2)] == [1, 2]
    assert caplog.text == ""
    counter.write_text(content)
    assert [scratch.count_attempt(counter) for _ in range(2)] == [1, 2]
    assert f"{counter} is empty or broken: attempts are counted from 1 again" in caplog.text


@pytest.mark.parametrize("command", ["report RUN", "report RUN --json", "doctor --run RUN"])
@pytest.mark.parametrize("damage", ["a flipped bit", "no YAML", "gone", "of an earlier version"])
def test_a_broken_recipe_in_a_run_is_one_line(damage: str, command: str, play: Play) -> None:
    path = play.run / "recipe.yaml"
    if damage == "a flipped bit":
        path.write_text(path.read_text().replace("no/model", "mo/model"))
    elif damage == "gone":
        path.unlink()
    else:
        path.write_text("stages: [}")
    if damage == "of an earlier version":
        record = {name: value for name, value in artifacts.record(play.run).items() if name != "files"}
        (play.run / "run.json").write_text(json.dumps(record))
    done = play.call(*command.replace("RUN", "runs/play").split())
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("zero2r1: runs/play/recipe.yaml")
    assert line.endswith("run the recipe again, which writes it anew and keeps the stages that are finished")
    assert play.call("status", "runs/play").exit_code == 0


@pytest.mark.parametrize("position", range(1, 100, 9))
def test_a_flipped_bit_in_the_record_of_a_run(position: int, play: Play) -> None:
    path = play.run / "run.json"
    data = bytearray(path.read_bytes())
    data[position * len(data) // 100] ^= 2
    path.write_bytes(data)
    done = play.call("status", "runs/play")
    assert done.exit_code == 2
    assert done.stderr.startswith("zero2r1: runs/play/run.json is ")
    assert done.stderr.count("\n") == 1


MARKUP = "[/red] [bold]x[/bold] [link=file:///etc]"


def test_what_looks_like_markup_is_text(play: Play) -> None:
    """As in the reason why a stage is stale: `prefill "" → "[/red]"`."""
    node = graph.build(recipe.load(play.recipe))["base"]
    row = {"stage": "base", "kind": "export", "state": "finished", "summary": MARKUP}
    finding = doctor.Finding(doctor.Level.ERROR, MARKUP, MARKUP)
    console = Console(file=io.StringIO(), width=200)
    for table in (
        display.plan_table([graph.Step(node, state, f'prefill "" → {MARKUP}') for state in graph.State]),
        status.status_table([row]),
        doctor.table([finding]),
    ):
        console.print(table)
    assert console.file.getvalue().count(MARKUP) == len(graph.State) + 3  # type: ignore[attr-defined]


def test_the_name_of_a_folder_is_text(play: Play) -> None:
    odd = play.folder / "runs" / "[red]play"
    play.run.rename(odd)
    done = play.call("report", str(odd))
    assert f"report: {odd / 'report.html'}" in done.stdout
    assert play.call("status", str(odd)).exit_code == 0


def test_observers_show_what_looks_like_markup_as_text(play: Play) -> None:
    node = graph.build(recipe.load(play.recipe))["base"]
    failed = Failure("base", f"ended with exit code 1 {MARKUP}", "; the end of log:")
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)
        with display.observer(console, as_json=False) as observer:
            observer.started(node, graph.State.NEW)
            observer.event(node, {"step": 1, "total": 2, "loss": 1.0, "text": MARKUP})
            observer.event(node, {"step": 0, "note": f"checkpoint-9 is damaged {MARKUP}"})
            observer.restarted(node, failed)
            observer.failed(node, failed)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert f"base  checkpoint-9 is damaged {MARKUP}" in shown.replace("base: ", "base  ")
        assert f"ended with exit code 1 {MARKUP}; it goes on from its last checkpoint" in shown


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["for people", "for machines"])
def test_a_reader_that_leaves_stops_the_run_in_a_line(options: list[str], play: Play) -> None:
    """`zero2r1 run … | head -1`."""
    command = [str(Path(sys.executable).parent / "zero2r1"), "run", "recipe.yaml", *options]
    with subprocess.Popen(
        command, cwd=play.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    said = "zero2r1: nobody reads the output any more: stopped; the same command goes on from here (runs/play)\n"
    assert errors == said
    assert json.loads(play.call("plan", "recipe.yaml", "--json").stdout)[0]["state"] == "fresh"


def test_scratch_on_another_disk(play: Play, tmp_path: Path) -> None:
    if not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        shutil.rmtree(play.run)
        play.run.mkdir()
        (play.run / "scratch").symlink_to(other)
        made = play.publish("base")
        assert artifacts.verify(made) == []
        assert artifacts.find(play.run, "base", made.manifest["fingerprint"]) == made


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
@pytest.mark.parametrize("free", [0, 16])
def test_a_full_disk_is_one_line_and_keeps_what_is_finished(free: int, play: Play, tmp_path: Path) -> None:
    """With nothing free the runner finds out, with 16 kB the stage does."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(play.run, disk / "play")
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - free * 1024))
        (play.folder / "fill").touch()
        done = play.start("run", "recipe.yaml", "--runs", str(disk))
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("zero2r1: ")]
        assert ("No space left on device" if free == 0 else "is full: free some space, and run again") in line
        (disk / "filler").unlink()
        (play.folder / "fill").unlink()
        assert "the cupboard is bare" in play.start("run", "recipe.yaml", "--runs", str(disk)).stderr
        there = disk / "play" / play.base.path.relative_to(play.run)
        assert durable.damage(there, play.base.manifest["files"]) == {}
    finally:
        subprocess.run(["umount", str(disk)], check=True)
