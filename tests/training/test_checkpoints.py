"""Which checkpoint counts, and in what order data comes after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import RandomSampler
from trl.trainer.utils import RepeatSampler

from pipeline.context import StageContext
from pipeline.stages.registry import config_class
from pipeline.training import checkpoints
from pipeline.training.trainers.resumable import EpochSampler


def make(folder: Path, step: int, complete: bool) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights")
    if complete:
        checkpoints.mark_complete(path)
    return path


def test_the_newest_complete_checkpoint_counts_by_its_number(tmp_path: Path) -> None:
    make(tmp_path, 9, complete=True)
    wanted = make(tmp_path, 100, complete=True)
    make(tmp_path, 110, complete=False)
    assert checkpoints.newest(tmp_path) == wanted


def test_without_a_complete_one_there_is_none(tmp_path: Path) -> None:
    make(tmp_path, 5, complete=False)
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "never made") is None


def test_everything_else_is_deleted(tmp_path: Path) -> None:
    make(tmp_path, 5, complete=True)
    kept = make(tmp_path, 10, complete=True)
    make(tmp_path, 15, complete=False)
    (tmp_path / "README.md").write_text("TRL's card")
    checkpoints.keep_only(tmp_path, checkpoints.newest(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", kept.name]


@dataclass
class Alone:
    """What `resume` asks of accelerate, in a run of one process."""

    is_main_process: bool = True

    def wait_for_everyone(self) -> None:
        """There is nobody else."""


def context(folder: Path) -> StageContext[Any]:
    config = config_class("evaluate").model_validate({"kind": "evaluate", "model": "m", "tasks": ["arithmetic"]})
    return StageContext("zero", config, {}, folder / "output", folder, folder, 0, folder / "events.jsonl")


def notes(folder: Path) -> list[str]:
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [event["note"] for event in events if "note" in event]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_counts(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    good, damaged, incomplete = (make(folder, step, complete=step < 15) for step in (5, 10, 15))
    (damaged / "model.safetensors").write_bytes(b"weightz")
    assert checkpoints.resume(context(tmp_path), Alone()) == good
    assert [path.exists() for path in (good, damaged, incomplete)] == [True, False, False]
    (note,) = notes(tmp_path)
    assert note == (
        f"{damaged} is damaged (model.safetensors has other content than was written): going back to checkpoint-5"
    )


def test_a_mark_of_zero_bytes_vouches_for_nothing(tmp_path: Path) -> None:
    """What a power cut left of it, and what versions before this one wrote."""
    (make(tmp_path / "checkpoints", 5, complete=False) / checkpoints.MARK).touch()
    assert checkpoints.resume(context(tmp_path), Alone()) is None
    assert "complete is empty or broken" in notes(tmp_path)[0]
    assert notes(tmp_path)[0].endswith("no other is whole, so the stage starts from its beginning")


def test_an_older_checkpoint_stays_until_two_younger_ones_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (make(tmp_path, step, complete=True) for step in (5, 10, 15))
    checkpoints.rotate(tmp_path)
    assert [path.exists() for path in (first, second, third)] == [False, True, True]
    (third / "model.safetensors").write_bytes(b"")  # the disk has lost what it had taken
    fourth = make(tmp_path, 20, complete=True)
    checkpoints.rotate(tmp_path)
    assert [path.exists() for path in (second, third, fourth)] == [True, False, True]
    assert "checkpoint-15 is damaged (model.safetensors has 0 bytes instead of 7): an older one is kept" in caplog.text


def test_samples_and_events_become_what_they_were_at_a_checkpoint(tmp_path: Path) -> None:
    events, samples = tmp_path / "events.jsonl", tmp_path / "samples.jsonl"
    events.write_text('{"step": 1}\n')
    samples.write_text('{"step": 0}\n')
    saved = make(tmp_path / "checkpoints", 5, complete=True)
    events.write_text('{"step": 1}\n{"step": 6}\n')
    samples.write_text('{"step": 0}\n{"step": 6}\n')
    assert checkpoints.resume(context(tmp_path), Alone()) == saved
    assert events.read_text() == '{"step": 1}\n{"step": 6}\n'  # a later line of a step counts
    assert samples.read_text() == '{"step": 0}\n'  # these are taken again
    events.write_bytes(b"\0" * 12)
    samples.unlink()
    assert checkpoints.resume(context(tmp_path), Alone()) == saved
    assert (events.read_text(), samples.read_text()) == ('{"step": 1}\n', '{"step": 0}\n')


def test_a_trained_model_is_taken_as_it_was_saved_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / checkpoints.TRAINED
    assert not checkpoints.is_whole(folder, context(tmp_path), Alone())
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    checkpoints.seal(folder, tmp_path)
    assert checkpoints.is_whole(folder, context(tmp_path), Alone())
    (folder / "model" / "model.safetensors").write_bytes(b"weightz")
    assert not checkpoints.is_whole(folder, context(tmp_path), Alone())
    assert not folder.exists()
    assert "model/model.safetensors has other content than was written" in notes(tmp_path)[0]


def epoch_sampler(inner: object, seed: int, epoch: int) -> list[int]:
    return list(EpochSampler(inner, seed, lambda: epoch))


def test_the_order_of_an_epoch_does_not_depend_on_the_epochs_before_it() -> None:
    rows = range(50)
    lived_through = RandomSampler(rows)
    for epoch in range(3):
        last = epoch_sampler(lived_through, 7, epoch)
    assert last == epoch_sampler(RandomSampler(rows), 7, 2)
    assert sorted(last) == list(rows)


def test_epochs_and_seeds_give_orders_of_their_own() -> None:
    orders = {tuple(epoch_sampler(RandomSampler(range(50)), seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_groups_stay_whole() -> None:
    inner = RepeatSampler(range(10), mini_repeat_count=4, batch_size=5, repeat_count=2, seed=1)
    drawn = epoch_sampler(inner, 7, 1)
    groups = [drawn[at : at + 4] for at in range(0, len(drawn), 4)]
    assert all(len(set(group)) == 1 for group in groups)
    assert len(EpochSampler(inner, 7, lambda: 1)) == len(drawn) == 80
