"""What a reward is asked before it is built: whether it can be called, and has every option that it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import registry, unfit

OWN = '''\
from typing import Annotated

from pydantic import Field


async def later(completions, **columns):
    return [1.0 for _ in completions]


def trained(completions, trainer_state, log_metric):
    return [0.0] * len(completions)


def lenient(completions, log_metric=None, **more):
    return [0.0] * len(completions)


class Bounded:
    """A verifier with bounds of its own."""

    def __init__(self, share: Annotated[float, Field(gt=0, lt=1)] = 0.5, low: int = 0, high: int = 9):
        pass

    @staticmethod
    def unfit(low, high, **_):
        return f"low is below high ({high}), not {low}" if low >= high else ""

    def verify(self, items):
        return []


class Strict:
    def __init__(self, level, *, unit, soft=False, **more):
        pass

    def verify(self, items):
        return []
'''


def test_what_would_fail_only_when_it_is_built_or_called_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    registry.check("own.py:later", {}, tmp_path)  # a coroutine, which is awaited
    with pytest.raises(registry.RewardError, match="needs 'level' and 'unit'"):
        registry.check("own.py:Strict", {"soft": True}, tmp_path)
    with pytest.raises(registry.RewardError, match="needs 'unit' among"):
        registry.check("own.py:Strict", {"level": 1}, tmp_path)
    registry.check("own.py:Strict", {"level": 1, "unit": "m", "other": 2}, tmp_path)
    with pytest.raises(registry.RewardError, match="'cosine_length' needs 'max_tokens'"):
        registry.check("cosine_length", {})


def test_a_function_that_needs_a_trainer_is_refused_where_none_calls_it(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    registry.check("own.py:trained", {}, tmp_path)
    registry.check("own.py:lenient", {}, tmp_path, in_trainer=False)
    needs = r"trained' asks for trainer_state and log_metric.*give them the default None"
    with pytest.raises(registry.RewardError, match=needs):
        registry.check("own.py:trained", {}, tmp_path, in_trainer=False)
    with pytest.raises(registry.RewardError, match=needs):
        rewards.load("cosine_length", max_tokens=9, correct=f"{file}:trained").prepare()
    with pytest.raises(registry.RewardError, match=needs):
        rewards.load("pipeline.tasks.grading:Accuracy", graders={"t": {"use": f"{file}:trained"}}).prepare()
    with pytest.raises(registry.RewardError, match=needs):
        rewards.verify(f"{file}:trained", [("7", "7")])


@pytest.mark.parametrize(
    ("use", "options", "words"),
    [
        ("code", {"memory_mb": -7}, "memory_mb has to be greater than or equal to 1, not -7"),
        ("code", {"timeout": 0}, "timeout has to be greater than 0, not 0"),
        ("code", {"timeout": float("nan")}, "timeout has to be a finite number, not nan"),
        ("code", {"workers": 0}, "workers has to be greater than or equal to 1, not 0"),
        ("code", {"tolerance": -1e-6}, "tolerance has to be greater than or equal to 0"),
        ("code", {"backend": "docker"}, "backend is 'local' or 'cluster' or 'sandbox_fusion' or 'e2b', not 'docker'"),
        ("code", {"backend": "sandbox_fusion"}, "sandbox_fusion needs url"),
        ("code", {"url": "http://localhost"}, "leave it out of local"),
        ("code", {"backend": "e2b", "unsafe_local": True}, "unsafe_local is for the backend local"),
        ("math", {"deadline_s": 0.0}, "deadline_s has to be greater than 0"),
        ("math", {"rss_mib": 0}, "rss_mib has to be"),
        ("language", {"language": "xx"}, "'xx' is not an ISO 639-1 code known here"),
        ("language", {"min_words": -1}, "min_words has to be"),
        ("language", {"scope": "al"}, "scope is 'thought' or 'whole', not 'al'"),
        ("think_format", {"end_tokens": [""]}, "end_tokens has to have at least 1 character"),
        ("think_format", {"prefilled": "x"}, r"prefilled has to be bool | Literal\['auto'\], not 'x' \(str\)"),
        ("soft_overlong", {"max_tokens": 9, "soft_tokens": 10}, r"from 0 to max_tokens \(9\), not 10"),
        ("cosine_length", {"max_tokens": 9, "right": [1, float("inf")]}, "right has to be a finite number"),
        ("cosine_length", {"max_tokens": 9, "correct": "maht"}, "correct: there is no reward 'maht'.*'math'"),
        (
            "length",
            {"correct": "code", "correct_options": {"memory_mb": 0}},
            "correct: reward 'code': memory_mb has to",
        ),
        ("repetition", {"ngram_tokens": 0}, "ngram_tokens has to be"),
        ("preference", {"model": "m", "batch_size": 0}, "batch_size has to be"),
        ("process", {"model": "m", "step_end": ""}, "step_end has to have at least 1 character"),
        ("judge", {"model": "m", "url": "localhost:8000"}, "url begins with http"),
        ("judge", {"model": "m", "prompt": "Is it right?"}, "the prompt has no {response} in it"),
        ("judge", {"model": "m", "prompt": "Is\n{respons} right?"}, "{respons} in its line 2.* mean {response}.*Known"),
        ("judge", {"model": "m", "only_if_wrong": "mth"}, "only_if_wrong: there is no reward 'mth'"),
        ("own.py:Bounded", {"share": 1}, "share has to be less than 1, not 1"),
        ("own.py:Bounded", {"low": 9}, r"low is below high \(9\), not 9"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_told_before_anything_is_built(
    use: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(registry.RewardError, match=words.replace("{", r"\{").replace(" | ", r" \| ")):
        registry.check(use, options, tmp_path)


SHAPES = {
    "def f(completion, /): return 1.0": "takes completion by position",
    "def f(completion): yield 1.0": "write return in place of yield",
    "def f(completion) -> str: return 'good'": "returns str, by its annotation: return a number",
    "def f(completions) -> None: pass": "returns None, by its annotation: return a list",
    "def f(completions) -> float: return 1.0": "returns one float, by its annotation: return a list",
    "def f(completion) -> list[float]: return [1.0]": r"returns list\[float\], by its annotation: return a number",
    "import typing\ndef f(completion) -> typing.List[float]: return [1.0]": "returns List",
    "def f(completions): yield from [1.0]": "",
    "async def f(completion) -> float: return 1.0": "",
    "def f(completion) -> 'float | None': return 1.0": "",
    "def f(completions) -> dict: return {'scores': [1.0]}": "",
}
"""Functions, and what their signature tells of why they cannot be rewards."""


@pytest.mark.parametrize("source", SHAPES)
@pytest.mark.parametrize("run", [True, False])
def test_what_a_signature_tells_is_told(source: str, run: bool, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(source)
    said = unfit.function(registry.find("own.py:f", tmp_path, run))
    assert re.search(SHAPES[source], said) if SHAPES[source] else not said
