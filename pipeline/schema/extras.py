"""Packages that only some recipes need, and how each is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires

NAMED_OTHERWISE = {
    "azureml": "azureml-mlflow",
    "optimi": "torch-optimi",
    "mlflow": "mlflow-skinny",
    "lm_eval": "lm-eval",
}
"""Modules whose distribution has another name, hyphens aside."""


def install(package: str) -> str:
    """The command that installs a package, in the versions that zero2r1 works with where it says so.

    Args:
        package: its module, such as `liger_kernel`, or its distribution.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    name = canonicalize_name(NAMED_OTHERWISE.get(package, package))
    try:
        known = [Requirement(line) for line in requires("zero2r1") or []]
    except PackageNotFoundError:  # run from a checkout that nobody installed
        known = []
    versions = next((str(one.specifier) for one in known if canonicalize_name(one.name) == name), "")
    return f"pip install '{name}{versions}'" if versions else f"pip install {name}"
