"""Hostile completions: none scores, none hangs, none grows the trainer's memory or stops its threads."""

from __future__ import annotations

import contextlib
import resource
import threading
import time

import pytest

from rewards import Item, Status
from rewards.hostile import attacks
from rewards.math import MathVerifier
from rewards.math.kinds import TooDeepError
from rewards.math.tokens import tokens

GOLDS = ["42", r"\frac{\sqrt{3}}{2}", "(1,2)", r"\text{Tuesday}", "y=2x+1", r"\int_0^1 \sqrt{x} dx", "5 cm"]
DEADLINE_S = 4.0
SLACK_S = 20.0
"""What a busy test machine may add to any deadline."""


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(deadline_s=DEADLINE_S, workers=2)
    verifier.verify([Item(r"\boxed{\int_0^1 t dt}", r"\int_0^1 x dx")])  # starts the pool
    yield verifier
    verifier.close()


def hanging_items(count):
    """Items that pass every guard and keep math-verify busy for longer than any deadline."""
    integral = r"\boxed{{\int_0^{{{0}}} \sin(x^{{x^{{x}}}}) e^{{-x^{{7}}}} dx}}"
    return [Item(integral.format(1 + n), r"\int_0^1 \sqrt{x} dx") for n in range(count)]


@pytest.mark.parametrize("gold", GOLDS)
def test_no_attack_scores(verifier, gold):
    names, completions = zip(*attacks(gold), strict=True)
    started = time.monotonic()
    verdicts = verifier.verify([Item(completion, gold) for completion in completions])
    assert time.monotonic() - started < DEADLINE_S + 0.25 * len(names) + SLACK_S
    assert {name: v for name, v in zip(names, verdicts, strict=True) if v.score} == {}


def test_trainer_threads_run_on_while_a_batch_hangs(verifier):
    longest, stop = [0.0], threading.Event()

    def heartbeat():
        last = time.monotonic()
        while not stop.is_set():
            time.sleep(0.01)
            now = time.monotonic()
            longest[0], last = max(longest[0], now - last), now

    beat = threading.Thread(target=heartbeat)
    beat.start()
    try:
        started = time.monotonic()
        verdicts = verifier.verify(hanging_items(7)[5:])
        elapsed = time.monotonic() - started
    finally:
        stop.set()
        beat.join()
    assert [v.status for v in verdicts] == [Status.TIMEOUT] * 2
    assert elapsed < DEADLINE_S + SLACK_S
    assert longest[0] < 2.0


def test_five_hangs_among_two_hundred_end_within_one_deadline_from_any_thread(verifier):
    honest = [Item(rf"\boxed{{\sqrt{{{4 * n}}}}}", rf"2\sqrt{{{n}}}") for n in range(1, 196)]
    verdicts = []
    started = time.monotonic()
    worker = threading.Thread(target=lambda: verdicts.extend(verifier.verify([*hanging_items(5), *honest])))
    worker.start()
    worker.join()
    elapsed = time.monotonic() - started
    assert elapsed < DEADLINE_S + SLACK_S
    assert [v.status for v in verdicts] == [Status.TIMEOUT] * 5 + [Status.CORRECT] * 195


def test_memory_does_not_grow(verifier):
    items = [Item(completion, "42") for _, completion in attacks("42")]
    verifier.verify(items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        verifier.verify(items)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


BOMBS = [
    *"{([$-'\"\\",
    r"\text{",
    r"\frac{",
    r"\sqrt[",
    "x_{",
    "x^{",
    r"\left(",
    "1,",
    "1.",
    "1 000 ",
    r"\frac{1}",
    "x^2",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_reading_is_linear(bomb):
    """Doubling the text at most about doubles the time; quadratic code would take sixteen times as long here."""

    def cost(repeats):
        best = float("inf")
        for _ in range(3):
            started = time.process_time()
            with contextlib.suppress(TooDeepError):
                tokens(bomb * repeats)
            best = min(best, time.process_time() - started)
        return best

    small, large = cost(300), cost(1200)
    assert large < 10 * small + 0.02
