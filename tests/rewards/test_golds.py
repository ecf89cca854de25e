"""Golds that can pay nobody are told apart from every gold that somebody could be paid for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rewards
from rewards import Status
from rewards.audit import audit
from rewards.golds import unpayable
from rewards.math import MathVerifier
from rewards.math.verifier import golds

TESTS = Path(__file__).parents[1] / "data"
CORPUS = Path(rewards.__file__).parent / "corpus" / "math.jsonl"

WORDS = ("proof", "Proof.", r"\text{proof}", "N/A", "n/a", "NaN", "null", "See solution.", "Proof omitted", "tbd")
WORDS = (
    *WORDS,
    "see the proof above",
    "Refer to the figure",
    "Prove that $a > b$.",
    "证明略",
    "见解析",
    "not provided",
)
LISTS = ('["70"]', "['70']", '["a", "b"]', '{"answer": "7"}', "('7',)")
WORKED = (
    "We have 3+4=7. So the answer is 7.",
    "48/2 = 24 clips in May.\nAltogether 48+24=72 clips.",
    "Since $x^2 = 4$, we get $x = 2$ or $x = -2$.",
    "Let $x$ be the number of apples. Then $2x = 10$ so $x = 5$.",
    r"By Vieta, the sum is $-\frac{b}{a}$. The sum of all of the roots of the polynomial is therefore $3$.",
    "The robe takes two bolts of blue fiber. It also takes half of that in white fiber, which is one bolt.",
    "解：由题意得x=3，所以答案是3。",
)
BROKEN = (
    r"\frac{1",
    r"\frac{",
    "x^",
    "x_",
    "x =",
    r"\sqrt",
    r"\frac{1}",
    "??",
    "-",
    "$",
    "...",
    r"\boxed{}",
    r"\text{}",
)
BROKEN = (*BROKEN, r"\begin{pmatrix} 1 & 2")
SOUND = (
    *("7", "-3", "1/2", "x > 3", "Alice", "Yes", "no solution", "None", "undefined", "(A)", "A", r"\emptyset", "∅"),
    *(r"\infty", "∞", "0^+", r"12\\", "[0, 1)", "[70]", r"\{1,2\}", "{1, 2}", "3 hours and 20 minutes", "Friday"),
    *("Na", "na", "NaN_3", "unknown", "Unknown", "missing"),
    *(r"\begin{cases} x=1 \\ y=2 \end{cases}", "\\begin{cases}\nx = 1 \\\\\ny = 2\n\\end{cases}", "x=1\ny=2"),
    *("All primes p such that p = 3 mod 4", "Alice wins if and only if n is not divisible by 4", "12 % of all"),
    *(r"2 \text{ red balls and } 3 \text{ blue balls}", "The answer is 7.", "5,000 dollars.", "f(x) = x for all x"),
    *(r"\text{if } x > 0 \text{ then } y = 1", "sin x", "e", "π", "½", "٣", "十二", r"\frac{a}{b}", r"x^{2}_{1}"),
)


@pytest.mark.parametrize("gold", [*WORDS, *LISTS, *WORKED, *BROKEN])
def test_a_gold_that_pays_nobody_is_bad_and_leaves_its_row_out(gold: str) -> None:
    for answer in (gold, "70", "7"):
        verdict = rewards.verify("math", [(rf"\boxed{{{answer}}}", gold)])[0]
        assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None), answer
        assert verdict.detail.startswith("the gold ")
    assert str(unpayable(gold)) in str(MathVerifier().check_gold(gold))


@pytest.mark.parametrize("gold", SOUND)
def test_a_gold_that_somebody_could_give_is_fine(gold: str) -> None:
    assert unpayable(gold) is None


def test_of_several_golds_those_that_can_be_paid_count() -> None:
    assert rewards.verify("math", [(r"\boxed{7}", ["N/A", "7"])])[0].score == 1.0
    assert rewards.verify("math", [(r"\boxed{7}", ["N/A", "proof"])])[0].status is Status.BAD_GOLD
    assert rewards.verify("math", [(r"\boxed{70}", ["70"])])[0].score == 1.0


def test_golds_of_solutions_with_a_mark_are_fine() -> None:
    for gold in (r"We have $3 + 4 = 7$, so therefore it is $\boxed{7}$.", "First we add 3 and 4. We get 7.\n#### 7"):
        assert rewards.verify("math", [(r"\boxed{7}", gold)])[0].score == 1.0


def test_no_gold_of_the_published_corpus_or_of_gsm8k_is_doubted() -> None:
    lines = [*CORPUS.read_text().splitlines(), *(TESTS / "gsm8k" / "train.jsonl").read_text().splitlines()[:20]]
    rows = [json.loads(line) for line in lines]
    doubted = [text for row in rows for text in golds(row.get("gold", row.get("answer"))) if unpayable(text)]
    assert doubted == []


def test_an_audit_says_so() -> None:
    bad = (WORDS[0], LISTS[0], WORKED[0], BROKEN[0])
    report = audit("math", [{"answer": gold} for gold in (*bad, "7")])
    finding = next(finding for finding in report.findings if finding.check == "golds accept themselves")
    assert (finding.passed, finding.total, finding.ok, report.ok) == (1, 5, False, False)
    assert all(str(unpayable(gold)) in told for gold, (_, told) in zip(bad, finding.examples, strict=True))
