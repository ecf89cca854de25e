"""The code reward on the cores of all hosts: two hosts of a real Ray cluster on this machine, one of which is lost."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.checks.needs import unmet
from pipeline.recipe import load
from rewards import Item
from rewards.code import CodeVerifier
from rewards.sandbox import Limits, SandboxError, open_sandbox
from rewards.sandbox.cluster import ClusterSandbox
from rewards.sandbox.worker import Ending
from rewards.verdict import Status
from tests.cluster.conftest import WITH_GPU
from tests.pipeline.test_runner import until

JOBS = 1000
BEFORE = 50
"""Jobs that the second host has begun at least when it is lost."""


@pytest.fixture
def verifier(two_hosts: Any) -> Iterator[CodeVerifier]:
    """A code reward on the cluster; its second host is there again afterwards."""
    import ray

    made = CodeVerifier(backend="cluster", url=two_hosts.address, timeout=30)
    yield made
    made.close()
    ray.shutdown()
    if not two_hosts.worker_nodes:
        two_hosts.add_node(**WITH_GPU)


def asked(number: int) -> Item:
    """A program of its own, which is right where the number is even."""
    code = f"print(int(input()) + {number if number % 2 == 0 else -1})"
    return Item(f"```python\n{code}\n```", {"inputs": ["1"], "outputs": [str(number + 1)]})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_jobs_use_all_hosts_and_survive_the_loss_of_one(verifier: CodeVerifier, two_hosts: Any) -> None:
    """Not one verdict differs, or is missing, because a host was lost in the middle."""
    import ray

    sandbox = verifier._sandbox
    assert isinstance(sandbox, ClusterSandbox)
    (lost,) = two_hosts.worker_nodes
    (other,) = [host for host in sandbox.hosts if lost.node_id[:6] in host.name]
    (stays,) = [host for host in sandbox.hosts if host is not other]
    assert sandbox.workers == 4
    verdicts: list[Any] = []
    work = threading.Thread(target=lambda: verdicts.extend(verifier.verify([asked(at) for at in range(JOBS)])))
    work.start()
    until(lambda: ray.get(other.actor.runs.remote()) >= BEFORE, "the second host to be at work")
    assert ray.get(stays.actor.runs.remote()) > 0
    lost.kill_raylet(check_alive=False)
    two_hosts.worker_nodes.remove(lost)
    work.join()
    assert [verdict.score for verdict in verdicts] == [float(number % 2 == 0) for number in range(JOBS)]
    assert {verdict.status for verdict in verdicts} == {Status.CORRECT, Status.WRONG}
    more = verifier.verify([asked(JOBS + at) for at in range(sandbox.workers)])  # each host is asked at least once more
    assert [verdict.score for verdict in more] == [1.0, 0.0, 1.0, 0.0]
    assert other.lost and not stays.lost

    ray.kill(stays.actor)
    (verdict,) = verifier.verify([asked(2 * JOBS)])
    assert (verdict.status, verdict.score) == (Status.INFRA, None), "nothing is paid where no host is left"
    assert sandbox.run({"kind": "program", "code": "print(1)", "stdin": ""}).ending is Ending.BROKEN


@pytest.mark.parametrize(("ranks", "workers"), [("2", 2), ("16", 2)])
def test_ranks_divide_the_cores_among_them(
    two_hosts: Any, monkeypatch: pytest.MonkeyPatch, ranks: str, workers: int
) -> None:
    """Two cores on each of two hosts."""
    import ray

    monkeypatch.setenv("WORLD_SIZE", ranks)
    sandbox = open_sandbox("cluster", Limits(), url=two_hosts.address)
    try:
        assert sandbox.workers == workers
        told = sandbox.run({"kind": "program", "code": "print(6 * int(input()))", "stdin": "7"})
        assert (told.ending, told.stdout) == (Ending.EXITED, b"42\n")
    finally:
        sandbox.close()
        ray.shutdown()


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZERO2R1_CLUSTER", raising=False)
    with pytest.raises(SandboxError, match=re.escape("start the run with --cluster, or give the cluster's address")):
        open_sandbox("cluster", Limits())


@pytest.mark.parametrize("place", ["reward", "task"])
def test_a_run_without_a_cluster_is_refused_before_it_starts(tmp_path: Path, place: str) -> None:
    """Whether a reward of its own says so, or the grader of a task."""
    options = {"backend": "cluster"}
    graded = {"grader_options": options} if place == "task" else {}
    task: Any = {"use": "mbpp", "options": {"path": "rows.jsonl", **graded}}
    rewards: list[Any] = [{"use": "code", "options": options}] if place == "reward" else ["accuracy"]
    stage = {"kind": "grpo", "model": "some/model", "tasks": [task], "rewards": rewards}
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "stages": {"zero": stage}}))
    told = [line for line in unmet(load(tmp_path / "recipe.yaml"), ["zero"]) if "backend" in line]
    where = {"reward": "rewards.0.options.backend", "task": "tasks.0.options.grader_options.backend"}[place]
    assert told == [
        f"stages.zero.{where}: runs programs on the hosts of a Ray cluster: run it with --cluster, or leave it out"
    ]
    assert not [line for line in unmet(load(tmp_path / "recipe.yaml"), ["zero"], here=False) if "backend" in line]
