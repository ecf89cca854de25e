"""The reward `math`: golds in every form, where the answer is, statuses, the corpus, and the exact values behind it."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import rewards
from rewards import Item, Status
from rewards.corpus import load
from rewards.corpus.paraphrase import generate
from rewards.math import MathVerifier, finals, gold_text
from rewards.math.expressions import evaluate
from rewards.math.number_words import spelled
from rewards.math.numbers import TooBigError, simple
from rewards.math.tokens import tokens


@pytest.fixture(scope="module")
def verifier():
    verifier = MathVerifier(deadline_s=120.0)
    yield verifier
    verifier.close()


def judge(verifier, completion, gold):
    return verifier.verify([Item(completion, gold)])[0]


# The corpus ------------------------------------------------------------------------------------------------------


def misses(verifier, pairs):
    verdicts = verifier.verify([Item(pair.completion, pair.gold) for pair in pairs])
    return [(p, v) for p, v in zip(pairs, verdicts, strict=True) if (v.score == 1.0) != p.equal]


def test_corpus_is_large_varied_and_explained():
    pairs = load()
    assert len(pairs) >= 300
    assert sum(not pair.equal for pair in pairs) >= 120
    assert all(pair.why for pair in pairs)
    assert len({(pair.gold, pair.completion) for pair in pairs}) == len(pairs)
    assert min(Counter(pair.family for pair in pairs).values()) >= 7


def test_no_wrong_answer_of_the_corpus_scores_and_hardly_a_right_one_is_refused(verifier):
    wrong = misses(verifier, load())
    assert [pair for pair, _ in wrong if not pair.equal] == []
    assert len(wrong) <= 3, wrong


def test_paraphrases_keep_their_labels(verifier):
    pairs = generate(load(), 1, seed=11)
    wrong = misses(verifier, pairs)
    assert [pair for pair, _ in wrong if not pair.equal] == []
    assert len(wrong) <= 0.01 * len(pairs), wrong


# Number words -----------------------------------------------------------------------------------------------------

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen"
)
ROUND = "zero ten twenty thirty forty fifty sixty seventy eighty ninety"
ONES, TENS = SMALL.split(), ROUND.split()


def in_words(number, hyphen, conjunction):
    """A whole number below 10**15 as English writes it, by division from above."""
    for power, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand")):
        if number >= power:
            head, rest = in_words(number // power, hyphen, conjunction), number % power
            joint = conjunction if 0 < rest < 100 else " "
            return f"{head} {name}" + (joint + in_words(rest, hyphen, conjunction) if rest else "")
    if number >= 100:
        rest = number % 100
        return f"{ONES[number // 100]} hundred" + (conjunction + in_words(rest, hyphen, conjunction) if rest else "")
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (hyphen + ONES[number % 10] if number % 10 else "")


@given(
    st.one_of(st.integers(0, 130), st.integers(0, 10**15 - 1)),
    st.sampled_from("- "),
    st.sampled_from([" ", " and "]),
    st.sampled_from(["{}", r"\text{{{}}}", "{} dogs"]),
)
@settings(max_examples=80, deadline=None)
def test_numbers_in_words_are_read_exactly(verifier, number, hyphen, conjunction, form):
    words = in_words(number, hyphen, conjunction)
    answer = form.format(words)
    assert judge(verifier, rf"\boxed{{{answer}}}", str(number)).status is Status.CORRECT
    assert judge(verifier, rf"\boxed{{{number}}}", answer).status is Status.CORRECT
    text = words.replace("-", " ").split()
    for cut in range(1, len(text)):  # neither its beginning nor its end is the number
        for said in (spelled(text[:cut]), spelled(text[cut:])):
            if said is not None and said != number:
                assert judge(verifier, rf"\boxed{{{answer}}}", str(said)).status is not Status.CORRECT


@pytest.mark.parametrize(
    "text",
    [
        *("five six", "twenty twelve", "twenty zero", "hundred thousand hundred", "thousand million", "and five"),
        *(
            "one and five",
            "five and",
            "one hundred and",
            "one hundred and and five",
            "two thousand thousand",
            "",
            "many",
        ),
        *("one hundred hundred", "one thousand and hundred", "twenty and one", "zero zero"),
    ],
)
def test_words_in_no_order_spell_no_number(text):
    assert spelled(text.split()) is None


# Golds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (7, "7"),
        (0.5, r"\frac12"),
        (2.0, "2"),
        (1e-7, r"10^{-7}"),
        (True, "True"),
        (Fraction(1, 3), r"\frac13"),
        (["3", r"\frac{6}{2}"], "3"),
        (["a", "b"], "b"),
        ([["5"]], "5"),
        ("so 3*4=12\n#### 12", "12"),
        (r"Thus $x=\boxed{12}$.", "12"),
        (r"\boxed{2} and \boxed{3}", "3, 2"),
        ("<answer>4</answer>", "4"),
    ],
)
def test_golds_of_every_form(verifier, gold, answer):
    assert judge(verifier, rf"\boxed{{{answer}}}", gold).status is Status.CORRECT


POINTS = "A(1,2), B(3,4)"
RESIDUE = r"3\pmod{7}"


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (
            RESIDUE,
            [r"3 \bmod 7", r"3 (\text{mod } 7)", "3 mod 7", r"x \equiv 3 \pmod 7", "3"],
            [r"3 \pmod 5", r"4 \mod 7"],
        ),
        ("3 (mod 7)", [r"n \equiv 3\ (\mathrm{mod}\ 7)", "3"], ["4 (mod 7)", "3 (mod 8)"]),
        ("1", ["1"], [r"7 \bmod 3", "7 mod 3", "1 mod 3"]),  # an operation, whose value is asked for, and a residue
        (POINTS, ["B(3,4), A(1,2)", "(1,2), (3,4)"], ["A(3,4), B(1,2)", "A(1,2), C(3,4)"]),
        ("P(1, 2)", ["(1, 2)", "P = (1, 2)", "P(1, 2.0)"], ["Q(1, 2)", "P'(1, 2)"]),
        ("P(10, 3)", ["720"], ["C(10, 3)", "120"]),
    ],
)
def test_residues_and_points_are_told_by_modulus_and_name(verifier, gold, right, wrong):
    scores = [v.score for v in verifier.verify([Item(rf"\boxed{{{answer}}}", gold) for answer in (*right, *wrong)])]
    assert scores == [1.0] * len(right) + [0.0] * len(wrong)


@pytest.mark.parametrize("gold", [None, "", "   ", [], [None], math.nan, math.inf, object(), {}, "#### ", b"7"])
def test_unreadable_golds_are_not_the_models_fault(verifier, gold):
    verdict = judge(verifier, r"\boxed{7}", gold)
    assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None)


def test_gold_is_checked_against_itself(verifier):
    assert verifier.check_gold(r"\left( -\infty, \tfrac14 \right) \cup (2,\infty)") is None
    assert "no gold" in str(verifier.check_gold(""))
    assert "does not accept itself" in str(verifier.check_gold(r"\frac{1}{2"))


OTHER_DATA_SETS = [
    # MATH-500
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ("p - q", "-q+p"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"90^\circ", "90"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"\begin{pmatrix} -2 \\ 1 \end{pmatrix}", r"\begin{bmatrix}-2\\1\end{bmatrix}"),
    (
        r"\begin{pmatrix} -\frac{1}{3} & 0 \\ 2 & \sqrt{3} \end{pmatrix}",
        r"\begin{pmatrix}-1/3&0\\2&\sqrt3\end{pmatrix}",
    ),
    (r"\text{even}", "even"),
    (r"\text{(C)}", "C"),
    ("1,-2", "-2, 1"),
    ("58,500", "58500"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"2220_5", r"2220_{5}"),
    (r"\$32,\!348", "32348"),
    (r"0.\overline{2}", r"\frac{2}{9}"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}"),
    (r"x \in [-2,7]", r"-2 \le x \le 7"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"15\mbox{ cm}^2", r"15\text{ square centimeters}"),
    (r"\frac{1}{2} + \frac{\sqrt{3}}{2} i", r"\frac{1+i\sqrt{3}}{2}"),
    (r"6r^2-4r-24", r"2(3r^2-2r-12)"),
    (r"[-\frac{1}{2}, \infty)", r"x \ge -0.5"),
    (r"3 \frac{1}{2}", "7/2"),
    (r"y = 2x + 3", "2x - y + 3 = 0"),
    (r"8\sin 20^\circ", r"8\sin(20^\circ)"),
    # AIME
    ("000", "0"),
    ("007", "7"),
    ("025", r"\text{025}"),
    ("073", "73"),
    ("204", "204.0"),
    ("$540$", "540"),
    (r"\textbf{321}", "321"),
    # OlympiadBench
    ("$2,-1$", r"-1 \text{ and } 2"),
    (r"$\frac{1}{n^{2}}$", "n^{-2}"),
    ("$2^{1009}$", r"2\cdot 2^{1008}"),
    ("$(1,8,19), (2,7,13), (4,5,7)$", "(4,5,7), (1,8,19), (2,7,13)"),
    ("$n!+1$", "1+n!"),
    (r"$\frac{2 \sqrt{5}}{5}$", r"\frac{2}{\sqrt{5}}"),
    (r"$[0, \frac{1}{2}]$", r"0 \leq x \leq \frac12"),
    (r"$x \leq -2$ or $x > 3$", r"(-\infty,-2] \cup (3,\infty)"),
    (r"$\pm 2$", "2, -2"),
    (r"$2 \cdot 3^{2022}$", r"6\cdot 3^{2021}"),
    (r"$\{0, 1, 2\}$", "0, 1, 2"),
    ("$f(x)=x+1$, $f(x)=0$", "f(x)=0, f(x)=x+1"),
    ("$a=1, b=2$", "b=2, a=1"),
    (r"$\frac{n(n+1)}{2}$", r"\frac{n^2+n}{2}"),
    (r"$\lfloor \frac{n}{2} \rfloor$", r"\left\lfloor n/2 \right\rfloor"),
    (r"$\binom{2n}{n}$", r"\dbinom{2n}{n}"),
    (r"$\log_{2} 3$", r"\frac{\ln 3}{\ln 2}"),
    (r"$3.0 \times 10^{8}$ m/s", r"300000000 \text{ m/s}"),
    (r"$30 \mathrm{~m}$", r"30\text{ meters}"),
    (r"$\frac{\pi}{6}+k\pi$", r"\pi k + \pi/6"),
    (r"$e-e^{-1}$", r"e - \frac{1}{e}"),
    (r"$\tan ^{-1} 2$", r"\arctan 2"),
    (r"$8 \frac{1}{3}$ hours", r"\frac{25}{3}"),
    ("$p=2$ and $q=5$", "p=2, q=5"),
    (r"$\frac{a+b}{1-a b}$", r"\frac{b+a}{1-ba}"),
    (r"$2 \pi-4 \arctan 2$", r"2(\pi - 2\arctan(2))"),
    ("$(x, y)=(2,1)$", "(2, 1)"),
    ("$(n, k)=(1,1),(3,2)$", "(3,2), (1,1)"),
    (r"$T=\frac{2 \pi}{\omega}$", r"\frac{2\pi}{\omega}"),
    (r"$45 \%$", r"45\%"),
    ("$x^{2}+y^{2}=25$", "x^2 + y^2 - 25 = 0"),
    (r"$\arccos \left(\frac{1}{3}\right)$", r"\arccos\frac13"),
    (r"$\left\lceil\frac{n}{2}\right\rceil$", r"\lceil n/2 \rceil"),
    (r"$2 \sqrt{a b}$", r"2\sqrt{ab}"),
    (r"$\frac{2^{n}-(-1)^{n}}{3}$", r"\frac{1}{3}(2^n-(-1)^n)"),
    (r"$\sum_{k=1}^{n} k^{2}$", r"\sum_{k=1}^n k^2"),
    (r"$-\frac{1}{2}, 1, 3$", "3, 1, -0.5"),
]


def test_golds_in_the_styles_of_other_data_sets_accept_themselves_and_other_spellings(verifier):
    refused = [reason for gold, _ in OTHER_DATA_SETS if (reason := verifier.check_gold(gold))]
    spelt = verifier.verify([Item(rf"So \boxed{{{answer}}}.", gold) for gold, answer in OTHER_DATA_SETS])
    refused += [f"{verdict.extracted}: {verdict.detail}" for verdict in spelt if verdict.status is not Status.CORRECT]
    assert refused == []


def test_golds_in_the_styles_of_other_data_sets_refuse_the_answer_to_the_next(verifier):
    neighbours = zip(OTHER_DATA_SETS, [*OTHER_DATA_SETS[1:], OTHER_DATA_SETS[0]], strict=True)
    items = [Item(rf"So \boxed{{{answer}}}.", gold) for (gold, _), (_, answer) in neighbours]
    verdicts = verifier.verify(items)
    assert [(i.answer, v.extracted) for i, v in zip(items, verdicts, strict=True) if v.score != 0.0] == []


def test_gold_text_finds_the_answer():
    assert gold_text("3+4=7\n#### 1,007") == "1,007"
    assert gold_text(r"We have $\boxed{\frac{1}{2}}$ then") == r"\frac{1}{2}"


# Extraction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"\boxed{1} \boxed{2} \boxed{1}", ["1", "2"]),
        (r"\boxed{\boxed{3}}", ["3"]),
        (r"\boxed{\{1,2\}}", [r"\{1,2\}"]),
        (r"\boxed{a} <answer>b</answer>", ["b"]),
        ("<answer>a<answer>b</answer>", ["b"]),
        (r"<think>\boxed{1}</think> done", ["done"]),
        (r"<think>a</think> b <think> \boxed{1}</think>\boxed{2}", ["2"]),
        ("The answer is: **5**", ["5"]),
        ("先算一算。\n**答案**：$5$", ["$5$"]),
        ("Final answer: $5$. I hope it is correct.", ["$5$"]),
        ("a long text that announces nothing at all, though it has 7 words and more and then some more", []),
    ],
)
def test_finals(completion, expected):
    assert finals(completion) == expected


def test_final_lines_and_last_numbers_are_options():
    assert finals("The answer is 5", final_line=False) == []
    text = "There were 12 eggs, and she sold all of them but 7.\nNothing else happened."
    assert finals(text) == []
    assert finals(text, lenient=True) == ["7"]


def test_answer_column_reaches_the_verifier_through_the_api():
    rows = [{"completion": r"\boxed{2}", "answer": "2"}, {"completion": r"\boxed{2}", "solution": "3"}]
    assert [v.score for v in rewards.verify("math", rows)] == [1.0, 0.0]


# Statuses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        (r"\boxed{7}", Status.CORRECT),
        (r"\boxed{8}", Status.WRONG),
        ("I do not know.\nReally, I have no idea how to solve this at all.\n", Status.NO_ANSWER),
        (r"\boxed{7} or \boxed{8}", Status.REJECTED),
        (r"\boxed{9^{9^{9^{9}}}}", Status.REJECTED),
        (r"\boxed{" + "7" * 600 + "}", Status.REJECTED),
        ("".join(rf"\boxed{{{n}}}" for n in range(20)), Status.REJECTED),
    ],
)
def test_statuses(verifier, completion, status):
    verdict = judge(verifier, completion, "7")
    assert verdict.status is status
    assert verdict.score == (1.0 if status is Status.CORRECT else 0.0)
    assert status is Status.CORRECT or verdict.detail


def test_verdicts_are_in_order_and_tell_what_was_extracted(verifier):
    items = [Item(rf"\boxed{{{n}}}", str(n % 2)) for n in range(50)]
    verdicts = verifier.verify(items)
    assert [v.extracted for v in verdicts] == [str(n) for n in range(50)]
    assert [v.score for v in verdicts] == [1.0, 1.0] + [0.0] * 48


def test_algebra_beyond_the_evaluator_reaches_math_verify(verifier):
    gold = r"\int_0^1 x^2 dx"
    assert judge(verifier, r"\boxed{\int_0^1 t^2 dt}", gold).status is Status.CORRECT
    assert judge(verifier, r"\boxed{\int_0^1 x^3 dx}", gold).status is Status.WRONG


# Values ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 99), st.sampled_from([3, 7, 9, 11, 13, 17, 21]), st.integers(8, 10))
@settings(max_examples=40, deadline=None)
def test_a_decimal_stands_for_a_fraction_rounded_up_or_down_and_nothing_else(verifier, top, bottom, places):
    value, unit = Fraction(top, bottom), Fraction(1, 10**places)
    assume(value.denominator > 1)
    below = value // unit
    for steps, right in ((-1, False), (0, True), (1, True), (2, False)):
        scaled = below + steps
        decimal = f"{scaled // 10**places}.{scaled % 10**places:0{places}}"
        assume(len(decimal.replace(".", "").strip("0")) > 6)
        for gold, answer in ((f"{top}/{bottom}", decimal), (decimal, rf"\frac{{{top}}}{{{bottom}}}")):
            assert (judge(verifier, rf"\boxed{{{answer}}}", gold).status is Status.CORRECT) == right


@given(st.integers(1, 99999), st.integers(1, 4), st.integers(0, 7), st.integers(1, 99))
@settings(max_examples=60, deadline=None)
def test_more_digits_than_a_short_decimal_has_are_an_error(verifier, digits, places, zeros, more):
    gold = f"{digits // 10**places}.{digits % 10**places:0{places}}"
    answer = f"{gold}{'0' * zeros}{more}"
    assume(Fraction(answer) - Fraction(gold) > Fraction(gold) / 10**11)  # less is taken for a computer's rounding
    assert judge(verifier, rf"\boxed{{{answer}}}", gold).status is Status.WRONG
    assert judge(verifier, rf"\boxed{{{gold}}}", answer).status is Status.WRONG


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}/{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{{}}}{{{}}}"]))
@settings(max_examples=60, deadline=None)
def test_fractions_are_read_exactly(value, form):
    text = form.format(value.numerator, value.denominator)
    number = evaluate(tokens(text))
    assert number is not None and number.exact == value
    assert simple(text) == value


@st.composite
def expressions(draw, depth=3):
    """Arithmetic as LaTeX together with its value by Python's own fractions."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 99))
        return str(number), Fraction(number)
    (a, x), (b, y) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    kind = draw(st.sampled_from("+-*/^"))
    if kind == "/" and y != 0:
        return rf"\frac{{{a}}}{{{b}}}", x / y
    if kind == "^":
        exponent = draw(st.integers(0, 3))
        return rf"\left({a}\right)^{{{exponent}}}", x**exponent
    if kind == "*":
        return rf"({a}) \cdot ({b})", x * y
    if kind == "-":
        return f"({a}) - ({b})", x - y
    return f"({a}) + ({b})", x + y


