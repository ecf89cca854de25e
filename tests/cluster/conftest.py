"""A real Ray cluster of two hosts on this machine, shared by the tests of this folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.test_runner import PLAY

HOST = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
WITH_GPU = {**HOST, "num_gpus": 1}
"""Ray takes the number at its word."""


@pytest.fixture(scope="session")
def two_hosts() -> Iterator[Any]:
    """The cluster, whose second host has a GPU; in a folder with a short name, since names of sockets are short."""
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="z", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster()
        try:
            for host in (HOST, WITH_GPU):
                cluster.add_node(**host)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Path]:
    """The job of a stage that waits for a sign that never comes."""
    (tmp_path / "play.py").write_text(PLAY)
    task = {"use": "play.py:Play", "options": {"name": "one"}}
    config = {"kind": "evaluate", "model": "no/model", "tasks": [task]}
    job = {"stage": "one", "config": config, "inputs": {}, "base": str(tmp_path), "tasks": {}, "seed": 0}
    (tmp_path / "job.json").write_text(json.dumps(job))
    yield tmp_path / "job.json"
    (tmp_path / "one.go").touch()
