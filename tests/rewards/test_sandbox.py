"""The sandbox: whoever starts it, however it isolates, whatever breaks."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewards.code import CodeVerifier
from rewards.sandbox import Ending, Limits, LocalSandbox, SandboxError, open_sandbox
from rewards.sandbox.inside import seccomp, values
from rewards.verdict import Item, Status

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap: apt-get install bubblewrap")

DOUBLE = "def f(x): return x * 2"
ROOT = os.geteuid() == 0


def calls(code: str, *sources: str) -> dict[str, Any]:
    return {"kind": "calls", "code": code, "setup": "", "calls": list(sources), "stop": False}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    built = LocalSandbox(Limits(wall_s=5, memory_mb=128), workers=2)
    yield built
    built.close()


def test_program_reads_and_prints(sandbox: LocalSandbox) -> None:
    outcome = sandbox.run(
        {"kind": "program", "code": "import sys\nprint(input()[::-1], sys.stdin.read())", "stdin": "ab\né"}
    )
    assert (outcome.ending, outcome.code, outcome.stdout.decode()) == (Ending.EXITED, 0, "ba é\n")


def test_program_waits_for_its_threads_and_exit_functions(sandbox: LocalSandbox) -> None:
    code = (
        "import atexit, threading, time\natexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\nprint('main')"
    )
    assert sandbox.run({"kind": "program", "code": code}).stdout == b"main\nthread\nlast\n"


def test_programs_have_what_ordinary_ones_use(sandbox: LocalSandbox) -> None:
    code = """
import asyncio, dataclasses, decimal, json, multiprocessing, pickle, sqlite3, tempfile, zlib
@dataclasses.dataclass
class Point:
    x: int
async def add(): return await asyncio.sleep(0.001, 3)
def square(x): return x * x
with tempfile.TemporaryFile() as file:
    file.write(b"1")
with multiprocessing.get_context("fork").Pool(2) as pool:
    squares = pool.map(square, [1, 2, 3])
print(asyncio.run(add()), pickle.loads(pickle.dumps(Point(4))), squares)
"""
    outcome = sandbox.run({"kind": "program", "code": code})
    assert outcome.stdout == b"3 Point(x=4) [1, 4, 9]\n", outcome


def test_a_program_gives_the_same_every_time(sandbox: LocalSandbox) -> None:
    program = {"kind": "program", "code": "print(list({str(i) for i in range(99)}))"}
    assert len({sandbox.run(program).stdout for _ in range(4)}) == 1


def test_many_threads_share_it(sandbox: LocalSandbox) -> None:
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        results[number] = sandbox.run(calls(DOUBLE, f"f({number})")).records

    threads = [threading.Thread(target=work, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [{"value": 2 * n}] for n in range(24)}


def test_worker_outlives_the_thread_that_started_it() -> None:
    sandbox = LocalSandbox(workers=1)
    starter = threading.Thread(target=sandbox.run, args=(calls(DOUBLE, "f(1)"),))
    starter.start()
    starter.join()
    before = _workers(sandbox)
    assert sandbox.run(calls(DOUBLE, "f(2)")).records == [{"value": 4}]
    assert _workers(sandbox) == before
    sandbox.close()


CHILDREN = {
    "forgotten": "import os, signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n"
    "    try:\n        if os.fork() == 0: os._exit(0)\n    except OSError: pass",
    "waited for": "import os\nwhile True:\n    if os.fork() == 0:\n        for i in range(30000): pass\n"
    "        os._exit(0)\n    os.wait()",
}


@pytest.mark.parametrize("code", CHILDREN.values(), ids=CHILDREN)
def test_children_that_come_and_go_use_the_time_of_their_job(code: str) -> None:
    """On a busy machine a job gets time back, but not that which its own children took: 1 s had become 5 s."""
    sandbox = LocalSandbox(Limits(wall_s=1), workers=1)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        outcome = sandbox.run({"kind": "program", "code": code})
    finally:
        for process in busy:
            process.kill()
            process.wait()
        sandbox.close()
    assert outcome.ending is Ending.WALL and outcome.ms < 3000, outcome


def test_a_killed_worker_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    sandbox = LocalSandbox(workers=1)
    sandbox.run(calls(DOUBLE, "f(1)"))
    os.killpg(_workers(sandbox)[0], signal.SIGKILL)
    assert sandbox.run(calls(DOUBLE, "f(2)")).records == [{"value": 4}]
    assert "a sandbox died" in caplog.text
    sandbox.close()


DAEMON = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    for number in range(1, 32):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: time.sleep(0.01)
def f(): return os.listdir("/tmp")
"""


@pytest.mark.parametrize("nested", [True, False])
def test_nothing_is_left_behind(nested: bool) -> None:
    """Neither the zygote when it is closed, nor a daemon of a job when the job is over, nor its files."""
    limits = Limits(wall_s=10.625 + nested)  # tells its processes from all others
    sandbox = LocalSandbox(limits, workers=1, nested=nested)
    for _ in range(2):
        outcome = sandbox.run(calls("open(f'/tmp/left', 'x').close()\n" + DAEMON, "f()"))
        assert outcome.records == [{"value": ["l", "left"]}]
        assert len(_alive(f'"wall_s": {limits.wall_s}')) == (2 if nested else 0)  # bubblewrap and the zygote
    sandbox.close()
    assert not _alive(f'"wall_s": {limits.wall_s}')


