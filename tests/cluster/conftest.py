"""A real Ray cluster of two hosts on this machine, shared by the tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

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
