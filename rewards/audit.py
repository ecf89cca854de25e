"""Is this reward safe to train on, with these golds? Five questions, one table, one exit status.

* Does it accept every gold answer of the data set, given as the answer?
* Does anything hostile score, raise, or take longer than its deadline?
* How many golds are only the question's own expression rewritten, so that copying it equals them (mathematics)?
* Where does it disagree with math-verify (mathematical rewards only)?
* Which rows are slowest?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards.function import GOLD_COLUMNS, Batch, RewardFunction
from rewards.golds import COMPARING, stands_for_nothing
from rewards.hostile import attacks
from rewards.math.copied import formulas, question_of
from rewards.math.extract import gold_text
from rewards.pool import Fate, Pool
from rewards.verdict import Item, Verdict

SELF_ACCEPTANCE = 0.995
"""Share of golds that must accept themselves."""
HOSTILE_LIMIT_S = 30.0
"""Wall-clock seconds within which all hostile completions together must be judged."""
_SHOWN = 5
_PEER_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one question found.

    Attributes:
        check: the question, in a few words.
        passed: how many cases were as they should be.
        total: how many there were.
        ok: whether that is good enough; findings that are only for reading are always ok.
        examples: the cases that were not as they should be, or that are worth reading: (case, what happened).
    """

    check: str
    passed: int
    total: int
    ok: bool
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found about one reward on one data set."""

    name: str
    rows: int
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the reward may be trusted with this data."""
        return all(finding.ok for finding in self.findings)

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows for people: (check, result, counts, example), one a finding and one more for each further example."""
        lines = []
        for finding in self.findings:
            examples = [f"{case}: {what}" for case, what in finding.examples] or [""]
            lines.append(
                (finding.check, "ok" if finding.ok else "FAILED", f"{finding.passed}/{finding.total}", examples[0])
            )
            lines += [("", "", "", example) for example in examples[1:_SHOWN]]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-able data."""
        return {**asdict(self), "ok": self.ok}


