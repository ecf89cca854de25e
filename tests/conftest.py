"""Fixtures that several areas share."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub import Hub

ROOT = Path(__file__).resolve().parent.parent
INTEGRATION = (
    "chain",
    "cluster",
    "durability",
    "house",
    "model",
    "pipeline/test_plugin_from_wheel.py",
    "pipeline/test_runner.py",
    "report/test_browser.py",
    "report/test_page.py",
    "rewards/test_audit.py",
    "rewards/test_code.py",
    "rewards/test_judge.py",
    "rewards/test_math_hostile.py",
    "rewards/test_pool.py",
    "rewards/test_preference.py",
    "rewards/test_process.py",
    "rewards/test_sandbox.py",
    "rewards/test_sandbox_attacks.py",
    "rollout",
    "search/test_writer.py",
    "stages",
    "tasks/test_code_tasks.py",
    "tasks/test_end_to_end.py",
    "tasks/test_many_rows.py",
    "tasks/test_reasoning_gym.py",
    "tracking",
    "training",
)
"""Tests that start processes, browsers or sandboxes, or that train a model; the others are unit tests."""
LONGEST = (
    "chain/test_chain.py",
    "cluster/test_runs.py",
    "durability/test_kills_and_power_cuts.py",
    "durability/test_damaged_files.py",
    "stages/test_distributed.py",
    "stages/test_resume.py",
    "rollout/test_vllm_process.py",
    "rollout/test_vllm_serve.py",
    "rollout/test_vllm_models.py",
    "rollout/test_vllm_training.py",
    "rollout/test_vllm_steps.py",
    "rollout/test_vllm_restart.py",
    "training/test_packing.py",
    "training/test_ranks.py",
    "training/test_collapse_ranks.py",
    "training/test_rollouts.py",
    "training/test_trainer_fields.py",
    "training/test_efficiency.py",
)
"""Files that take minutes, which come first: a worker is given whole files, and none is to begin a long one last."""

# Workers and the processes that they start share a few cores. By default each would have a thread for every core, which
# spins while it waits for work: with small models that takes more than twice the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `INTEGRATION`, and put the longest files first."""
    folder = Path(__file__).resolve().parent
    places = {item.nodeid: item.path.relative_to(folder).as_posix() for item in items}
    for item in items:
        place = places[item.nodeid]
        if place in INTEGRATION or place.partition("/")[0] in INTEGRATION:
            item.add_marker("integration")
    rank = {place: number for number, place in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(places[item.nodeid], len(LONGEST)))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def free_port() -> int:
    """A port at which the processes of a test can meet."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """An empty hub on loopback, which this process asks instead of the real one, and an empty cache."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.file_download import hf_hub_url  # noqa: F401 - reads the constants when it is called

    from pipeline.files.hub import _commit

    cache = tmp_path_factory.mktemp("hub")
    with Hub() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", made.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(datasets.config, "HF_ENDPOINT", made.address)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        _commit.cache_clear()
        yield made
        _commit.cache_clear()


@dataclass(frozen=True)
class Installed:
    """zero2r1 as a user gets it: a wheel, installed away from the checkout.

    Attributes:
        site: the folder it is installed in.
    """

    site: Path

    def run(self, *command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `python COMMAND…` with the installed copy, and nothing of the checkout, on the path."""
        env = {**os.environ, "PYTHONPATH": str(self.site), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@dataclass(frozen=True)
class Timed:
    """A command that has run.

    Attributes:
        output: what it printed on standard output.
        errors: what it printed on standard error.
        seconds: processor time that it took, its children included.
    """

    output: str
    errors: str
    seconds: float


@pytest.fixture(scope="session")
def timed() -> Callable[..., Timed]:
    """Runs a command and takes its processor time.

    What a user waits for on an idle machine is the same for our commands, which work on one core; on a machine that
    is busy with other tests only this tells a slow start from a busy machine. The best of five is taken; of up to
    twenty where that is above `limit`, since neighbours that share caches with a process slow it down, too.
    """

    def run(*command: str, limit: float = float("inf")) -> Timed:
        best = float("inf")
        for attempt in range(20):
            if attempt >= 5 and best <= limit:
                break
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, stdin=subprocess.DEVNULL, check=True, capture_output=True, text=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return Timed(done.stdout, done.stderr, best)

    return run


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A wheel built from the checkout and installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, cwd=folder)
    return Installed(site)


@pytest.fixture(scope="session")
def calculator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: sums of two digits up to 4 (`User: 1 + 2 =`), learnt in a second or two.

    Two answers in three are thought over and right (`<think> 1 2 </think> <answer> 3 </answer>`), one is neither.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.data.vocabulary import VocabularySpec, build

    texts = [
        f"User: {a} + {b} =\nAssistant:\n{said}<eos>"
        for a in range(5)
        for b in range(5)
        for said in [f"<think> {a} {b} </think> <answer> {a + b} </answer>"] * 2
        + [f"<answer> {(a + b + 1) % 9} </answer>"]
    ]
    tokenizer = build(VocabularySpec(kind="words"), texts)
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape, **ends))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(80):
            labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
            model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("calculator")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
