"""Engines that share the prompts, against the same engine in this process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from pipeline import gpus
from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Finish, Rollout, Sampling
from pipeline.rollout.engine_pool import EnginePool, seed_of, shared
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.shared import FileLock, WeightFile
from pipeline.rollout.transformers import TransformersEngine
from pipeline.rollout.weights import official_weights
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec
from pipeline.stages.grpo import shares_gpu

PROMPTS = [[7, 8, 9], [5], [6, 7], [8], [9, 5]]
LONG = Sampling(n=3, max_tokens=30, seed=3)
NO_GPU = ["", -1]
"""Two ways to see none."""


@pytest.fixture(scope="module")
def here(calculator: Path) -> TransformersEngine:
    """The reference: the engine in this process."""
    return TransformersEngine(str(calculator), batch_size=4, logprobs=True)


@pytest.fixture(scope="module")
def pool(calculator: Path) -> Iterator[EnginePool]:
    process = ProcessSpec.model_validate({"devices": NO_GPU, "restarts": 1})
    spec = RolloutSpec(engine="transformers", batch_size=4, process=process)
    made = open_engine(spec, str(calculator), seed=0, logprobs=True)
    assert isinstance(made, EnginePool)
    yield made
    made.close()


def by_two(here: TransformersEngine, prompts: list[list[int]]) -> list[list[Rollout]]:
    """What two engines should give: every second prompt each, with seeds of their own."""
    first = here.generate(prompts[::2], LONG)
    second = here.generate(prompts[1::2], Sampling(n=3, max_tokens=30, seed=seed_of(3, 1)))
    return [(first, second)[at % 2][at // 2] for at in range(len(prompts))]


def test_they_give_what_each_gives_for_its_share(pool: EnginePool, here: TransformersEngine) -> None:
    seen: list[tuple[int, int]] = []
    assert pool.generate(PROMPTS, LONG, lambda *counts: seen.append(counts)) == by_two(here, PROMPTS)
    assert all(total == 15 for _, total in seen)
    assert all(before <= after for before, after in pairwise(seen))
    assert pool.generate(PROMPTS[:1], LONG) == here.generate(PROMPTS[:1], LONG), "one prompt is for the first alone"
    assert pool.generate([], LONG) == []
    assert pool.dtype == "float32"


def test_they_are_closed_at_once(calculator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that have stopped are waited for side by side, and then killed."""
    waits: list[tuple[float, float]] = []
    let_end = ProcessEngine._let_end

    def timed(engine: ProcessEngine) -> None:
        began = time.monotonic()
        let_end(engine)
        waits.append((began, time.monotonic()))

    monkeypatch.setattr("pipeline.rollout.process.CLOSE_SECONDS", 2.0)
    monkeypatch.setattr(ProcessEngine, "_let_end", timed)
    process = ProcessSpec.model_validate({"devices": [*NO_GPU, "-1"]})
    made = EnginePool(RolloutSpec(engine="transformers", process=process), str(calculator))
    assert made.dtype == "float32"  # all of them have started
    pids = [engine._process.pid for engine in made._engines]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    made.close()
    assert len(waits) == len(pids)
    assert max(began for began, _ in waits) < min(ended for _, ended in waits)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_weights_are_pushed_once_and_a_killed_engine_is_replaced_with_them(
    pool: EnginePool, here: TransformersEngine, calculator: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(calculator)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.2)
    before = by_two(here, PROMPTS)
    here.load_weights(official_weights(model))
    pool.push(official_weights(model))
    ticket = pool.submit(PROMPTS, LONG)
    first, second = (engine._process.pid for engine in pool._engines)
    os.kill(first, signal.SIGSTOP)  # the second is replaced while the first one still works
    os.kill(second, signal.SIGKILL)

    def go_on() -> None:
        while not pool._engines[1].restarts:
            time.sleep(0.01)
        os.kill(first, signal.SIGCONT)

    going = threading.Thread(target=go_on, daemon=True)
    going.start()
    found = pool.collect(ticket)
    going.join()
    assert found == by_two(here, PROMPTS) != before
    assert [engine.restarts for engine in pool._engines] == [0, 1]


def test_what_one_refuses_leaves_the_others_idle(pool: EnginePool, here: TransformersEngine) -> None:
    with pytest.raises(RolloutError, match="nothing was submitted"):
        pool.collect(-1)
    weights = dict(official_weights(here.model))
    pool.push((name, weight) for name, weight in weights.items() if "lm_head" not in name)
    with pytest.raises(RolloutError, match="lm_head"):
        pool.generate(PROMPTS, LONG)
    assert not pool.busy
    pool.push(weights.items())
    assert pool.generate(PROMPTS, LONG) == by_two(here, PROMPTS)


