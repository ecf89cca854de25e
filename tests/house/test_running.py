"""`scripts/run-tests.sh`: what fails beside other tests gets a second try, alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNSTEADY = """
from pathlib import Path
def test_unsteady():
    tries = Path("tries")
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    assert len(tries.read_text()) > 1
def test_steady():
    Path("steady").touch(exist_ok=False)
"""
BROKEN = "def test_broken(): assert False\n"


@pytest.mark.parametrize(
    ("files", "status", "again"),
    [
        ({"test_a.py": UNSTEADY}, 0, True),
        ({"test_a.py": UNSTEADY, "test_b.py": BROKEN}, 1, True),
        ({"test_b.py": "".join(f"def test_{n}(): assert False\n" for n in range(6))}, 1, False),
        ({}, 5, False),
    ],
    ids=["unsteady", "broken", "many", "no tests"],
)
def test_failures_run_once_more(
    files: dict[str, str], status: int, again: bool, repository: Path, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    script = ["sh", str(repository / "scripts" / "run-tests.sh"), sys.executable]
    beside = ["-n", "2"] if len(files) > 1 else []
    done = subprocess.run([*script, *beside], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    first, _, second = done.stdout.partition("They run once more, one at a time:")
    assert bool(second) == again
    assert ("1 passed" in second) == (again and "test_a.py" in files)
    assert "1 passed" in first or "test_a.py" not in files
