"""What the commands say when a folder is not what they take it for: one line, and 2 as the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import app


def refused(*arguments: str) -> str:
    """What a command says before it ends with 2."""
    done: Result = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.exception
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("runs", ["file", "file/below"])
def test_a_file_where_runs_would_be(command: str, runs: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    said = refused(command, "nano/r1", "--runs", str(tmp_path / runs))
    assert said == f"zero2r1: --runs: {tmp_path / 'file'} is a file, and runs need a folder\n"
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("target", ["gone", "runs"])
def test_a_link_that_leads_nowhere_where_runs_would_be(target: str, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(target)
    for command in ("plan", "run"):
        said = refused(command, "nano/r1", "--runs", str(tmp_path / "runs" / "below"))
        assert said.startswith(f"zero2r1: --runs: {tmp_path / 'runs'} is a link to {target}, where nothing is")


def test_runs_where_nothing_can_be_made() -> None:
    done = CliRunner().invoke(app, ["run", "nano/r1", "--runs", "/proc/runs"])
    assert done.exit_code == 1
    assert done.stderr.startswith("zero2r1: /proc/runs/nano-r1 cannot be written: ")


@pytest.mark.parametrize("content", ["", '{"name": "t", "stag', "\ud800", "[]", '{"name": "t"}'], ids=ascii)
@pytest.mark.parametrize(
    "command", ["status RUN", "report RUN", "report RUN --json", "doctor --run RUN", "eval RUN@a gsm8k"]
)
def test_a_record_that_was_not_written_to_its_end(command: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    said = refused(*command.replace("RUN", str(tmp_path)).split())
    assert said.startswith(f"zero2r1: {tmp_path / 'run.json'} is empty or broken (")
    assert said.endswith("run the recipe again, which writes it anew and keeps the stages that are finished\n")


@pytest.mark.parametrize("command", ["eval MODEL gsm8k --out OUT", "export MODEL OUT"])
def test_what_is_there_is_not_written_into(command: str, tmp_path: Path) -> None:
    """Moving a result into it would hide it under the name of its fingerprint."""
    out = tmp_path / "scores"
    out.mkdir()
    said = refused(*command.replace("MODEL", str(tmp_path)).replace("OUT", str(out)).split())
    assert said == f"zero2r1: {out} exists already\n"
    assert list(out.iterdir()) == []
