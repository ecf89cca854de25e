"""Which checkpoint counts, and in what order data comes after it."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import RandomSampler
from trl.trainer.utils import RepeatSampler

from pipeline.training import checkpoints
from pipeline.training.resumable import EpochSampler


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
