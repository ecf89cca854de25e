"""Attacks on the code sandbox: each must be contained, be scored as a failure, and leave the next job unharmed.

All run on one worker, each followed by an honest program that looks for traces and must be paid.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import socket
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.code import CodeVerifier
from rewards.verdict import Item, Status, Verdict
from tests.rewards.sandbox_attacks import ANSWERS_AHEAD, CONTROLS, ESCAPES, EXCESSES, FORGERIES, HELPERS, HONEST, SECRET

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

CONTAINED = (
    "it returned False",
    "PermissionError",
    "OSError",
    "FileNotFoundError",
    "gaierror",
    "ended before all its tests",
)
"""What an escape that fails for the right reason ends with."""


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    os.environ["ENVIRONMENT_CANARY"] = "CANARY"
    built = CodeVerifier(timeout=0.7, memory_mb=128, workers=1)
    yield built
    built.close()
    del os.environ["ENVIRONMENT_CANARY"]


def judge(verifier: CodeVerifier, code: str, expected: object) -> Verdict:
    gold = {"function": "f", "calls": [{"args": [], "expected": expected}]}
    return verifier.verify([Item(f"```python\n{textwrap.dedent(code)}\n```", gold)])[0]


def assert_harmless(verifier: CodeVerifier, caplog: pytest.LogCaptureFixture) -> None:
    verdict = judge(verifier, HONEST, "honest")
    assert verdict.status is Status.CORRECT, verdict
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], "a sandbox had to be started again"


@pytest.mark.parametrize("name", ESCAPES)
def test_escape(
    name: str, verifier: CodeVerifier, caplog: pytest.LogCaptureFixture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if platform.machine() != "x86_64" and "syscall(" in ESCAPES[name]:
        pytest.skip("written for x86_64")
    canary = tmp_path_factory.getbasetemp() / "canary"
    canary.write_text("CANARY")
    for folder in (canary, *canary.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith(str(Path("/tmp"))):
            folder.chmod(folder.stat().st_mode | 0o755)
    with socket.create_server(("127.0.0.1", 0)) as server:
        constants = f"CANARY, PORT = {str(canary)!r}, {server.getsockname()[1]}\n"
        verdict = judge(verifier, HELPERS + constants + textwrap.dedent(ESCAPES[name]), True)
    assert verdict.status in (Status.WRONG, Status.REJECTED, Status.TIMEOUT) and verdict.score == 0.0, verdict
    assert any(word in verdict.detail for word in CONTAINED), f"the attack itself is broken: {verdict.detail}"
    assert_harmless(verifier, caplog)


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery(name: str, verifier: CodeVerifier, caplog: pytest.LogCaptureFixture) -> None:
    verdict = judge(verifier, FORGERIES[name], SECRET)
    assert verdict.status in (Status.WRONG, Status.REJECTED) and verdict.score == 0.0, verdict
    assert_harmless(verifier, caplog)


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_under_questions(name: str, verifier: CodeVerifier, caplog: pytest.LogCaptureFixture) -> None:
    """The same programs as above, where a test suite runs beside them and compares by itself."""
    gold = {
        "check": f"def check(candidate):\n    for _ in range(2):\n        assert candidate() == {SECRET!r}",
        "entry": "f",
    }
    completion = f"```python\n{textwrap.dedent(FORGERIES[name])}\n```"
    verdict = verifier.verify([Item(completion, gold)])[0]
    assert verdict.status in (Status.WRONG, Status.REJECTED, Status.TIMEOUT) and verdict.score == 0.0, verdict
    assert_harmless(verifier, caplog)


@pytest.mark.parametrize("name", EXCESSES)
def test_excess(name: str, verifier: CodeVerifier, caplog: pytest.LogCaptureFixture) -> None:
    verdict = judge(verifier, EXCESSES[name], "never")
    assert verdict.status in (Status.WRONG, Status.REJECTED, Status.TIMEOUT) and verdict.score == 0.0, verdict
    assert_harmless(verifier, caplog)


@pytest.mark.parametrize("reply", ["0", "os._exit(0)", "exec('raise StopIteration')", "[[[0]]]", "'x' * (2 << 20)"])
def test_answers_given_ahead_are_only_answers(reply: str, verifier: CodeVerifier) -> None:
    gold = {
        "check": "def check(candidate):\n    assert [candidate(n) for n in range(9)] == [n * n for n in range(9)]",
        "entry": "f",
    }
    completion = f"```python\n{ANSWERS_AHEAD.format(reply=reply)}\n```"
    assert verifier.verify([Item(completion, gold)])[0].score == 0.0


@pytest.mark.parametrize(
    "code",
    [
        "print(1)",
        "print('1\\n2\\n3\\n4')",
        "print('1\\n2\\n3', end='')\nimport os; os.abort()",
        "print('1\\n2\\n3')\nraise ValueError",
        "print('1\\n2\\n3')\nimport sys; sys.exit(3)",
        "print('1 2 3')",
        "import os\nos.write(3, b'1\\n2\\n3')",
        "import sys\nsys.stderr.write('1\\n2\\n3')",
    ],
)
def test_output_is_compared_in_full(code: str, verifier: CodeVerifier) -> None:
    gold = {"inputs": [""], "outputs": ["1\n2\n3\n"]}
    assert verifier.verify([Item(f"```python\n{code}\n```", gold)])[0].score == 0.0


def test_honest_program_is_paid(verifier: CodeVerifier) -> None:
    gold = {"inputs": ["3"], "outputs": ["1\n2\n3\n"]}
    code = "for i in range(int(input())):\n    print(i + 1, end=' \\n')"
    assert verifier.verify([Item(f"```python\n{code}\n```", gold)])[0].score == 1.0


@pytest.mark.parametrize("name", CONTROLS)
def test_escapes_are_real(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a sandbox these very programs are paid: what contains them is the sandbox."""
    canary = tmp_path / "canary"
    canary.write_text("CANARY")
    verifier = CodeVerifier(timeout=20, workers=1, unsafe_local=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        constants = f"CANARY, PORT = {str(canary)!r}, {server.getsockname()[1]}\nos.environ['X'] = 'CANARY'\n"
        verdict = judge(verifier, HELPERS + constants + textwrap.dedent(ESCAPES[name]), True)
    verifier.close()
    assert verdict.score == 1.0, verdict
