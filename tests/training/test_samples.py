"""What a GRPO stage refuses to train on, and what it remembers of completions when it is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.schema.pieces import RewardSpec
from pipeline.stages.grpo import check_problems
from pipeline.training.grpo.judging import Samples

ROWS = [{"task": "sums", "level": level} for level in (1, 2, 2, 3)]
ARGS = SimpleNamespace(generation_batch_size=16, num_generations=4)


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\u0085b", "a\rb", "plain"])
def test_samples_are_taken_back_whatever_characters_and_half_lines_they_have(tmp_path: Path, text: str) -> None:
    samples = Samples(tmp_path / "samples.jsonl", 1, 4)
    rows = [{"step": step, "completion": text} for step in range(4)]
    samples.add(rows)
    with samples.path.open("a") as sink:
        sink.write('{"step": 0, "completion": "cut of')  # the power went
    samples.rewind(2)
    samples.add([{"step": 2, "completion": "anew"}])
    assert [json.loads(line) for line in samples.path.read_bytes().split(b"\n")[:-1]] == [
        *rows[:2],
        {"step": 2, "completion": "anew"},
    ]


def test_problems_that_do_not_fill_a_batch_are_refused() -> None:
    check_problems(ROWS, [], ARGS)
    with pytest.raises(ValueError, match="3 problems do not fill a generation batch, which takes 4"):
        check_problems(ROWS[:3], [], ARGS)


@pytest.mark.parametrize("where", [{"task": "sms"}, {"tsk": "sums"}, {"level": [4, 5]}, {"task": "sums", "level": 9}])
def test_a_reward_that_would_never_be_asked_is_refused(where: dict[str, Any]) -> None:
    fitting: dict[str, Any] = {"task": ["sums", "words"], "level": 2}
    check_problems(ROWS, [RewardSpec(use="math"), RewardSpec(use="math", where=fitting)], ARGS)
    with pytest.raises(ValueError, match="'math' is asked about no problem"):
        check_problems(ROWS, [RewardSpec(use="math", where=where)], ARGS)
