"""The countdown scorer: what solves a problem, what does not, and how long hostile answers may take."""

from __future__ import annotations

import random
import time
from fractions import Fraction
from itertools import permutations, product

import pytest

import rewards
from rewards import Item, Status
from rewards.countdown import Countdown

NUMBERS, TARGET = [3, 7, 25, 50], 82


def judge(answer: str, numbers: object = NUMBERS, target: object = TARGET, tag: bool = True) -> rewards.Verdict:
    completion = f"<think>hm</think><answer>{answer}</answer>" if tag else answer
    return Countdown().verify([Item(completion, columns={"numbers": numbers, "target": target})])[0]


@pytest.mark.parametrize(
    "answer",
    [
        "(50 - 25) * 3 + 7",
        "((50-25)*3)+7",
        "7+3*(50 - 25)",
        " ( 50 − 25 ) × 3 + 7 ",
        r"(50 - 25) \times 3 + 7",
        r"$\left(50 - 25\right) \cdot 3 + 7$",
        "(50 - 25) * 3 + 7 = 82",
        "[50 - 25] * 3 + 7",
        "(50 - 25) * 03 + 7",
    ],
)
def test_solutions(answer: str) -> None:
    assert judge(answer).score == 1.0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("50 + 25 + 7", "does not use 3"),
        ("50 + 25 + 7 * 3 - 7 - 7", "uses without being given 7, 7"),
        ("(50 - 25) * 3 + 7 + 0", "uses without being given 0"),
        ("82", "does not use"),
        ("50 + 25 + 7 + 3", "makes 85, not 82"),
        ("(50 - 25) * 3 - 7 * 0", "uses without being given 0"),
        ("50 / (25 - 25) + 3 + 7", "uses without being given 25"),
        ("(50 - 25) * 3 + 7 = 83", "behind '=' is not 82"),
        ("82 = (50 - 25) * 3 + 7", "behind '=' is not 82"),
        ("(50 - 25) * 3 + 7 = 82 = 82", "more than one '='"),
        ("(50 - 25) * 3 + 7)", "did not expect"),
        ("((50 - 25) * 3 + 7", "not closed"),
        ("(50 - 25) * 3 + + 7", "expected a number before '+'"),
        ("-25 + 50 * 3 - 7", "expected a number before '-'"),
        ("50 25 * 3 - 7", "did not expect '25'"),
        ("() * 50 + 25 + 3 + 7", "expected a number before ')'"),
        ("50 - 25 * 3 + 7 +", "ends too early"),
        ("5 0 - 25 * 3 + 7", "does not use 50"),
        ("(50 - 25) ** 3 + 7", "expected a number before '*'"),
        ("(50 - 25) // 3 + 7", "expected a number before '/'"),
        ("50.0 - 25 * 3 + 7", "cannot read"),
        ("5_0 - 25 * 3 + 7", "cannot read"),
        ("0x32 - 25 * 3 + 7", "cannot read"),
        ("٥٠ - 25 * 3 + 7", ""),
        ("__import__('os').system('true')", "cannot read"),
        ("lambda: 50", "cannot read"),
    ],
)
def test_what_is_no_solution(answer: str, words: str) -> None:
    verdict = judge(answer)
    assert (verdict.status, verdict.score) == (Status.WRONG, 0.0)
    assert words in verdict.detail


def test_division_by_zero_and_fractions_on_the_way() -> None:
    assert "divides by zero" in judge("5 / (3 - 3)", [3, 3, 5], 1).detail
    assert "does not use 3" in judge("8 / (3 - 8)", [3, 3, 8, 8], 24).detail
    assert judge("8 / (3 - 8 / 3)", [8, 3, 8, 3], 24).score == 1.0
    assert judge("1 / 3 * 3", [1, 3, 3], 1).score == 1.0


def test_where_the_answer_is_looked_for() -> None:
    solution = "(50 - 25) * 3 + 7"
    assert judge(rf"So \boxed{{{solution}}}.", tag=False).score == 1.0
    assert judge(rf"\boxed{{1}} or \boxed{{{solution}}}", tag=False).score == 1.0
    assert judge(f"<answer>1 + 1</answer> rather <answer>{solution}</answer>", tag=False).score == 1.0
    for nothing in (solution, f"<think><answer>{solution}</answer>", f"<think>{solution}</think>", "", "<answer>"):
        assert judge(nothing, tag=False).status is Status.NO_ANSWER, nothing
    assert judge("", tag=True).score == 0.0


@pytest.mark.parametrize(
    ("numbers", "target"),
    [(None, 3), ([1, 2], None), ([], 3), ("12", 3), ([1, "2"], 3), ([1.5], 3), (list(range(40)), 3), ([-1, 2], 1)],
)
def test_a_row_that_is_no_problem_is_not_the_models_fault(numbers: object, target: object) -> None:
    verdict = judge("1 + 2", numbers, target)
    assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None)


def test_against_python_on_random_expressions() -> None:
    rng = random.Random(0)
    shapes = ["{} {} {} {} {}", "({} {} {}) {} {}", "{} {} ({} {} {})"]
    for _ in range(300):
        numbers = [rng.randint(1, 12) for _ in range(3)]
        shape, (first, second) = rng.choice(shapes), rng.choices("+-*/", k=2)
        expression = shape.format(numbers[0], first, numbers[1], second, numbers[2])
        exact = shape.format(
            f"Fraction({numbers[0]})", first, f"Fraction({numbers[1]})", second, f"Fraction({numbers[2]})"
        )
        try:
            value = eval(exact, {"Fraction": Fraction})
        except ZeroDivisionError:
            assert "divides by zero" in judge(expression, numbers, 1).detail
            continue
        if value.denominator == 1:
            assert judge(expression, numbers, int(value)).score == 1.0
        assert judge(expression, numbers, int(value) + 1).score == 0.0


def test_it_accepts_exactly_what_brute_force_finds() -> None:
    numbers, target = [2, 3, 4], 10
    for order in permutations(numbers):
        for ops in product("+-*/", repeat=2):
            expression = f"({order[0]} {ops[0]} {order[1]}) {ops[1]} {order[2]}"
            assert judge(expression, numbers, target).score == float(eval(expression) == target)


def test_hostile_answers_take_no_time() -> None:
    hostile = [
        "(" * 500_000,
        "(" * 199 + "1" + ")" * 199,
        "9" * 1_000_000,
        "9" * 390,
        "1+" * 199,
        "9**9**9**9",
        " " * 1_000_000,
        r"\boxed{" * 100_000,
        "=" * 399,
        "1" + " " * 390 + "x",
        "<answer>" * 100_000,
    ]
    started = time.process_time()
    for text in hostile:
        assert judge(text).score == 0.0
        assert judge(text, tag=False).score == 0.0
        assert judge("<answer>1</answer>" + text, tag=False).score == 0.0
    assert time.process_time() - started < 2.0
    assert judge("1 +" * 134).status is Status.REJECTED


def test_it_is_a_registered_reward_for_batches() -> None:
    reward = rewards.load("countdown")
    scores = reward(
        ["p", "p"], ["<answer>1 + 2</answer>", "<answer>2 - 1</answer>"], numbers=[[1, 2], [1, 2]], target=[3, 3]
    )
    assert scores == [1.0, 0.0]
