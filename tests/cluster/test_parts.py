"""The parts of a run on a cluster that no cluster is needed for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.checks.launch import accelerate_config
from pipeline.cluster import attempt, hosts, slots
from pipeline.cluster.agent import OWN, Part, Rendezvous, command, interface, portable
from pipeline.cluster.attempt import HOSTS, Fence, leave
from pipeline.cluster.hosts import Asked, ClusterError, Facts, Host
from pipeline.files.lease import this_host
from pipeline.recipe import RecipeError, load
from pipeline.runner import graph, launcher, ranks
from pipeline.runner.graph import files_of
from pipeline.runner.ranks import Failure
from pipeline.runner.runner import RunError, execute
from pipeline.runner.starting import job_of
from tests.hub import made_whole
from tests.pipeline.test_runner import PLAY, alive, until
from tests.stages.test_publishing import Told

SFT = {"kind": "sft", "model": "m", "data": ["rows.jsonl"]}
GRPO = {"kind": "grpo", "model": "m", "tasks": ["gsm8k"]}
SCORE = {"kind": "evaluate", "model": "m", "tasks": ["gsm8k"]}
TWO = {"accelerate": "ddp", "nodes": 2}
WIDE = {"rollout": {"engine_options": {"tensor_parallel_size": 8, "pipeline_parallel_size": 2}}}
SILENT = """
import sys, time
from pathlib import Path
from pipeline.cluster.agent import Agent, Part

job = Path(sys.argv[1])
agent = Agent(deadline=2.0)
agent.start(Part(job, job.with_name("log.txt"), {}, "", None, job.parent, job.parent, None, None))
time.sleep(600)
"""


def recipe(folder: Path, stages: dict[str, Any], **header: Any) -> Any:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", **header, "stages": stages}))
    return load(folder / "recipe.yaml", [])


def test_an_agent_that_hears_nothing_ends_its_stage_and_itself(waiting: Path) -> None:
    """Its runner is gone, or the network between them."""
    agent = subprocess.Popen([sys.executable, "-c", SILENT, str(waiting)])
    try:
        sign = waiting.with_name("one.started")
        until(lambda: sign.exists() or agent.poll() is not None, "the stage, or the deadline")
        assert agent.wait(60) == 1
        for process in map(int, sign.read_text().split() if sign.exists() else ()):
            until(lambda: not alive(process), "the stage to end")  # noqa: B023
    finally:
        agent.kill()


def part(folder: Path, **changes: Any) -> Part:
    given = Part(folder / "job.json", folder / "log.txt", {}, "0,1", "ddp", folder, folder, 2, None)
    return replace(given, **changes)


def test_accelerate_starts_the_ranks_of_each_host(tmp_path: Path) -> None:
    """As accelerate itself reads it: nobody but it knows what its options come to."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    for at in range(3):
        words = command(part(tmp_path, meeting=Rendezvous(3, at, "10.0.0.1", 1234)), 7)
        launcher = words.index("pipeline.runner.launcher")
        assert words[1:4] == ["-m", "rewards.parent", "7"] and words[-3:] == ["pipeline.runner.worker", *words[-2:]]
        given = launch_command_parser().parse_args(words[launcher + 2 :])
        told = _validate_launch_command(given)[0]
        prepare_multi_gpu_env(told)
        assert (told.nnodes, told.node_rank, told.nproc_per_node) == ("3", at, "2")
        assert (told.master_addr, told.master_port, told.rdzv_backend) == ("10.0.0.1", "1234", "static")
    alone = command(part(tmp_path, accelerate=None, ranks=None), 7)
    assert alone == [sys.executable, "-m", "pipeline.runner.worker", str(tmp_path / "job.json"), "7"]
    assert str(accelerate_config("ddp", tmp_path)) in command(part(tmp_path), 7)