def audit(use: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> AuditReport:
    """Examine a reward on a data set.

    Args:
        use: name, `module:attribute` or `file.py:attribute` of the reward.
        rows: data rows; the gold is in `answer` or `solution`. A `completion` column, if there is one, is judged by
            the reward and by math-verify, and their disagreements are listed.
        options: constructor arguments of the reward.
    """
    started = time.perf_counter()
    function = RewardFunction(use, options, in_trainer=False)
    try:
        findings = [_hostile(function, rows)]
        verifier = function.verifier
        perfect = getattr(verifier, "perfect_completion", None)
        judged: list[tuple[Item, Verdict]] = []
        if perfect is None and callable(check := getattr(verifier, "check_gold", None)):
            findings.insert(0, _readable(rows, check))
        if perfect is not None:
            finding, judged = _self_acceptance(function, rows, perfect)
            findings.insert(0, finding)
        if use in COMPARING:
            findings.insert(0, _answers(rows))
        if getattr(verifier, "peer", None) == "math-verify":
            findings += [*copied_questions(use, rows, **options), _disagreement(function, rows)]
        if judged:
            findings.append(_slowest(judged))
    finally:
        function.close()
    return AuditReport(use, len(rows), time.perf_counter() - started, tuple(findings))


def _gold(row: Mapping[str, Any]) -> Any:
    return next((row[column] for column in GOLD_COLUMNS if column in row), None)


def _judge(function: RewardFunction, items: Sequence[Item]) -> list[Verdict]:
    return function.verdicts(Batch.of(items))


def _self_acceptance(
    function: RewardFunction, rows: Sequence[Mapping[str, Any]], perfect: Any
) -> tuple[Finding, list[tuple[Item, Verdict]]]:
    items = [Item(perfect(row), _gold(row), "", None, dict(row)) for row in rows]
    judged = list(zip(items, _judge(function, items), strict=True)) if items else []
    bad = [
        (f"row {n}", f"{v.status}: {v.detail or repr(str(i.answer)[-60:])}")
        for n, (i, v) in enumerate(judged)
        if v.score != 1.0
    ]
    passed = len(items) - len(bad)
    good = passed >= SELF_ACCEPTANCE * len(items)
    return Finding("golds accept themselves", passed, len(items), good, tuple(bad)), judged


def _readable(rows: Sequence[Mapping[str, Any]], check: Callable[[Any], str | None]) -> Finding:
    """What is wrong with golds that nobody knows a right answer to, as their verifier says."""
    bad = [(f"row {n}", reason) for n, row in enumerate(rows) if (reason := check(_gold(row)))]
    good = len(bad) <= (1 - SELF_ACCEPTANCE) * len(rows)
    return Finding("golds are sound", len(rows) - len(bad), len(rows), good, tuple(bad))


def _answers(rows: Sequence[Mapping[str, Any]]) -> Finding:
    """Golds that only equal themselves, for a reward that takes any text for one."""
    faults = [stands_for_nothing(str(_gold(row) or "")) for row in rows]
    bad = [(f"row {number}", fault) for number, fault in enumerate(faults) if fault is not None]
    passed = len(rows) - len(bad)
    return Finding("golds are answers", passed, len(rows), passed >= SELF_ACCEPTANCE * len(rows), tuple(bad))


def _hostile(function: RewardFunction, rows: Sequence[Mapping[str, Any]]) -> Finding:
    check = getattr(function.verifier, "check_gold", lambda gold: None)
    gold = next((g for row in rows if (g := _gold(row)) is not None and check(g) is None), "42")
    own = getattr(function.verifier, "attacks", None)
    cases = [*attacks(gold_text(str(gold))), *(own(gold) if own is not None else ())]
    columns = dict(rows[0]) if rows else {}
    items = [Item(completion, gold, "", None, columns) for _, completion in cases]
    started = time.perf_counter()
    try:
        verdicts = _judge(function, items)
    except Exception as error:  # noqa: BLE001  a reward that raises has failed the audit; which way is reported
        return Finding("hostile completions", 0, len(cases), False, (("raised", f"{type(error).__name__}: {error}"),))
    seconds = time.perf_counter() - started
    bad = [(name, f"scored {v.score}") for (name, _), v in zip(cases, verdicts, strict=True) if (v.score or 0.0) > 0.0]
    if seconds > HOSTILE_LIMIT_S:
        bad.append(("all together", f"{seconds:.1f} s"))
    return Finding("hostile completions", len(cases) - len(bad), len(cases), not bad, tuple(bad))


def _disagreement(function: RewardFunction, rows: Sequence[Mapping[str, Any]]) -> Finding:
    """Judge completions (or golds against themselves and their neighbours) with both, and list the differences."""
    golds = [str(_gold(row)) for row in rows]
    if all("completion" in row for row in rows):
        pairs = [(str(row["completion"]), gold) for row, gold in zip(rows, golds, strict=True)]
    else:
        answers = [*golds, *golds[1:], *golds[:1]]
        pairs = [(rf"\boxed{{{gold_text(a)}}}", g) for a, g in zip(answers, golds * 2, strict=True)]
    ours = _judge(function, [Item(completion, gold) for completion, gold in pairs])
    with_peer = Pool("rewards.peers:math_verify", deadline_s=_PEER_DEADLINE_S)
    try:
        theirs = with_peer.map([(completion, gold_text(gold)) for completion, gold in pairs])
    finally:
        with_peer.close()
    different = []
    for (completion, gold), verdict, outcome in zip(pairs, ours, theirs, strict=True):
        peer = bool(outcome.value) if outcome.fate is Fate.DONE else None
        if peer != (verdict.score == 1.0):
            said = outcome.fate.value if peer is None else "correct" if peer else "wrong"
            different.append((f"{completion[-60:]} for {gold[-40:]}", f"{verdict.status}, math-verify: {said}"))
    return Finding("agrees with math-verify", len(pairs) - len(different), len(pairs), True, tuple(different))


def copied_questions(use: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> list[Finding]:
    """What boxing the longest formula of each question pays, by equality alone and as the reward is configured.

    Nothing if no question has a formula.
    """
    asked = [(question_of(row), row) for row in rows]
    copies = [(max(formulas(question), key=len, default=""), question, _gold(row)) for question, row in asked]
    items = [Item(rf"\boxed{{{copy}}}", gold, question) for copy, question, gold in copies if copy]
    if not items:
        return []
    paid = []
    for pays_copies in (True, bool(options.get("copies"))):
        function = RewardFunction(use, {**options, "copies": pays_copies}, in_trainer=False)
        try:
            verdicts = _judge(function, items)
        finally:
            function.close()
        paid.append([item for item, verdict in zip(items, verdicts, strict=True) if verdict.score == 1.0])
    examples = [("equal to an expression of the question", f"{len(paid[0])} of {len(items)} golds")]
    examples += [(f"paid: {item.completion[-60:]}", f"gold {str(item.answer)[-40:]}") for item in paid[1]]
    return [Finding("copied questions are not paid", len(items) - len(paid[1]), len(items), True, tuple(examples))]


def _slowest(judged: Sequence[tuple[Item, Verdict]]) -> Finding:
    slowest = sorted(judged, key=lambda pair: -pair[1].ms)[:_SHOWN]
    cases = tuple((str(item.answer)[-60:], f"{verdict.ms:.1f} ms") for item, verdict in slowest)
    return Finding("slowest golds", len(judged), len(judged), True, cases)
