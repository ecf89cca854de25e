"""A sandbox for programs that a model wrote: isolated, limited, and proven so before it is used.

>>> sandbox = open_sandbox()
>>> sandbox.run({"kind": "program", "code": "print(6 * int(input()))", "stdin": "7"}).stdout
b'42\\n'
"""

from __future__ import annotations

from rewards.sandbox.bubblewrap import SandboxError
from rewards.sandbox.inside.jail import Limits
from rewards.sandbox.pool import LocalSandbox, Sandbox
from rewards.sandbox.worker import Ending, Outcome

__all__ = ["Ending", "Limits", "LocalSandbox", "Outcome", "Sandbox", "SandboxError", "open_sandbox"]


def open_sandbox(
    backend: str = "local",
    limits: Limits | None = None,
    workers: int | None = None,
    url: str = "",
    unsafe_local: bool = False,
) -> Sandbox:
    """A sandbox that is known to isolate.

    Args:
        backend: `local` (bubblewrap), `cluster` (that of every host of a Ray cluster), `sandbox_fusion` (a server at
            `url`) or `e2b`.
        limits: what a job may use.
        workers: jobs at one time; by default the cores of this process, or 16 requests to a remote. On each host of a
            cluster, whose cores are those that Ray may give away.
        url: address of a SandboxFusion-compatible server, or of a cluster that is not the run's own.
        unsafe_local: with `local`, run programs bare; never the default, whatever is missing.

    Raises:
        SandboxError: it cannot be had; the message says what to install or to configure.
    """
    limits = limits or Limits()
    if backend == "local":
        return LocalSandbox(limits, workers, unsafe_local)
    if backend == "cluster":
        from rewards.sandbox.cluster import ClusterSandbox

        return ClusterSandbox(url, limits, workers)
    from rewards.sandbox import remote

    if backend == "sandbox_fusion":
        return remote.SandboxFusion(url, limits, workers)
    if backend == "e2b":
        return remote.E2B(limits, workers)
    raise SandboxError(f"there is no backend {backend!r}; it is one of local, cluster, sandbox_fusion, e2b")
