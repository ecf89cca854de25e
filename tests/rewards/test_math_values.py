"""Comparing expressions by value: signs, small differences beside large numbers, functions, sums, sets of numbers."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rewards.math import same
from rewards.math.expressions import evaluate
from rewards.math.numbers import TooBigError
from rewards.math.regions import iso_brackets
from rewards.math.samples import letters_of, samples
from rewards.math.tokens import tokens
from rewards.math.tree import tree
from rewards.math.verifier import MAX_ANSWER

X, Y, Z = sympy.symbols("x y z")


@st.composite
def polynomials(draw):
    """A polynomial of three letters, as sympy has it."""
    terms = draw(st.lists(st.tuples(st.integers(-9, 9), *[st.integers(0, 3)] * 3), min_size=1, max_size=3))
    return sum(c * X**a * Y**b * Z**d for c, a, b, d in terms)


@given(polynomials(), polynomials())
@settings(max_examples=30, deadline=None)
def test_polynomials_are_equal_exactly_where_sympy_says_so(first, second):
    product = first * second
    gold, expanded, other = (sympy.latex(p) for p in (product, sympy.expand(product), sympy.expand(product + second)))
    assume(max(len(expanded), len(other)) < MAX_ANSWER)
    assert same(gold, expanded) is True
    assert (same(gold, other) is True) == (sympy.expand(second) == 0)


@given(st.integers(-30, 30), st.integers(-30, 30), st.sampled_from(["x", "a", "y", "t"]))
@settings(max_examples=40, deadline=None)
def test_an_absolute_value_is_told_from_what_stands_in_it(a, b, letter):
    inside = (
        f"{a}{letter}^2 + {letter} - {abs(b) + 1}".replace("+ -", "- ") if a else f"{letter} + {b}".replace("+ -", "- ")
    )
    assert same(rf"\left|{inside}\right|", inside) is not True
    assert same(rf"\left|{inside}\right|", rf"\sqrt{{({inside})^2}}") is True


def test_any_two_letters_take_both_signs_against_one_another():
    node = tree(tokens("a+b+c+d"))
    signs = [tuple(values[name].exact > 0 for name in "abcd") for values in samples(letters_of((node,)))]
    for first in range(4):
        for second in range(first + 1, 4):
            assert {(s[first], s[second]) for s in signs} == {
                (True, True),
                (True, False),
                (False, True),
                (False, False),
            }


@pytest.mark.parametrize("exponent", [40, 500, 2023, 10**4])
def test_a_small_term_beside_a_large_power_counts(exponent):
    assert same(f"x^{{{exponent}}}+1", f"1+x^{{{exponent}}}") is True
    assert same(f"x^{{{exponent}}}+1", f"x^{{{exponent}}}-1") is False
    assert same(f"x^{{{exponent}}}+y", f"x^{{{exponent}}}-y") is False


@pytest.mark.parametrize("digits", [20, 45, 60, 200, 600])
def test_constants_are_computed_to_as_many_digits_as_their_size_takes(digits):
    large = f"10^{{{digits}}}"
    assert same(rf"{large}+\sqrt{{2}}", rf"\sqrt{{2}}+{large}") is True
    assert same(rf"{large}+\sqrt{{2}}", rf"{large}+\sqrt{{3}}") is False
    assert same(rf"\sqrt{{({large})^2+1}}", large) is False


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"(-1)^n", r"\cos(n\pi)", True),
        (r"(-1)^{n}", r"(-1)^{n+2}", True),
        (r"(-1)^n", r"(-1)^{n+1}", False),
        (r"\frac{(2n)!}{n!}", r"\frac{(2n)!}{(n)!}", True),
        (r"n!", r"n\cdot(n-1)!", True),
        (r"n!", r"(n-1)!", False),
        (r"\sum_{k=1}^{n} k^3", r"\left(\frac{n(n+1)}{2}\right)^2", True),
        (r"\sum_{k=1}^{n} k^3", r"\frac{n(n+1)}{2}", False),
        (r"\lfloor x \rfloor", r"x", False),
        (r"\lfloor n/2 \rfloor", r"\frac{n}{2}", False),
        (r"2^{n}", r"2^{n}", True),
        (r"\max(a,b)", r"\max(b,a)", True),
        (r"\max(a,b)", r"\frac{a+b+|a-b|}{2}", True),
        (r"\max(a,b)", r"a", False),
    ],
)
def test_whole_numbers_and_choices_between_values(gold, answer, equal):
    assert (same(gold, answer) is True) == equal


def test_functions_are_functions_only_where_nothing_else_is_meant():
    for letter in "fFgh":
        assert same(f"{letter}(x)+1", f"1+{letter}(x)") is True
        assert same(f"{letter}(-x)", f"-{letter}(x)") is False
        assert same(f"{letter}(2x)", f"2{letter}(x)") is False
    assert same("h(a+b)", "ha+hb") is True
    assert same("f(a+b)", "f(a)+f(b)") is not True


@pytest.mark.parametrize(
    "text", [r"\sum_{k=1}^{10^9} k", r"\prod_{k=1}^{400} k^{k}", r"\sqrt[64]{10^{4000}}^{9999}", r"e^{10^6}"]
)
def test_long_and_large_sums_and_powers_are_not_computed(text):
    with pytest.raises(TooBigError):
        evaluate(tokens(text))


@pytest.mark.parametrize("text", ["(0,1)", "[0,1)", r"(-\infty,-1]\cup[2,\infty)", "[[1,2],[3,4]]", "f(x)[1]", "5"])
def test_brackets_in_their_usual_order_are_not_turned(text):
    assert iso_brackets(tokens(text)) is None


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 6), st.booleans(), st.booleans()), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_unions_are_equal_exactly_where_sympy_says_so(spans):
    intervals = [sympy.Interval(low, low + length, a, b) for low, length, a, b in spans]
    written = [f"{'(' if i.left_open else '['}{i.start},{i.end}{')' if i.right_open else ']'}" for i in intervals]
    union = sympy.Union(*intervals)
    parts = union.args if isinstance(union, sympy.Union) else (union,)
    merged = [
        rf"\{{{', '.join(map(str, p))}\}}"
        if isinstance(p, sympy.FiniteSet)
        else f"{p.start} {'<' if p.left_open else '<='} x {'<' if p.right_open else '<='} {p.end}"
        for p in parts
    ]
    gold = r" \cup ".join(written)
    if all("x" in part for part in merged):
        assert same(gold, r" \text{ or } ".join(merged)) is True