def test_it_ends_with_the_process_that_uses_it() -> None:
    code = (
        "import os, signal; from rewards.sandbox import Limits, LocalSandbox\n"
        "LocalSandbox(Limits(wall_s=10.375), workers=1).run({'kind': 'program', 'code': ''})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    deadline = time.monotonic() + 10
    while _alive('"wall_s": 10.375') and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive('"wall_s": 10.375')


def _alive(words: str) -> list[str]:
    """Processes with these words in their command line; those that only wait to be buried do not count."""
    found = subprocess.run(["ps", "-eww", "-o", "stat=,cmd="], capture_output=True, text=True)
    return [line for line in found.stdout.splitlines() if words in line and not line.startswith("Z")]


def _workers(sandbox: LocalSandbox) -> list[int]:
    started = [worker._started for worker in sandbox._idle.queue]
    return [s.process.pid for s in started if s is not None]


@pytest.mark.parametrize(("nested", "unsafe", "kind"), [(False, False, "one-shot"), (False, True, "unsafe")])
def test_other_ways_to_run(nested: bool, unsafe: bool, kind: str) -> None:
    sandbox = LocalSandbox(Limits(wall_s=2, memory_mb=128), workers=1, nested=nested, unsafe_local=unsafe)
    assert sandbox.kind == kind
    assert sandbox.run(calls(DOUBLE, "f([1])", "g(1)")).records == [
        {"value": ["l", 1, 1]},
        {"error": "NameError: name 'g' is not defined"},
    ]
    assert sandbox.run({"kind": "program", "code": "print(1)"}).stdout == b"1\n"
    assert sandbox.run({"kind": "program", "code": "while True: pass"}).ending is Ending.WALL
    suite = {"kind": "check", "suite": "assert f(2) == 4", "names": ["f"], "imports": [], "entry": ""}
    assert sandbox.run(suite, {"kind": "serve", "code": DOUBLE, "setup": ""}).records == [{"passed": True}]
    sandbox.close()


def test_without_bubblewrap_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        CodeVerifier()


def test_without_namespaces_it_says_what_to_allow(fake_bwrap: Callable[[str], None]) -> None:
    fake_bwrap("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    with pytest.raises(SandboxError, match=r"No permissions.*apparmor_restrict_unprivileged_userns=0.*unsafe_local"):
        CodeVerifier()


def test_a_sandbox_that_does_not_isolate_is_refused(
    fake_bwrap: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bubblewrap that only runs what it is given: the probe must see that nothing is contained."""
    here = str(Path(__file__).parents[2])
    fake_bwrap(
        f"#!{sys.executable}\nimport os, sys\nat = sys.argv.index('-s')\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[at:-2], {here!r}, sys.argv[-1]])\n"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # nobody would not get at this interpreter
    limits = Limits(memory_mb=1 << 20)  # or all memory of the machine, now the job's, would be too much
    with pytest.raises(SandboxError, match=r"does not isolate: .*outside of /tmp; it can signal \d+ processes"):
        LocalSandbox(limits, nested=False)


@pytest.fixture
def fake_bwrap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a script in the place of bubblewrap."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:

        def put(script: str) -> None:
            bwrap = Path(folder) / "bwrap"
            bwrap.write_text(script)
            for path in (bwrap.parent, bwrap):
                path.chmod(0o755)

        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield put


AS_A_USER = """
import os, sys
from rewards.code import CodeVerifier
from rewards.sandbox import LocalSandbox
from rewards.verdict import Item
assert os.getuid() == 12345
sandbox = LocalSandbox(workers=1)
def run(code, *calls):
    return sandbox.run(dict(kind="calls", code=code, setup="", calls=calls, stop=True))
reach = "[os.path.exists(CANARY), os.path.exists('/proc/1'), os.getuid(), len(os.listdir('/tmp'))]"
outcome = run(f"import os\\nCANARY = {sys.argv[1]!r}", reach)
bomb = run("import os\\nwhile True: os.fork()")
print(sandbox.kind, outcome.records, bomb.ending.value, bomb.records)
"""


@pytest.mark.skipif(not ROOT, reason="all other tests ran as an ordinary user")
def test_as_an_ordinary_user() -> None:
    """The same code started by a user without rights, whose files the sandbox must not see either."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        shutil.copytree(Path(__file__).parents[2] / "rewards", folder / "rewards")
        (folder / "canary").write_text("x")
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        python = f"/mnt/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        script = (
            f"mount --bind {Path(sys.base_prefix).resolve()} /mnt && cd {folder} && exec setpriv --reuid 12345"
            f' --regid 12345 --clear-groups env HOME={folder} {python} -c "$0" {folder}/canary'
        )
        command = ["unshare", "--mount", "sh", "-c", script, AS_A_USER]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("zygote [{'value': ['l', False, False, 1000, 0]}] exited"), done.stdout + done.stderr
    assert "BlockingIOError" in done.stdout


def test_the_filter_knows_both_machines() -> None:
    assert seccomp.build("x86_64") != seccomp.build("aarch64")
    assert max(len(seccomp.build(machine)) // 8 for machine in seccomp.MACHINES) < 4096  # BPF_MAXINSNS
    with pytest.raises(OSError, match="riscv64"):
        seccomp.build("riscv64")


@pytest.mark.parametrize(
    "value",
    [
        0,
        -(2**53),
        2**5000,
        1.5,
        -0.0,
        float("inf"),
        True,
        None,
        "é\ud800\0",
        b"\xff\0",
        1 + 2j,
        [],
        (1, [2, {3, (4,)}]),
        frozenset({1}),
        {1: {"a": None}, (2, 3): []},
    ],
)
def test_values_survive(value: object) -> None:
    found = values.loads(values.dumps(value))
    assert type(found) is type(value) and found == value and repr(found) == repr(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nul",
        "{}",
        "[]",
        '["x"]',
        '["i",1]',
        '["i","z"]',
        '["f","1"]',
        '["s",["l"]]',
        '["d",[1]]',
        "NaN",
        '["b","%"]',
        '["c",1]',
        "[" * 10**6,
        '["l",' * 500 + "1" + "]" * 500,
        "9" * 5000,
        '["t",["s",["d",[["l"],1]]]]',
    ],
)
def test_what_encodes_nothing_is_refused(text: str) -> None:
    with pytest.raises(values.RefusedError):
        values.loads(text)


class Fusion(BaseHTTPRequestHandler):
    """A server with SandboxFusion's API that runs programs for real; it fails for one that says so."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/run_code" and request["language"] == "python"
        if "the server fails" in request["code"]:
            answer: dict[str, Any] = {"status": "SandboxError", "message": "no container", "run_result": None}
        else:
            answer = self._run(request)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, "-c", request["code"]]
        try:
            done = subprocess.run(
                command, input=request["stdin"], capture_output=True, text=True, timeout=request["run_timeout"]
            )
        except subprocess.TimeoutExpired:
            return {"status": "Failed", "message": "", "run_result": {"status": "TimeLimitExceeded"}}
        result = {"status": "Finished", "return_code": done.returncode, "stdout": done.stdout, "execution_time": 0.1}
        return {"status": "Success" if done.returncode == 0 else "Failed", "message": "", "run_result": result}

    def log_message(self, format: str, *args: Any) -> None:
        logging.getLogger(__name__).debug(format, *args)


@pytest.fixture(scope="module")
def fusion() -> Iterator[CodeVerifier]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Fusion) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield CodeVerifier(backend="sandbox_fusion", url=url, timeout=3, workers=2)
        server.shutdown()


ADD = {"tests": ["assert add(1, 2) == 3", "assert abs(add(1.0, 2)) < 4"]}
STDIO = {"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]}


@pytest.mark.parametrize(
    ("code", "gold", "status"),
    [
        ("def add(a, b): return a + b", ADD, Status.CORRECT),
        ("def add(a, b): return a - b", ADD, Status.WRONG),
        ("def add(a, b):\n    print('noise')\n    return a + b", ADD, Status.CORRECT),
        ("print('{\"value\":3}')\nimport os; os._exit(0)", ADD, Status.WRONG),
        ("print(sum(map(int, input().split())))", STDIO, Status.CORRECT),
        ("print(3)", STDIO, Status.WRONG),
        ("while True: pass", STDIO, Status.TIMEOUT),
        ("# the server fails\nprint(3)", STDIO, Status.INFRA),
        ("f = 1", {"check": "def check(c): assert c() == 1", "entry": "f"}, Status.INFRA),
    ],
)
def test_sandbox_fusion(fusion: CodeVerifier, code: str, gold: dict[str, Any], status: Status) -> None:
    (verdict,) = fusion.verify([Item(f"```python\n{code}\n```", gold)])
    assert verdict.status is status, verdict


def test_remote_sandboxes_are_never_a_silent_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SandboxError, match="needs the url"):
        open_sandbox("sandbox_fusion")
    with pytest.raises(SandboxError, match="local, cluster, sandbox_fusion, e2b"):
        open_sandbox("docker")
    monkeypatch.setitem(sys.modules, "e2b", None)
    with pytest.raises(SandboxError, match=r"pip install 'e2b>=2\.0'"):
        open_sandbox("e2b")


def test_a_server_that_is_away_is_not_the_models_fault() -> None:
    verifier = CodeVerifier(backend="sandbox_fusion", url="http://127.0.0.1:9", workers=1)
    (verdict,) = verifier.verify([Item("```python\nprint(3)\n```", STDIO)])
    assert (verdict.status, verdict.score) == (Status.INFRA, None)