def test_a_host_keeps_what_is_its_own() -> None:
    runner = {**dict.fromkeys(OWN, "runner's"), "RAY_ADDRESS": "runner's", "HF_TOKEN": "t", "PATH": "p"}
    assert portable(runner, {}) == {"HF_TOKEN": "t", "PATH": "p"}
    assert portable(runner, {"TMPDIR": "recipe's"}).keys() == {"HF_TOKEN", "PATH", "TMPDIR"}
    assert interface("127.0.0.1", {"NCCL_SOCKET_IFNAME": "eth7"}) == {"GLOO_SOCKET_IFNAME": "lo"}


@pytest.mark.parametrize(
    ("elsewhere", "over", "waits"),
    [(True, False, True), (True, True, False), (False, False, False)],
    ids=["lost", "ended", "this-kernel"],
)
def test_a_stage_waits_for_hosts_that_are_out_of_reach(
    tmp_path: Path, elsewhere: bool, over: bool, waits: bool
) -> None:
    """For as long as their agents may go on; those of this kernel hold the stage's lock instead."""
    fence = Fence()
    assert fence.left(tmp_path) == (0.0, ""), "it has run nowhere"
    place = {"name": "far", "boot": "another" if elsewhere else this_host().boot}
    said = {"attempt": "first", "hosts": [place], "deadline": 0.5, "over": over}
    (tmp_path / HOSTS).write_text(json.dumps(said))
    left, whose = fence.left(tmp_path)
    assert (left > 0, whose) == (waits, "far" if waits else "")
    if waits:
        time.sleep(0.5)
        assert fence.left(tmp_path) == (0.0, "far")
        (tmp_path / HOSTS).write_text(json.dumps({**said, "attempt": "second"}))
        assert fence.left(tmp_path)[0] > 0.0, "of the next attempt"


def test_a_run_that_leaves_its_cluster_waits_for_hosts_that_are_out_of_reach(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on without `--cluster`: no attempt there may write on, and `status` names its hosts no more."""
    leave(tmp_path)
    said = {"attempt": "a", "hosts": [{"name": "far", "boot": "another"}], "deadline": 1.0, "over": False}
    (tmp_path / HOSTS).write_text(json.dumps(said))
    before = time.monotonic()
    leave(tmp_path)
    assert time.monotonic() - before >= 1.0
    assert "waiting 1 s: processes of an attempt on a cluster may still run on far" in caplog.text
    assert not (tmp_path / HOSTS).exists()


@pytest.mark.parametrize(
    "record", ["", '{"att', "[]", '{"hosts": ["far"], "deadline": 5}', '{"hosts": [{"name": "far"}], "deadline": 5}']
)
def test_a_record_of_hosts_that_cannot_be_read_stops_neither_status_nor_the_next_attempt(
    tmp_path: Path, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is damaged, or of another version. The attempt may still run somewhere: the next one waits."""
    (tmp_path / HOSTS).write_text(record)
    assert [host["name"] for host in attempt.read(tmp_path)["hosts"]] == ["an unknown host"]
    left, whose = Fence().left(tmp_path)
    assert 0 < left <= 60 and whose == "an unknown host"
    (tmp_path / hosts.HOSTS).write_text(record or "[{}]")
    told = hosts.recorded(tmp_path)
    assert told == [] and (record == "[]" or "the next run on a cluster writes it anew" in caplog.text)
    hosts.record([BIG, BARE], tmp_path)
    assert hosts.recorded(tmp_path) == [BIG, BARE]


def facts(**changes: Any) -> Facts:
    return replace(Facts(True, True, {"Python": "3.11.7", "torch": "2.13.0"}, 1000.0), **changes)


def test_checkouts_of_one_version_differ_by_their_files(tmp_path: Path) -> None:
    """Two hosts, each with a checkout of its own."""
    for host in ("a", "b"):
        for name in ("pipeline/rollout/engine.py", "rewards/math.py", "configs/accelerate/ddp.yaml"):
            (tmp_path / host / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / host / name).write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert hosts._code(a) == hosts._code(b)
    (b / "rewards/__pycache__").mkdir()
    (b / "rewards/__pycache__/math.pyc").write_text("compiled there")
    assert hosts._code(a) == hosts._code(b)
    for change in (lambda: (b / "rewards/math.py").write_text("changed"), lambda: (a / "pipeline/new.py").touch()):
        change()
        assert hosts._code(a) != hosts._code(b)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (facts(), []),
        (facts(sees=False, writes=False), ["b: does not see", "set --runs"]),
        (facts(writes=False), ["b: cannot write in"]),
        (facts(same={"Python": "3.11.7", "torch": "2.11.0"}), ["b: torch is 2.11.0, and on", "2.13.0"]),
        (facts(same={"Python": "3.11.7"}), ["b: torch is None"]),
        (facts(time=1093.0), ["b: its clock is 90 s ahead of"]),
        (facts(time=903.0), ["b: its clock is 95 s behind"]),
        ("has not answered for 120 s", ["b (10.0.0.2): has not answered for 120 s"]),
    ],
)
def test_a_host_that_differs_is_named_with_the_difference(tmp_path: Path, said: Any, words: list[str]) -> None:
    host = Host("n", "b", "10.0.0.2", 8, 4)
    found = list(hosts.faults(host, said, facts(), tmp_path, before=998.0, after=1003.0))
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_a_folder_that_is_not_shared_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "SEEN_SECONDS", 0.1)
    (tmp_path / "token").write_text("yes")
    (tmp_path / "recipe.yaml").write_text("name: r")
    good = hosts.facts(Asked(tmp_path / "token", "yes", tmp_path / "recipe.yaml"))
    assert good.sees and good.writes and good.same["torch"]
    stale = hosts.facts(Asked(tmp_path / "token", "another run's", tmp_path / "recipe.yaml"))
    gone = hosts.facts(Asked(tmp_path / "nowhere" / "token", "yes", tmp_path / "other.yaml"))
    assert not (stale.sees or gone.sees or gone.writes)
    assert gone.same[str(tmp_path / "other.yaml")] == "missing"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["recipe.yaml", "token"]


