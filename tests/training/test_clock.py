"""Where the time of training goes, and what share of the device's arithmetic it uses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.config import V3Config
from pipeline.context import Work
from pipeline.report.timeline import work_share
from pipeline.training import clock as clocks
from pipeline.training.clock import Clock, Pace, shape_of


class Hands:
    """The hands of a clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    found = Hands()
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def accelerator(ranks: int = 1) -> Any:
    """Ranks that measured the same as this one."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=ranks,
        gather=lambda row: row.repeat(ranks, 1),
        unwrap_model=lambda m: m,
    )


def test_a_part_inside_another_is_counted_once(hands: Hands) -> None:
    clock = Clock()
    with clock.part("sampling"):
        hands.sleep(3)
        with clock.part("sync"):
            hands.sleep(20)
    hands.sleep(5)
    found = clock.read(accelerator(), steps=2, peak=None)
    assert found["seconds/sync"] * 2 == pytest.approx(20)
    assert found["seconds/sampling"] * 2 == pytest.approx(3)
    assert found["seconds/training"] * 2 == pytest.approx(5)
    assert found["seconds/rewards"] == found["seconds/scoring"] == found["seconds/waiting"] == 0
    assert clock.read(accelerator(), steps=1, peak=None)["seconds/sync"] == 0


def test_rates_are_those_of_all_ranks(hands: Hands) -> None:
    clock = Clock()
    hands.sleep(2)
    clock.counts |= {"tokens": 1000.0, "samples": 10.0, "flops": 5e9}
    found = clock.read(accelerator(ranks=4), steps=1, peak=1e12)
    assert found["tokens_per_second"] == pytest.approx(4000 / 2)
    assert found["samples_per_second"] == pytest.approx(40 / 2)
    assert found["mfu"] == pytest.approx(5e9 / 2 / 1e12)
    assert "mfu" not in clock.read(accelerator(), steps=1, peak=None)


DENSE = LlamaConfig(
    hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=1000, tie_word_embeddings=False,
)  # fmt: skip


def test_flops_of_a_step_are_six_a_parameter_and_token_and_the_scores() -> None:
    """Kaplan et al., arXiv 2001.08361: 6 N a token, embeddings left out; causal scores on top."""
    with torch.device("meta"):
        model = LlamaForCausalLM(DENSE)
    trainer = SimpleNamespace(
        args=SimpleNamespace(bf16=False, fp16=False, train_batch_size=2, gradient_accumulation_steps=1),
        accelerator=accelerator(ranks=2),
        model=model,
    )
    pace, length = Pace(trainer), 64
    pace.begin(0)
    seen: list[float] = []
    pace.clock.read = lambda *_: seen.append(pace.clock.counts["flops"]) or {}  # type: ignore[method-assign,func-returns-value]
    pace.read(1, {"num_tokens": 4 * length})
    layer = 4 * 256 * 256 + 3 * 256 * 512
    parameters = 3 * layer + 1000 * 256
    scores = 3 * 3 * 4 * 256 * (length + 1) / 2  # three passes, three layers, two products of the causal half
    assert seen == [pytest.approx(2 * length * (6 * parameters + scores))]


def test_shapes_are_known_by_config() -> None:
    sparse = V3Config(
        hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, vocab_size=50,
    )  # fmt: skip
    found = shape_of(sparse)
    assert found is not None and found.experts is not None and found.experts.active == 2
    assert shape_of(SimpleNamespace(to_dict=lambda: {"model_type": "unheard of"})) is None
    assert clocks.peak_flops(SimpleNamespace(bf16=False, fp16=False)) is None


def test_a_run_says_what_share_of_its_time_was_work() -> None:
    work = Work()
    work.add(30.0)
    work.add(40.0)
    manifests = [{"seconds": 80.0, "work_seconds": work.seconds}, {"seconds": 20.0, "work_seconds": 0.0}]
    assert work_share(manifests) == pytest.approx(0.7)
    assert work_share([{"seconds": 80.0}]) is None
    assert work_share([{"seconds": 80.0, "work_seconds": 0.0}]) is None
