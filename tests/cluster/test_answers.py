"""What hosts of a real cluster answer to a runner: when one is lost, cannot start a stage, or has not been asked."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster import hosts
from pipeline.cluster.agent import Agent, Part
from pipeline.cluster.attempt import Attempt


def test_a_host_that_is_lost_while_hosts_are_compared_is_none_that_differs(
    two_hosts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a rack, say, whose power fails: the runner on it is started again at once, and its other host is gone."""
    import ray

    (tmp_path / "recipe.yaml").touch()
    ray.init(address=two_hosts.address, log_to_driver=False)
    try:
        lost = replace(hosts.up()[0], node="a" * 56, name="gone")  # as a list says that was made before
        assert hosts.check([lost], tmp_path, tmp_path / "recipe.yaml") == []
        (told,) = [record.getMessage() for record in caplog.records if record.name == "pipeline.cluster.hosts"]
        assert told == f"host gone ({lost.address}) was lost while hosts were compared: it has no part"
    finally:
        ray.shutdown()


def test_a_host_that_cannot_start_a_stage_says_why(two_hosts: Any, tmp_path: Path) -> None:
    """It is not lost: a folder that has gone, say, or a disk that is full."""
    import ray

    ray.init(address=two_hosts.address, log_to_driver=False)
    try:
        agent = ray.remote(Agent).remote(10.0)
        place = ray.get(agent.place.remote())
        part = Part(tmp_path / "job.json", tmp_path / "gone" / "log.txt", {}, "", None, tmp_path, tmp_path, None, None)
        attempt = Attempt(tmp_path, [agent], [place], [part], 10.0)
        assert attempt.wait(60) != 0
        assert attempt.lost.startswith(f"cannot start on host {place.name}: FileNotFoundError: ")
        assert str(part.log) in attempt.lost and "lost host" not in attempt.lost
    finally:
        ray.shutdown()


def test_a_runner_that_was_suspended_does_not_blame_its_hosts(
    two_hosts: Any, waiting: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl-Z, or a laptop's lid: its agents have ended the stage, as they must."""
    import ray

    late = SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=lambda _: time.sleep(4))
    monkeypatch.setattr("pipeline.cluster.attempt.time", late)
    ray.init(address=two_hosts.address, log_to_driver=False)
    try:
        agent, folder = ray.remote(Agent).remote(2.0), waiting.parent
        place = ray.get(agent.place.remote())
        part = Part(waiting, folder / "log.txt", {}, "", None, folder, folder, None, None)
        attempt = Attempt(folder, [agent], [place], [part], 2.0)
        assert attempt.wait(60) != 0
        assert re.fullmatch(
            rf"was ended by host {place.name}: this runner stood still for \d+ s, and launch.deadline is 2",
            attempt.lost,
        )
    finally:
        ray.shutdown()
