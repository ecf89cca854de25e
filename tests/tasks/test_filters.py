"""Rules on completions, duplicates, and overlap with test problems."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from pipeline.data.filters import Contamination, Duplicates, FilterSpec, longest_paragraph, repetition
from pipeline.recipe import RecipeError, load

SOUND = "<think>First this.\n\nThen that.</think>\n42"


@pytest.mark.parametrize(
    ("spec", "completion", "fault"),
    [
        ({}, SOUND, None),
        ({}, "<think>```python\nprint(1)\n```</think>42", "code_in_thought"),
        ({}, "<think>so\n  ~~~\nx\n~~~</think>42", "code_in_thought"),
        ({}, "<think>so</think>```python\nprint(42)\n```", None),
        ({"code_in_thought": True}, "<think>```\n1\n```</think>42", None),
        ({"max_paragraph": 11}, SOUND, None),
        ({"max_paragraph": 10}, SOUND, "long_paragraph"),
        ({"max_paragraph": 10}, "<think>short</think>" + "long " * 9, None),
        ({"min_tokens": 8}, SOUND, "too_short"),
        ({"max_tokens": 6}, SOUND, "too_long"),
        ({"min_tokens": 7, "max_tokens": 7}, SOUND, None),
        ({"max_repetition": 0.2}, "a b c d e f g h i j " * 5, "repetition"),
        ({"max_repetition": 0.2}, SOUND, None),
    ],
)
def test_rules(spec: dict[str, object], completion: str, fault: str | None) -> None:
    assert FilterSpec.model_validate(spec).fault(completion, tokens=7, truncated=False) == fault


def test_what_was_cut_off_is_dropped_unless_asked_for() -> None:
    assert FilterSpec().fault(SOUND, 7, truncated=True) == "truncated"
    assert FilterSpec(truncated=True).fault(SOUND, 7, truncated=True) is None


def test_repetition_is_the_share_of_runs_that_came_before() -> None:
    assert repetition("one two three") == 0.0
    assert repetition("a b c a b c a b c", length=3) == pytest.approx(4 / 7)  # 7 runs: abc bca cab abc bca cab abc
    assert repetition("我们得到答案" * 20) > 0.9, "characters count as words where there are no spaces"
    assert repetition(" ".join(str(number) for number in range(500))) == 0.0
    assert longest_paragraph("ab\ncd\n \nx") == 5


def test_duplicates_differ_in_nothing_that_matters() -> None:
    seen = Duplicates()
    assert not seen.seen("What is 2 + 3?", "It is 5.")
    assert seen.seen("what is  2 + 3?", "it is\n5.")
    assert not seen.seen("What is 2 - 3?", "It is 5.")
    assert not seen.seen("What is 2 + 3?", "It is 5")
    assert not seen.seen("２ + 3", "x")
    assert seen.seen("2 + 3", "X")
    assert not seen.seen("ab", "c")
    assert not seen.seen("a", "bc"), "where one text ends and the next begins matters"


TESTS = [
    "A train leaves Paris at noon with forty red boxes and seven sleepy cats on board. How many boxes are red?",
    "7 +3 *7 -2 =",
]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        (TESTS[0], True),
        (TESTS[0].upper().replace(".", " ."), True),
        ("Note: a train leaves Paris at noon with forty red boxes and nothing else.", True),
        ("A train leaves Paris at noon with nine red boxes and seven sleepy cats.", False),
        ("7 +3  *7 -2 =", True),
        ("7 +3 *7 -3 =", False),
        ("7 +3 *7 -2 +1 =", False),
        ("", False),
    ],
)
def test_ten_words_in_a_row_are_contamination(question: str, found: bool) -> None:
    assert Contamination(TESTS).found(question) is found


@pytest.mark.parametrize(
    ("question", "found"),
    [
        (TESTS[0].replace("boxes", "bo\u00adxes").replace("leaves", "lea\u00adves"), True),
        (TESTS[0].replace("train", "tr\u200bain").replace("cats", "ca\u200dts"), True),
        ("\ufeff" + TESTS[0].replace(" ", "\u00a0"), True),
        (TESTS[1].replace("-", "\u2212"), True),
        (TESTS[1].replace("-", "\u2013").replace("*", "\u00d7"), True),
        (TESTS[1].replace("*", r"\cdot "), True),
        (TESTS[1].replace("*", r"\times "), True),
        (TESTS[1].replace("-", "+"), False),
        (TESTS[1].replace("*", r"\timestamp "), False),
        (TESTS[1].replace("*", "\u00f7"), False),
    ],
)
def test_a_question_is_the_same_however_its_signs_are_written(question: str, found: bool) -> None:
    assert Contamination(TESTS).found(question) is found
    assert Contamination([question]).found(TESTS[1 if "3" in question else 0]) is found, "whichever is the test's"


def test_wording_that_test_questions_share_is_not_content() -> None:
    wording = "Using each of the numbers {} exactly once, and + - * / with parentheses, make 82. Answer with it alone."
    contamination = Contamination(wording.format(f"{n}, {n + 1}, 7") for n in range(100))
    assert contamination.found(wording.format("3, 4, 7"))
    assert not contamination.found(wording.format("204, 203, 207"))
    one = Contamination([wording.format("1, 2, 3") + " Good luck to you."])
    assert one.found(wording.format("204, 203, 207") + " Good luck to you."), "one question has no wording"


def test_signs_are_no_words() -> None:
    fractions = r"\frac{1}{2} + \frac{3}{4} = \frac{x}{y}"
    assert Contamination([f"Solve {fractions}"]).found(f"Solve  {fractions}")
    assert not Contamination([f"Solve {fractions}"]).found(f"Simplify {fractions}")


def test_hostile_text_takes_linear_time() -> None:
    started = time.process_time()
    for text in ("a " * 200_000, "\n" * 400_000, "```" * 100_000, " \n \n" * 80_000, "(" * 300_000):
        FilterSpec(max_paragraph=10, max_repetition=1.0).fault(f"<think>{text}</think>", 1, False)
        Contamination(TESTS).found(text)
        Duplicates().seen(text, text)
    assert time.process_time() - started < 15.0


RATES = "  rates: {kind: pass_rate, model: m, tasks: [countdown]}\n"


@pytest.mark.parametrize(
    ("task", "stages", "message"),
    [
        ("arithmetic, filter: {pass_rate: [0.1, 0.9]}", "", "pass_rate: nobody has measured it: add a stage of kind"),
        ("arithmetic, filter: {level: 3}", "", "level: problems of arithmetic have no such column. They have: prompt"),
        (
            "countdown, filter: {targt: 3}",
            "",
            "targt: problems of countdown have no such column (did you mean",
        ),
        ("countdown, filter: {pass_rate: [0.9, 0.1]}", RATES, "pass_rate: [0.9, 0.1] ends before it begins"),
        (
            "countdown, filter: {pass_rate: [10, 90]}",
            RATES,
            "pass_rate: [10, 90] holds no rate: rates are shares",
        ),
        ("arithmetic, filter: {pass_rate: [0, 0.9]}", RATES, "from: @rates measures countdown, and not arithmetic"),
    ],
)
def test_a_filter_that_nothing_could_pass_is_told_with_the_recipe(
    task: str, stages: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: r\nstages:\n{stages}  zero: {{kind: grpo, model: m, tasks: [{{use: {task}}}]}}\n")
    with pytest.raises(RecipeError, match=re.escape(f"stages.zero.tasks.0.filter.{message}")):
        load(path)
    path.write_text(
        f"name: r\nstages:\n{RATES}  zero: {{kind: grpo, model: m, tasks: [{{use: countdown, filter: "
        "{pass_rate: [0.1, 0.9], target: [1, 50]}}]}\n"
    )
    load(path)
