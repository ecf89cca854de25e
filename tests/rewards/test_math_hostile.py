"""Hostile completions: none scores, none hangs, none grows the trainer's memory or stops its threads."""

from __future__ import annotations

import contextlib
import resource
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Item, Status
from rewards.hostile import attacks
from rewards.math import MathVerifier
from rewards.math.kinds import TooDeepError
from rewards.math.notation import words
from rewards.math.tokens import tokens
from rewards.math.verifier import _compare

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


def test_sixty_four_undecidable_answers_cost_their_own_rows_and_no_other():
    """A batch of 128: powers that expand without end, integrals that never end, and 64 honest answers."""
    letters = "abcdfghjklmnpqrstuvw"
    expanding = [rf"\boxed{{(\cosh {letters[n % 20]}+y+z+{n}i)^{{30}}}}" for n in range(32)]
    hostile = [*(Item(text, gold) for text, gold in zip(expanding, ["42", r"\int_0^1 \sqrt{x} dx"] * 16, strict=True))]
    hostile += hanging_items(32)
    honest = [Item(rf"\boxed{{\sqrt{{{4 * n}}}}}", rf"2\sqrt{{{n}}}") for n in range(1, 61)]
    honest += [Item(rf"\boxed{{\int_0^1 t^{n} dt}}", rf"\int_0^1 x^{n} dx") for n in range(2, 6)]
    verifier = MathVerifier(deadline_s=DEADLINE_S, workers=2)
    try:
        verifier.prepare()
        verifier.verify([Item(r"\boxed{\int_0^1 t dt}", r"\int_0^1 x dx")])
        started = time.monotonic()
        verdicts = verifier.verify([*hostile, *honest])
        assert time.monotonic() - started < DEADLINE_S + SLACK_S
    finally:
        verifier.close()
    assert [verdict.score for verdict in verdicts] == [0.0] * 64 + [1.0] * 64


FRAGMENTS = sorted(
    words(
        r"\frac \sqrt { } ( ) [ ] ^ _ + - / = < , ; : | ! ' \sum_{k=1}^{n} \int_0^1 dx \lim_{x\to0} \infty \pi x y n 2"
        r" 0.5 1_000 ° % \text{cm} \begin{pmatrix} & \\ \end{pmatrix} \cup \in \le \ne \approx \pm \sin \log_2 f(x) f'"
        r" \vec{a} \times \over \choose \binom \lfloor \{ \} \mid and or ² ½ √ C(10,3) \gcd( \left. \right. $ ... \cosh"
        r" 90^\circ 30' AB \angle"
    )
)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14), st.sampled_from(GOLDS))
@settings(max_examples=300, deadline=None)
def test_no_soup_of_fragments_breaks_the_reader(parts, gold):
    """A fault of the reader would cost its row only, but there should be none."""
    text = " ".join(parts)
    for first, second in ((gold, text), (text, gold), (text, text[::-1])):
        decision = _compare(first, second)
        assert decision is None or "breaks the reader" not in decision.detail


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
    r"1,\! ",
    r"\left.",
    r"1\over",
    "x'",
    r"x^{\prime}",
    "1C1 ",
    "(1)_2",
    r"\hspace{",
    "²",
    r"\vec a\times ",
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


@pytest.mark.parametrize("second", ["VIII", "viii", "Ⅷ", "ⅷ", "ⅠⅠ", "xii", "eight", "⑧", "八"])
def test_a_second_number_in_other_signs_is_no_label(verifier, second):
    assert not any(v.score for v in verifier.verify([Item(rf"\boxed{{3 {second}}}", "3"), Item(f"3 {second}", "3")]))
    assert all(v.score for v in verifier.verify([Item(r"\boxed{3 apples}", "3"), Item(r"\boxed{3 v}", "3 v")]))
