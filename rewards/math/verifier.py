"""The reward `math`: is the final answer of a completion equal to the gold answer?"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.bounds import AtLeastOne, Positive
from rewards.function import GOLD_COLUMNS
from rewards.golds import unpayable
from rewards.math.choices import choice
from rewards.math.compare import equal, shape_of, tokens_of
from rewards.math.copied import copied
from rewards.math.extract import finals, gold_text
from rewards.math.kinds import TooDeepError
from rewards.math.numbers import TooBigError, simple
from rewards.math.values import exact
from rewards.pool import STATUS_OF, Fate, Pool, PoolError
from rewards.verdict import Item, Status, Verdict

logger = logging.getLogger(__name__)

MAX_ANSWER = 512
"""Characters of the longest answer that is read (or twice the gold's length, if that is more)."""
MAX_FINALS = 8
_BEYOND_ARITHMETIC = re.compile(r"\\(?:int|lim|sum|prod|det|partial|nabla)(?![a-zA-Z])")
_SHARE = 5
"""A comparison takes at most this fraction of the deadline, so that several hangs still fit into one."""


class MathVerifier:
    r"""Is the final answer equal to the gold answer? Exact, tolerant of notation, and never blocked.

    Golds may be LaTeX, `$...$`, boxed, numbers, GSM8K solutions (`... #### 72`), or a list of acceptable answers.
    What cannot be decided by arithmetic goes to math-verify in a pool of processes that are killed when late.

    Args:
        final_line: accept answers that are announced in words (`The answer is 5`) where there is no tag or box.
        lenient: where nothing announces an answer, take the last number of the text.
        copies: pay also for an answer that only repeats an expression of the question, though the gold is written in
            another form (`\frac{6}{8}` where the question is to simplify it).
        deadline_s: seconds for a batch's symbolic stage, however many comparisons it has: they share its CPU time, and
            one takes a fifth of it at most. What is not decided by then is wrong (`timeout`), and harms no other row.
        workers: processes of the pool; one a core, up to eight, if not given.
        rss_mib: MiB of memory that one comparison may take.
    """

    peer = "math-verify"
    """The verifier that audits compare it with."""

    def __init__(
        self,
        final_line: bool = True,
        lenient: bool = False,
        copies: bool = False,
        deadline_s: Positive = 15.0,
        workers: AtLeastOne | None = None,
        rss_mib: AtLeastOne = 1024,
    ) -> None:
        self.final_line, self.lenient, self.copies, self.deadline_s = final_line, lenient, copies, deadline_s
        self._pool = Pool("rewards.math.symbolic:judge", workers, deadline_s / _SHARE, rss_mib)

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """Judge completions; see `Verdict.detail` for the reason of each refusal."""
        cases = [self._case(item) for item in items]
        if any(_BEYOND_ARITHMETIC.search(gold) for case in cases for gold in case.gold):
            self._warm_up()
        pairs = list(dict.fromkeys(pair for case in cases for pair in case.open_pairs()))
        if pairs:
            answers = dict(zip(pairs, self._algebra(pairs), strict=True))
            for case in cases:
                case.settle(answers)
        verdicts = [case.verdict() for case in cases]
        return verdicts if self.copies else [_no_copy(v, c, i) for v, c, i in zip(verdicts, cases, items, strict=True)]

    def perfect_completion(self, row: Mapping[str, Any]) -> str:
        """A completion that answers a data row with its own gold."""
        gold = next((row[column] for column in GOLD_COLUMNS if column in row), None)
        return _answering(next(iter(golds(gold)), ""))

    def check_gold(self, gold: Any) -> str | None:
        """Why a gold answer cannot be used for training, or `None` if a perfect answer to it would be rewarded."""
        readable = golds(gold)
        if not readable:
            return "there is no gold answer"
        for text in readable:
            verdict = self.verify([Item(_answering(text), gold)])[0]
            if verdict.status is not Status.CORRECT:
                return f"{text!r} does not accept itself: {verdict.status}, {verdict.detail}"
        return None

    @staticmethod
    def same(first: Verdict, second: Verdict) -> bool | None:
        """Whether two completions give one answer, right or wrong; `None` if arithmetic cannot tell."""
        return same(first.extracted or "", second.extracted or "")

    def prepare(self) -> None:
        """Start the pool, so that the first answer that needs it does not wait for its imports."""
        self._pool.start()

    def _warm_up(self) -> None:
        """Let the pool begin with its imports, as soon as a gold has been seen that may need it."""
        with contextlib.suppress(PoolError):  # who needs the pool is told
            self._pool.start()

    def close(self) -> None:
        """End the pool's processes."""
        self._pool.close()

    def _case(self, item: Item) -> _Case:
        started = time.perf_counter()
        try:
            case = _Case(*payable(item.answer), finals(item.completion, self.final_line, self.lenient, item.opened))
            case.decide()
        finally:
            ms = (time.perf_counter() - started) * 1000
        case.ms = ms
        return case

    def _algebra(self, pairs: Sequence[tuple[str, str]]) -> list[Decision]:
        """Ask the pool."""
        try:
            outcomes = self._pool.map(pairs, self.deadline_s)
        except PoolError as error:
            return [Decision(Status.INFRA, str(error))] * len(pairs)
        decisions = {
            "equal": Decision(Status.CORRECT),
            "different": Decision(Status.WRONG),
            "rejected": Decision(Status.REJECTED, "made to keep computers busy"),
        }
        return [
            replace(decisions[o.value], ms=o.ms) if o.fate is Fate.DONE else Decision(STATUS_OF[o.fate], o.detail, o.ms)
            for o in outcomes
        ]


def _answering(text: str) -> str:
    return rf"The answer is $\boxed{{{text}}}$."


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one pair of gold and answer."""

    status: Status
    detail: str = ""
    ms: float = 0.0


class _Case:
    """One completion on its way to a verdict."""

    def __init__(self, gold: tuple[str, ...], fault: str, offered: list[str]) -> None:
        self.gold, self.fault, self.offered, self.ms = gold, fault, offered, 0.0
        self.decisions: dict[tuple[str, str], Decision | None] = {}

    def decide(self) -> None:
        """Decide every pair of gold and final answer that arithmetic can decide."""
        if not self.gold or not self.offered or len(self.offered) > MAX_FINALS:
            return
        texts = self.offered if len(self.offered) == 1 else [*self.offered, ", ".join(self.offered)]
        for answer in texts:
            for gold in self.gold:
                decision = _compare(gold, answer)
                self.decisions[gold, answer] = decision
                if decision is not None and decision.status is Status.CORRECT:
                    break

    def open_pairs(self) -> Iterable[tuple[str, str]]:
        """Pairs that need algebra, for answers that no other gold accepts already."""
        accepted = {answer for (_, answer), d in self.decisions.items() if d and d.status is Status.CORRECT}
        return [pair for pair, decision in self.decisions.items() if decision is None and pair[1] not in accepted]

    def settle(self, answers: dict[tuple[str, str], Decision]) -> None:
        """Take over what the pool found."""
        for pair in self.open_pairs():
            self.decisions[pair] = answers[pair]
            self.ms += answers[pair].ms

    def verdict(self) -> Verdict:
        """Put the decisions together."""
        if not self.gold:
            return Verdict.of(Status.BAD_GOLD, detail=self.fault, ms=self.ms)
        if not self.offered:
            return Verdict.of(Status.NO_ANSWER, detail="no final answer found", ms=self.ms)
        if len(self.offered) > MAX_FINALS:
            return Verdict.of(Status.REJECTED, self.offered[-1], f"{len(self.offered)} different answers", self.ms)
        by_answer = [self._best(answer) for answer in self.offered]
        last = self.offered[-1]
        right = [decision.status is Status.CORRECT for decision in by_answer]
        if all(right):
            return Verdict.of(Status.CORRECT, last, ms=self.ms)
        if len(self.offered) > 1:
            together = ", ".join(self.offered)
            if self._best(together).status is Status.CORRECT:
                return Verdict.of(Status.CORRECT, together, ms=self.ms)
            if any(right):
                return Verdict.of(Status.REJECTED, together, "several different final answers", self.ms)
        worst = by_answer[-1]
        return Verdict.of(worst.status, last, worst.detail or "not equal to the gold answer", self.ms)

    def _best(self, answer: str) -> Decision:
        found = [d for (_, text), d in self.decisions.items() if text == answer and d is not None]
        return min(found, key=lambda d: _RANK.index(d.status)) if found else Decision(Status.WRONG)


def _no_copy(verdict: Verdict, case: _Case, item: Item) -> Verdict:
    """The verdict, unless what was right only repeats the question."""
    answer = verdict.extracted
    if verdict.status is not Status.CORRECT or not item.prompt or answer is None:
        return verdict
    golds = [gold for gold in case.gold if _is_right(case.decisions.get((gold, answer)))]
    if not golds or not all(copied(answer, gold, item.prompt) for gold in golds):
        return verdict
    return Verdict.of(Status.WRONG, answer, "repeats the question in another form than the gold's", verdict.ms)


def _is_right(decision: Decision | None) -> bool:
    return decision is not None and decision.status is Status.CORRECT


_RANK = (Status.CORRECT, Status.INFRA, Status.TIMEOUT, Status.REJECTED, Status.WRONG)


def golds(answer: Any) -> tuple[str, ...]:
    """The acceptable answers that a data row's gold stands for; empty if none can be read."""
    if isinstance(answer, list | tuple | set | frozenset):
        return tuple(dict.fromkeys(text for one in answer for text in golds(one)))
    if isinstance(answer, bool):
        return (str(answer),)
    if isinstance(answer, int):
        return (str(answer),) if answer.bit_length() < 4096 else ()
    if isinstance(answer, float):
        return (_number(answer),) if math.isfinite(answer) else ()
    if isinstance(answer, Fraction):
        return (f"{answer.numerator}/{answer.denominator}",)
    text = gold_text(answer) if isinstance(answer, str) else ""
    return (text,) if text else ()


def payable(answer: Any) -> tuple[tuple[str, ...], str]:
    """The golds among `golds(answer)` for which somebody could be paid, and if there is none, what is wrong."""
    return _payable_text(answer) if isinstance(answer, str) else _payable(golds(answer))


@lru_cache(maxsize=4096)
def _payable_text(answer: str) -> tuple[tuple[str, ...], str]:
    """The same for a text, which the rollouts of a problem share: it is remembered."""
    return _payable(golds(answer))


def _payable(readable: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    doubtful = [gold for gold in readable if simple(gold) is None]  # a plain number is beyond doubt
    faults = {gold: fault for gold in doubtful if (fault := unpayable(gold)) is not None}
    some = tuple(gold for gold in readable if gold not in faults)
    return some, "" if some else next(iter(faults.values()), "there is no gold answer")


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


_shape = lru_cache(maxsize=1024)(shape_of)
"""Shapes of golds and of answers that many rollouts share; a cache of pure values."""


def _compare(gold: str, answer: str) -> Decision | None:
    """Compare by everything but algebra; `None` if that does not decide."""
    if gold == answer:
        return _EQUAL
    plain = answer.strip(_AROUND_A_NUMBER)
    gold_value = simple(gold)
    if gold_value is not None:
        answer_value = simple(plain)
        if answer_value is not None and "." not in gold + plain:
            return _EQUAL if gold_value == answer_value else _DIFFERENT
    if len(answer) > max(MAX_ANSWER, 2 * len(gold)):
        return Decision(Status.REJECTED, f"an answer of {len(answer)} characters")
    return _compared(gold, answer)


@lru_cache(maxsize=4096)
def _compared(gold: str, answer: str) -> Decision | None:
    """The same for what is no plain number; rollouts of one prompt often agree, so it is remembered."""
    wanted, given = None if len(gold) == 1 and gold.islower() else choice(gold), choice(answer)
    if given is not None:
        if wanted is not None:
            return _EQUAL if given[0] == wanted[0] else _DIFFERENT
        answer = given[1] or answer
    elif wanted is not None:
        gold = wanted[1] or gold
    try:
        if tokens_of(gold) == tokens_of(answer):
            return _EQUAL
        agree = equal(_shape(gold), _shape(answer), exact)
    except (TooBigError, TooDeepError) as error:
        return Decision(Status.REJECTED, str(error))
    except _FAULTS as error:
        logger.warning("please report: %r, with the gold %r, breaks the reader", answer, gold, exc_info=error)
        return Decision(Status.REJECTED, f"it breaks the reader: {type(error).__name__}")
    return None if agree is None else _EQUAL if agree else _DIFFERENT


_AROUND_A_NUMBER = " $\t\n"
_FAULTS = (ArithmeticError, AssertionError, LookupError, RecursionError, TypeError, ValueError)
"""What a fault of the reader may raise: it costs the answer that shows it, and not the training run."""


def same(first: str, second: str) -> bool | None:
    """Whether two answers say the same, whichever is taken for the gold; `None` if arithmetic cannot tell."""
    decisions = [_compare(first, second), _compare(second, first)]
    if any(decision is not None and decision.status is Status.CORRECT for decision in decisions):
        return True
    return False if all(decision is not None and decision.status is Status.WRONG for decision in decisions) else None


_EQUAL, _DIFFERENT = Decision(Status.CORRECT), Decision(Status.WRONG, "not equal to the gold answer")
