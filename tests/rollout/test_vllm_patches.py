"""Engines that are left to vLLM: by the recipe's switch, and in versions that the patches were not tested with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.rollout import open_engine
from pipeline.rollout.base import Sampling
from pipeline.schema.pieces import RolloutSpec

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from pipeline.rollout.vllm import patches  # noqa: E402

PROMPTS = [[5, 6, 7] * 4, [8, 9, 10]]
MANY = Sampling(n=6, max_tokens=20, temperature=1.0, seed=3)


@pytest.fixture
def opened(calculator: Path) -> Iterator[Callable[..., Any]]:
    """Opens engines for a trainer, which wants log-probabilities; closes them in the end."""
    made = []

    def make(**others: Any) -> Any:
        options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64}
        spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=options, **others)
        made.append(open_engine(spec, str(calculator), seed=0, logprobs=True))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def is_vllms_own(engine: Any) -> bool:
    """Whether no method of the scheduler, or of what it allocates from, is hidden by another."""
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    return not any(hasattr(type(each), name) for each in (scheduler, scheduler.kv_cache_manager) for name in vars(each))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == patches.__name__]


def test_the_version_that_is_installed_is_one_that_was_tested() -> None:
    assert patches.vllm_version() in patches.TESTED


def test_the_switch_and_other_versions_leave_an_engine_to_vllm_and_change_no_answer(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patched = opened()
    assert not is_vllms_own(patched)
    expected = patched.generate(PROMPTS, MANY)

    with caplog.at_level(logging.INFO, logger=patches.__name__):
        off = opened(scheduler_fast_path=False)
        assert is_vllms_own(off) and not said(caplog)
        answers = off.generate(PROMPTS, MANY)
        monkeypatch.setattr(patches, "TESTED", ("0.0.1",))
        assert patches.install(off.llm, wanted=True, logprobs=True) is None
    assert is_vllms_own(off)
    (line,) = said(caplog)
    assert patches.vllm_version() in line and "0.0.1" in line
    assert answers == expected, "log-probabilities included"