def test_files_that_stages_read_are_compared_with_those_of_other_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts may have copies: rewards or rows that differ would be wrong numbers, and what is missing fails late."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.py").write_text(PLAY)
    made_whole(tmp_path / "no" / "model")
    task = {"use": "play.py:Play", "options": {"name": "one"}}
    found = recipe(tmp_path, {"a": SFT, "b": {"kind": "evaluate", "model": "no/model", "tasks": [task]}})
    read = [tmp_path / path for stage in found.stages.values() for path in files_of(found, stage)]
    assert {path.name for path in read} == {"rows.jsonl", "play.py", "model"}
    (tmp_path / "token").write_text("yes")
    asked = Asked(tmp_path / "token", "yes", tmp_path / "recipe.yaml", tuple(read))
    here = hosts.facts(asked)
    (weights,) = (tmp_path / "no" / "model").glob("*.safetensors")
    os.utime(weights, (0, 0))  # a copy has another time
    assert hosts.facts(asked).same == here.same
    (tmp_path / "play.py").write_text(PLAY.replace("bare", "full"))
    (tmp_path / "rows.jsonl").unlink()
    there = hosts.facts(asked)
    told = list(hosts.faults(Host("n", "b", "10.0.0.2", 8, 4), there, here, tmp_path, there.time, there.time))
    assert len(told) == 2
    assert any(line.startswith(f"b: {tmp_path}/rows.jsonl is missing, and on ") for line in told)
    assert any(line.startswith(f"b: {tmp_path}/play.py is ") and line.endswith(": make them alike") for line in told)