def test_prompts_are_shared_by_what_they_are_expected_to_take(pool: EnginePool, here: TransformersEngine) -> None:
    """The longest first, each to the engine with least to do (Graham's rule: at most 4/3 of the best there is)."""
    assert shared(5, 2, [10, 9, 8, 1, 1]) == [[0, 3, 4], [1, 2]]
    assert shared(2, 3, [1, 1]) == [[0], [1]]
    assert shared(0, 3, []) == shared(0, 3) == [[]]
    rng = random.Random(0)
    for engines in (2, 3, 5):
        expected = [rng.expovariate(1 / 300) for _ in range(40)]
        shares = shared(len(expected), engines, expected)
        assert sorted(at for share in shares for at in share) == list(range(40))
        fullest = max(sum(expected[at] for at in share) for share in shares)
        assert fullest <= 4 / 3 * max(*expected, sum(expected) / engines)
    weighed = pool.collect(pool.submit(PROMPTS, LONG, [30, 1, 1, 1, 1]))
    alone = here.generate(PROMPTS[:1], LONG)
    others = here.generate(PROMPTS[1:], Sampling(n=3, max_tokens=30, seed=seed_of(3, 1)))
    assert weighed == alone + others


def test_enough_is_divided_so_that_there_is_enough(pool: EnginePool) -> None:
    for enough in (1, 2, 4):
        groups = pool.generate(PROMPTS, Sampling(n=1, max_tokens=30, seed=3, enough=enough))
        complete = [group for group in groups if group[0].finish is not Finish.ABORT]
        assert enough <= len(complete)
        assert enough == 4 or len(complete) < len(PROMPTS)


def test_a_turn_is_free_again_when_its_holder_is_killed() -> None:
    lock = FileLock()
    code = (
        "import time\n"
        "from pipeline.rollout.shared import FileLock\n"
        f"with FileLock({lock.fd}).held():\n"
        "    print(1, flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=[lock.fd])
    assert holder.stdout is not None and holder.stdout.readline() == b"1\n"
    waiting = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=[lock.fd])
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1.0)
    holder.kill()
    assert waiting.stdout is not None and waiting.stdout.readline() == b"1\n"
    for process in (holder, waiting):
        process.kill()
        process.communicate()
    lock.close()


def test_an_engine_waits_for_its_turn_to_start(tmp_path: Path) -> None:
    """One that refuses at once what it is to open, but only when it is its turn."""
    spec, lock = RolloutSpec(server="http://127.0.0.1:9"), FileLock()
    with lock.held():
        engine = ProcessEngine(spec, str(tmp_path), lock=lock)
        assert not engine.pipe.poll(4.0)
    assert engine.pipe.poll(60.0)
    with pytest.raises(RolloutError, match="refused"):
        _ = engine.dtype
    engine.close()
    lock.close()


def test_weights_that_grow_or_change_their_kind_arrive_whole() -> None:
    """The first time they are appended; then they are copied through mapped memory, as far as that goes."""
    ours = WeightFile()
    theirs = WeightFile(os.dup(ours.fd))
    for sizes in ((3, 100), (3, 100), (50, 100, 5000), (2, 7)):
        tensors = {str(at): torch.randn(size, 3).bfloat16().T for at, size in enumerate(sizes)}
        tensors["scalar"] = torch.tensor(len(sizes))
        places = ours.write(tensors.items())
        found = dict(theirs.read(places))
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    ours.close()
    theirs.close()


def test_devices_are_texts_and_exclude_the_variable() -> None:
    assert ProcessSpec.model_validate({"devices": [0, "1,2"]}).devices == ["0", "1,2"]
    assert ProcessSpec(devices=["1"]).on("1").env == {"CUDA_VISIBLE_DEVICES": "1"}
    for wrong in (1, [True], None):
        with pytest.raises(ValidationError, match="devices"):
            ProcessSpec.model_validate({"devices": wrong})
    with pytest.raises(ValidationError, match="both say where the engine is"):
        ProcessSpec(devices=["1"], env={"CUDA_VISIBLE_DEVICES": "1"})


@pytest.mark.parametrize(
    ("process", "ours", "shared"),
    [
        ({}, "0", True),
        ({"env": {"CUDA_VISIBLE_DEVICES": "1"}}, "0", False),
        ({"devices": ["1", "0"]}, "0", True),
        ({"devices": ["2,3"]}, "0,1", False),
        ({"devices": ["1"]}, "GPU-bb22", True),
        ({"devices": ["GPU-aa11, 2"]}, "0", True),
        ({"devices": ["GPU-aa11"]}, "1", False),
        ({"devices": ["-1"]}, "0", False),
        ({"devices": [""]}, "0", False),
    ],
)
def test_an_engine_on_the_trainers_gpu_is_noticed(
    process: dict[str, Any], ours: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever of its names."""
    monkeypatch.setattr(gpus, "of_driver", lambda: ("GPU-aa11", "GPU-bb22", "GPU-cc33", "GPU-dd44"))
    assert shares_gpu(ProcessSpec(**process), ours) == shared
