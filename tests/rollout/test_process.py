"""An engine in a process of its own, killed, stopped and orphaned, against the same engine in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.rollout import RolloutError, open_engine
from pipeline.rollout.base import Sampling
from pipeline.rollout.process import ProcessEngine
from pipeline.rollout.shared import Heartbeat, SharedValue, WeightFile
from pipeline.rollout.transformers import TransformersEngine
from pipeline.rollout.weights import official_weights
from pipeline.schema.launch import ProcessSpec
from pipeline.schema.pieces import RolloutSpec

PROMPTS = [[7, 8, 9], [5], [6, 7]]
LONG = Sampling(n=4, max_tokens=40, seed=3)
NOWHERE = "http://127.0.0.1:9"
"""Where nobody listens."""


@pytest.fixture(scope="module")
def here(calculator: Path) -> TransformersEngine:
    """The reference: the engine in this process."""
    return TransformersEngine(str(calculator), batch_size=4, logprobs=True)


def spec(**process: object) -> RolloutSpec:
    return RolloutSpec(engine="transformers", batch_size=4, process=ProcessSpec.model_validate(process))


@pytest.fixture(scope="module")
def there(calculator: Path) -> Iterator[ProcessEngine]:
    made = open_engine(spec(deadline=8.0, restarts=1), str(calculator), seed=0, logprobs=True)
    assert isinstance(made, ProcessEngine)
    yield made
    made.close()


def after_steps(engine: ProcessEngine, act: Callable[[int], None]) -> threading.Thread:
    """Do something to the engine's process as soon as it has taken some more steps."""

    def watch() -> None:
        first = engine._heartbeat.read()[0]
        while engine._heartbeat.read()[0] < first + 5:
            time.sleep(0.001)
        act(engine._process.pid)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_what_it_gives_is_what_the_engine_gives_here(there: ProcessEngine, here: TransformersEngine) -> None:
    seen: list[tuple[int, int]] = []
    assert there.generate(PROMPTS, LONG, lambda done, total: seen.append((done, total))) == here.generate(PROMPTS, LONG)
    assert all(total == 12 for _, total in seen)
    assert there.dtype == here.dtype == "float32"


def test_a_hanging_engine_is_replaced_with_its_weights_and_the_answer_is_the_same(
    there: ProcessEngine, here: TransformersEngine, calculator: Path
) -> None:
    """A stopped process is one that hangs; `tests/training/test_rollouts.py` has one that is killed."""
    model = AutoModelForCausalLM.from_pretrained(calculator)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.2)
    before = here.generate(PROMPTS, LONG)
    here.load_weights(official_weights(model))
    there.push(official_weights(model))
    expected = here.generate(PROMPTS, LONG)
    assert expected != before
    stopper = after_steps(there, lambda pid: os.kill(pid, signal.SIGSTOP))
    assert there.generate(PROMPTS, LONG) == expected
    stopper.join()
    assert there.restarts == 1
    assert there.generate(PROMPTS, LONG) == expected, "and it goes on with those weights"


def test_weights_are_those_of_the_moment_of_the_push(there: ProcessEngine, here: TransformersEngine) -> None:
    first = {name: tensor.clone() for name, tensor in official_weights(here.model)}
    there.push(first.items())
    expected = here.generate(PROMPTS, LONG)
    for tensor in first.values():
        tensor.zero_()
    assert there.collect(there.submit(PROMPTS, LONG)) == expected
    with pytest.raises(RolloutError, match=r"missing keys: .*lm_head"):
        there.push((name, tensor) for name, tensor in first.items() if "lm_head" not in name)
        there.generate(PROMPTS, LONG)


def test_new_weights_are_taken_in_the_middle_and_each_rollout_says_which_it_is_of(
    there: ProcessEngine, here: TransformersEngine, calculator: Path
) -> None:
    """Four sequences at a time: the first ones with the old weights, the last ones with the new."""
    old, new = (AutoModelForCausalLM.from_pretrained(calculator) for _ in range(2))
    with torch.no_grad():
        new.model.layers[0].mlp.down_proj.weight.mul_(1.2)
    there.push(official_weights(old), 7)
    many = PROMPTS * 8
    there.has_loaded()
    before = there._heartbeat.read()[0]
    tickets = [there.submit(many, LONG), there.submit(PROMPTS, LONG)]
    while there._heartbeat.read()[0] < before + 60:
        time.sleep(0.001)
    there.push(official_weights(new), 8)
    there.push(official_weights(old), 9)
    last, first = there.collect(tickets[1]), there.collect(tickets[0])
    assert not there.busy
    found = [rollout for group in first for rollout in group]
    assert {rollout.versions for rollout in found} <= {((v, len(r.token_ids)),) for v in (7, 8, 9) for r in found}
    assert {rollout.versions[0][0] for rollout in found} >= {7, 9}
    here.load_weights(official_weights(old), 9)
    assert last == here.generate(PROMPTS, LONG), "which began when the last weights were there"
    assert there.idle_seconds > 0