def test_a_further_host_without_ray_says_what_it_has_otherwise_before_a_rank_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts.yaml").write_text("num_machines: 2\nnum_processes: 4\n")
    several, one = {"accelerate": "hosts.yaml"}, {"accelerate": "ddp"}
    found = recipe(tmp_path, {"a": {**SFT, "launch": several}, "b": {**SFT, "launch": one}})
    jobs = {name: job_of(node, found, {}, [], None, tmp_path) for name, node in graph.build(found).items()}
    assert jobs["b"].alike == {}, "which asks for nothing"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "job.json").write_text(json.dumps(asdict(jobs["a"])))
    assert launcher.differences(scratch) == []
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')
    (scratch / "job.json").write_text(json.dumps(asdict(replace(jobs["a"], alike={**jobs["a"].alike, "torch": "2.0"}))))
    monkeypatch.setattr(sys, "argv", ["launcher", str(scratch), "--machine_rank", "1", "worker.py"])
    with pytest.raises(SystemExit) as ended:
        launcher.main()
    assert ended.value.code == 78, "as join.sh knows it"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.endswith(": make them alike") for line in lines)
    assert f"{socket.gethostname()}: torch is " in lines[0] and ", and on the first host 2.0: " in lines[0]
    assert f"{tmp_path}/rows.jsonl is " in lines[1]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ray://10.0.0.1:10001", "is neither auto nor the HOST:PORT"),
        ("10.0.0.1", "is neither auto nor the HOST:PORT"),
        ("127.0.0.1:1", "nobody answers there"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_one_line(address: str, why: str) -> None:
    with pytest.raises(ClusterError, match=why) as error, hosts.connected(address):
        pass
    assert "\n" not in str(error.value)


def test_a_run_keeps_its_lease_while_it_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    """Ray is given another current folder for that, and the run's own path may be relative."""
    import ray
    from ray import _raylet

    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.py").write_text(PLAY)
    made_whole(tmp_path / "no" / "model")
    task = {"use": "play.py:Play", "options": {"name": "one"}}
    found = recipe(tmp_path, {"one": {"kind": "evaluate", "model": "no/model", "tasks": [task]}})

    def init(**_: Any) -> None:
        lease = tmp_path / "runs" / "r" / ".lease" / "000001"
        until(lambda: b"beat 000000000002" in lease.read_bytes(), "two beats")
        raise ConnectionError("nobody there")

    monkeypatch.setattr(_raylet, "GcsClient", lambda **_: None)
    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(RunError, match="nobody there"):
        execute(found, Path("runs/r"), Told(), cluster=f"127.0.0.1:{free_port}")


def test_the_missing_package_comes_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = hosts.importlib.util.find_spec
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    with pytest.raises(ClusterError, match=r"needs the package ray, .*: pip install '?ray"), hosts.connected("auto"):
        pass
    from pipeline.checks import needs

    told = needs.unmet(recipe(tmp_path, {"s": {**SFT, "launch": TWO}}), ["s"], here=False)
    assert any(line.startswith("stages.s.launch.nodes: needs the package ray") for line in told)


def test_several_hosts_want_a_cluster(tmp_path: Path) -> None:
    from pipeline.checks import needs

    (line,) = needs.unmet(recipe(tmp_path, {"s": {**SFT, "launch": TWO}}), ["s"])
    assert line == "stages.s.launch.nodes: asks for 2 hosts, and this is one: run it with --cluster, or leave it out"


BIG, SMALL, BARE = (
    Host("1", "a", "10.0.0.1", 64, 8),
    Host("2", "b", "10.0.0.2", 64, 4),
    Host("3", "c", "10.0.0.3", 4, 0),
)


@pytest.mark.parametrize(
    ("stage", "there", "expected", "refused"),
    [
        ({**SFT, "launch": {**TWO, "gpus": 8}}, [BIG, SMALL], (2, 4), ""),
        ({**SFT, "launch": {**TWO, "gpus": 16}}, [BIG, BIG], (2, 8), ""),
        ({**SFT, "launch": {**TWO, "gpus": 8}}, [BIG], (2, 4), ""),  # what is left takes both
        ({**SFT, "launch": {**TWO, "gpus": 16}}, [BIG, SMALL], (2, 8), "needs 2 × 8 GPUs, each on one host, and a has"),
        ({**SFT, "launch": {**TWO, "gpus": "all"}}, [SMALL, BIG, BARE], (2, 4), ""),
        ({**SFT, "launch": TWO}, [BARE, BARE], (2, 0), ""),
        ({**SFT, "launch": TWO}, [replace(BARE, cpus=1)], (2, 0), "needs 2 × a core, each on one host"),
        (SFT, [BIG, SMALL], (1, 1), ""),
        (SFT, [BARE], (1, 0), ""),
        ({**SFT, "launch": {"gpus": 1}}, [BARE], (1, 1), "needs 1 GPU on one host, and c has 0 GPUs and 4 cores"),
        ({**SCORE, "launch": {"gpus": 4}}, [SMALL], (1, 4), ""),
        ({**SCORE, **WIDE}, [BIG, BIG], (1, 16), "a has 8 GPUs and 64 cores: an engine over several hosts is a server"),
        ({"kind": "import_model", "model": "m"}, [BIG], (1, 0), ""),
        ({**SFT, "launch": {"env": {"CUDA_VISIBLE_DEVICES": "3"}}}, [BIG], (1, 4), "Ray chooses them: set launch.gpus"),
    ],
)
def test_a_stage_takes_its_part_of_each_host(
    tmp_path: Path, stage: dict[str, Any], there: list[Host], expected: tuple[int, int], refused: str
) -> None:
    found = recipe(tmp_path, {"s": stage})
    told = list(slots.unmet(found, ["s"], there))
    assert len(told) == bool(refused) and all(refused in line for line in told)
    if "Ray chooses" not in refused:
        assert slots.share(found.stages["s"], tmp_path, there) == expected


@pytest.mark.parametrize(
    ("stage", "where", "why"),
    [
        ({**SFT, "launch": {"nodes": 2}}, "launch.nodes", "several hosts need launch.accelerate"),
        (
            {"kind": "import_model", "model": "m", "launch": {"nodes": 2}},
            "launch.nodes",
            "import_model runs on one host",
        ),
        (
            {**SCORE, "rollout": {"engine_options": {"tensor_parallel_size": 4}}, "launch": {"nodes": 2, "gpus": 4}},
            "launch.gpus",
            "2 GPUs of each host do not divide into engines of 4: an engine over several hosts is a server",
        ),
        ({**SFT, "launch": {**TWO, "gpus": 5}}, "launch.gpus", "5 GPUs do not divide among 2 hosts"),
        (
            {**GRPO, "rollout": {"process": {"devices": [4]}}, "launch": {**TWO, "gpus": 8}},
            "devices",
            "names GPU 4 of the 4 that the stage has",
        ),
    ],
)
def test_hosts_that_a_stage_cannot_use_are_refused_with_the_recipe(
    tmp_path: Path, stage: dict[str, Any], where: str, why: str
) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(tmp_path, {"s": stage})
    assert where in str(error.value) and why in str(error.value)


def test_one_line_scales_all_stages_of_a_recipe(tmp_path: Path) -> None:
    """One that answers held-out problems alone, or imports, runs on one host."""
    stages = {"import": {"kind": "import_model", "model": "m"}, "train": SFT, "score": SCORE}
    found = recipe(tmp_path, stages, launch={**TWO, "gpus": 16}).stages
    assert slots.share(found["import"], tmp_path, [BIG, BIG]) == (1, 0)
    assert slots.share(found["train"], tmp_path, [BIG, BIG]) == (2, 8)
    assert slots.share(found["score"], tmp_path, [BIG, BIG]) == (2, 8)
    assert slots.share(found["score"], tmp_path, [BIG]) == (1, 8), "what is sampled depends on no number of hosts"


def test_a_rank_that_was_killed_is_told_from_those_that_lost_it(tmp_path: Path) -> None:
    """Each host's launcher sees its own ranks alone; the one whose partner is gone may end first."""
    ranks.report(tmp_path, RuntimeError("Connection closed by peer"))
    ranks.first(tmp_path, Failure(0, 1.0, "RuntimeError: Connection closed by peer"), 0)
    ranks.first(tmp_path, Failure(1, 2.0, signal=signal.SIGKILL.name), 1)
    found = ranks.failure(tmp_path)
    assert found is not None and (found.rank, found.signal) == (1, "SIGKILL")
    ranks.clear(tmp_path)
    assert ranks.failure(tmp_path) is None and not any(tmp_path.iterdir())
