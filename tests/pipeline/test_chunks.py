"""Chunks of sampling: the same files whoever makes them, and one is judged while the next is sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from pipeline.context import Share
from pipeline.sampling import chunks

PATIENCE = 100.0
ONE = Share()


class Work:
    """Both parts of the work on a chunk, and the order in which they were begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def sample(self, number: int) -> int:
        self.begun.append(f"sample {number}")
        return 10 * number

    def judge(self, number: int, sampled: int) -> Iterator[dict[str, Any]]:
        self.begun.append(f"judge {number}")
        yield {"sampled": sampled}


def read(path: Path) -> Any:
    return json.loads(path.read_text())["sampled"]


def test_the_next_chunk_is_sampled_while_one_is_judged(tmp_path: Path) -> None:
    sampled = [Event() for _ in range(4)]

    class Slow(Work):
        def sample(self, number: int) -> int:
            sampled[number].set()
            return super().sample(number)

        def judge(self, number: int, sampled_: int) -> Iterator[dict[str, Any]]:
            assert sampled[min(number + 1, 3)].wait(PATIENCE), "nobody samples meanwhile"
            yield from super().judge(number, sampled_)

    work = Slow()
    made = chunks.files(4, tmp_path, ONE, work.sample, work.judge, ahead=True)
    assert [read(path) for path in made] == [0, 10, 20, 30]


def test_nothing_is_sampled_ahead_where_that_is_not_wished(tmp_path: Path) -> None:
    work = Work()
    made = chunks.files(3, tmp_path, ONE, work.sample, work.judge)
    assert read(next(made)) == 0
    assert work.begun == ["sample 0", "judge 0"]


@pytest.mark.parametrize("ahead", [False, True])
def test_chunks_that_are_there_are_not_made_again(tmp_path: Path, ahead: bool) -> None:
    first = Work()
    list(chunks.files(4, tmp_path, ONE, first.sample, first.judge, ahead))
    (tmp_path / "00002.jsonl").write_text("{}\n")
    again = Work()
    made = chunks.files(4, tmp_path, ONE, again.sample, again.judge, ahead)
    assert [read(path) for path in made] == [0, 10, 20, 30]
    assert again.begun == ["sample 2", "judge 2"]


def test_what_goes_wrong_in_judging_is_told_and_what_was_sampled_before_is_kept(tmp_path: Path) -> None:
    class Faulty(Work):
        def judge(self, number: int, sampled: int) -> Iterator[dict[str, Any]]:
            if number == 1:
                raise RuntimeError("no sandbox")
            yield from super().judge(number, sampled)

    work = Faulty()
    made = chunks.files(9, tmp_path, ONE, work.sample, work.judge, ahead=True)
    assert read(next(made)) == 0
    with pytest.raises(RuntimeError, match="no sandbox"):
        next(made)
    assert "sample 3" not in work.begun, "the fault is told before much more is sampled"


def test_a_chunk_that_was_sampled_is_judged_and_kept_when_the_engine_dies(tmp_path: Path) -> None:
    class Dies(Work):
        def sample(self, number: int) -> int:
            if number == 2:
                raise RuntimeError("the engine is dead")
            return super().sample(number)

    work = Dies()
    with pytest.raises(RuntimeError, match="dead"):
        list(chunks.files(5, tmp_path, ONE, work.sample, work.judge, ahead=True))
    assert [chunks.whole(tmp_path / f"{number:05d}.jsonl") for number in range(3)] == [True, True, False]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_make_each_chunk_once_and_see_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: int, ahead: bool
) -> None:
    monkeypatch.setattr(chunks, "AWAIT_SECONDS", 0.01)
    works, found = [Work() for _ in range(hosts)], [[-1] for _ in range(hosts)]

    def host(number: int) -> None:
        work = works[number]
        made = chunks.files(7, tmp_path, Share(number, hosts), work.sample, work.judge, ahead)
        found[number] = [read(path) for path in made]

    threads = [Thread(target=host, args=(number,), daemon=True) for number in range(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [[10 * number for number in range(7)]] * hosts
    assert [name for work in works for name in sorted(work.begun) if name[0] == "s"] == [
        f"sample {number}" for host in range(hosts) for number in range(host, 7, hosts)
    ]
