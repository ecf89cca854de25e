"""An answer that only repeats the question is not paid, although it equals the gold."""

from __future__ import annotations

import pytest

import rewards
from rewards import Item, Status
from rewards.audit import copied_questions
from rewards.math import MathVerifier

QUESTIONS = [
    (r"Simplify $\frac{6}{8}$.", r"\frac{3}{4}", r"\frac{6}{8}"),
    (r"Simplify $\sqrt{72}$.", r"6\sqrt{2}", r"\sqrt{72}"),
    (r"Compute $\dbinom{8}{4}$.", "70", r"\dbinom{8}{4}"),
    ("Convert $427_8$ to base 10.", "279", "427_8"),
    (r"Express $0.\overline{7}$ as a common fraction.", r"\frac{7}{9}", r"0.\overline{7}"),
    (r"Factor $x^2 - 9$.", "(x+3)(x-3)", "x^2 - 9"),
    (r"Factor $x^2 - 9$.", "(x+3)(x-3)", "-9 + x^2"),
    (r"Factor $x^2 - 9$.", "(x+3)(x-3)", r"1 \cdot (x^2 - 9) + 0"),
    (r"Expand $(x+2)(x+5)$.", "x^2+7x+10", "(x+5)(x+2)"),
    (r"Evaluate $\sin 30^\circ + \log_2 8$.", r"\frac{7}{2}", r"x = \sin 30^\circ + \log_2 8"),
    ("Rationalise $\\frac{1}{\\sqrt{3}}$.", r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    ("How many minutes are $2$ hours?", "120 minutes", "2 hours"),
    (r"Write $4x - 2y + 6 = 0$ in the form $y = mx + b$.", "y = 2x + 3", "4x - 2y + 6 = 0"),
]


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier()
    yield verifier
    verifier.close()


@pytest.mark.parametrize(("question", "gold", "copy"), QUESTIONS)
def test_a_copy_is_not_paid_and_the_answer_is(verifier, question, gold, copy):
    items = [Item(rf"\boxed{{{answer}}}", gold, question) for answer in (copy, gold)]
    copied, answered = verifier.verify(items)
    assert (copied.status, copied.score) == (Status.WRONG, 0.0)
    assert "question" in copied.detail
    assert answered.status is Status.CORRECT


@pytest.mark.parametrize(
    ("question", "gold", "answer"),
    [
        ("What is the range of $x^k$ on $[1, \\infty)$?", r"[1,\infty)", r"[1, \infty)"),  # the gold stands there, too
        ("A shelf holds $12$ books. How many are there?", "12", "12"),
        ("A shelf holds $12$ books. How many are there?", "12.0", "12"),
        ("For what value is $x = 4$? Find $m$.", "4", "x = 4"),
        ("Is it Tuesday or Monday?", r"\text{Tuesday}", "Tuesday"),
        (r"Let $p = \frac{1}{2}$. What is $p$?", r"\frac12", "1/2"),  # the gold's own form, in another style
        (r"Find $2ab$ again.", "2ba", "2ab"),
        (r"Simplify $\frac{6}{8}$.", r"\frac{3}{4}", r"\frac{9}{12}"),  # no copy
        ("", r"\frac{3}{4}", r"\frac{6}{8}"),
    ],
)
def test_what_is_no_copy_is_paid(verifier, question, gold, answer):
    assert verifier.verify([Item(rf"\boxed{{{answer}}}", gold, question)])[0].status is Status.CORRECT


def test_copies_are_paid_on_demand_and_through_trl_s_arguments():
    question, gold, copy = QUESTIONS[0]
    chat = [[{"role": "user", "content": question}]]
    for options, scores in (({}, [0.0]), ({"copies": True}, [1.0])):
        score = rewards.load("math", **options)
        assert score(chat, [rf"\boxed{{{copy}}}"], answer=[gold]) == scores
        score.close()


def test_the_audit_counts_golds_that_are_the_question_rewritten():
    rows = [{"problem": question, "answer": gold} for question, gold, _ in QUESTIONS]
    (finding,) = copied_questions("math", rows)
    assert (finding.passed, finding.total, finding.ok) == (finding.total, finding.total, True)
    assert finding.examples[0] == (
        "equal to an expression of the question",
        f"{finding.total - 1} of {finding.total} golds",
    )
    (finding,) = copied_questions("math", rows, copies=True)
    assert finding.passed < finding.total