def test_an_engine_that_is_lost_again_and_again_ends_in_a_clear_error(calculator: Path) -> None:
    engine = ProcessEngine(spec(restarts=1, env={"PYTHONHOME": "/nowhere"}), str(calculator))
    with pytest.raises(RolloutError, match=r"lost 2 times in a row; in the end it ended with exit code 1"):
        engine.generate(PROMPTS, LONG)
    engine.close()


def test_one_that_fails_at_its_work_says_how(calculator: Path) -> None:
    """A token that no vocabulary has is found by nobody before the model looks it up."""
    engine = ProcessEngine(spec(restarts=0), str(calculator))
    with pytest.raises(RolloutError, match=r"in the end it ended with exit code 1 \(IndexError: index out of range"):
        engine.generate([[10**6]], LONG)


@pytest.mark.timeout(120)
def test_nobody_waits_for_an_engine_that_does_not_listen(tmp_path: Path) -> None:
    """A model of many experts has so many weights that their names alone are more than goes into a pipe."""
    engine = ProcessEngine(RolloutSpec(engine="transformers", process=ProcessSpec()), str(tmp_path))
    os.kill(engine._process.pid, signal.SIGSTOP)
    weight = torch.zeros(1)
    engine.push((f"model.layers.0.mlp.experts.{number}.down_proj.weight", weight) for number in range(20_000))
    engine.submit([[1] * 100] * 1000, LONG)
    engine.close()


def test_one_that_is_stopped_while_it_starts_is_replaced(tmp_path: Path) -> None:
    engine = ProcessEngine(RolloutSpec(server=NOWHERE, process=ProcessSpec(deadline=2.0, restarts=1)), str(tmp_path))
    os.kill(engine._process.pid, signal.SIGSTOP)
    with pytest.raises(RolloutError, match="refused"):
        _ = engine.dtype
    assert engine.restarts == 1
    engine.close()


def test_one_that_cannot_start_says_why_and_is_not_tried_again(tmp_path: Path) -> None:
    """There is no model; one that was lost at its work is another matter."""
    engine = ProcessEngine(RolloutSpec(engine="transformers"), str(tmp_path))
    with pytest.raises(RolloutError, match=f"the engine does not start: .*{tmp_path}"):
        _ = engine.dtype
    assert engine.restarts == 0
    engine.close()


def test_what_the_engine_refuses_is_not_tried_again(tmp_path: Path) -> None:
    engine = ProcessEngine(RolloutSpec(server=NOWHERE), str(tmp_path))
    with pytest.raises(RolloutError, match=f"{NOWHERE}/v1/models .*refused"):
        engine.generate(PROMPTS, LONG)
    assert engine.restarts == 0
    engine.close()


@pytest.mark.parametrize("stopped", [False, True], ids=["at-work", "stopped"])
def test_the_engine_dies_with_its_trainer(calculator: Path, stopped: bool) -> None:
    code = (
        "import time\n"
        "from pipeline.rollout.process import ProcessEngine\n"
        "from pipeline.schema.pieces import RolloutSpec\n"
        f"engine = ProcessEngine(RolloutSpec(engine='transformers'), {str(calculator)!r})\n"
        "while engine._heartbeat.read()[0] == 0: time.sleep(0.01)\n"
        "print(engine._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    pid = int(trainer.stdout.readline())
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    assert alive(pid)
    trainer.kill()
    trainer.communicate()
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_shared_memory_gives_back_what_was_put_in() -> None:
    box, board, file = SharedValue(), Heartbeat(), WeightFile()
    box.put(list(range(10_000)))
    box.put({"a": (1, 2.5)})
    assert SharedValue(os.dup(box.fd)).get() == {"a": (1, 2.5)}
    board.tick()
    board.progress(3, 8)
    assert Heartbeat(os.dup(board.fd)).read() == (1, 3, 8)
    tensors = {
        "odd": torch.arange(7, dtype=torch.uint8),
        "strided": torch.randn(6, 4).T,
        "half": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    places = file.write(tensors.items())
    for name, tensor in WeightFile(os.dup(file.fd)).read(places):
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
    for shared in (box, board, file):
        shared.close()