@given(expressions())
@settings(max_examples=60, deadline=None)
def test_arithmetic_agrees_with_python(case):
    text, value = case
    number = evaluate(tokens(text))
    assert number is not None and number.exact == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\sqrt{2}", math.sqrt(2)),
        (r"\frac{\pi}{4}", math.pi / 4),
        (r"e^{2}", math.e**2),
        (r"\sin 30^\circ", 0.5),
        (r"\log_2 10", math.log2(10)),
        (r"\ln(5)", math.log(5)),
        (r"\sqrt[3]{-27}", -3.0),
        (r"2\sin^2\frac{\pi}{3}", 1.5),
    ],
)
def test_irrational_values_agree_with_the_standard_library(text, value):
    number = evaluate(tokens(text))
    assert number is not None
    assert abs(complex(number.about) - value) < 1e-12


@pytest.mark.parametrize("text", ["9^{9^9}", "99999!", "10^{10^{10}}", r"e^{10^{9}}", r"\binom{99999}{5}", "1e99999"])
def test_huge_values_are_never_computed(text):
    with pytest.raises(TooBigError):
        evaluate(tokens(text))


@given(st.text(alphabet="0123456789+-*/^(){}[].,=<>\\frac sqrt!_x%$&|~'text", max_size=80))
@settings(max_examples=80, deadline=None)
def test_no_text_makes_the_first_stage_raise(text):
    from rewards.math.verifier import _compare

    for gold in ("7", r"\frac{\sqrt{3}}{2}", "(1,2)", "x=3", r"\text{no}", "5 cm"):
        _compare(gold, text)
        _compare(text, gold)
