r"""Countdown: make a number out of others. With the numbers 3, 7, 25, 50 and the target 82::

    (50 - 25) * 3 + 7        correct
    50 + 25 + 7              wrong: does not use the 3
    (50 - 25) * 3 + 7 = 82   correct: the result may stand behind it

Every number is used exactly once, with + - * / and parentheses; fractions on the way are fine. What the model wrote
is parsed by the few lines below and never executed. Parsing takes time linear in the text, and only an expression
that uses exactly the given numbers is computed, so no value can grow out of hand.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TypeGuard

from rewards.text import answer_tag
from rewards.verdict import Item, Status, Verdict

MAX_CHARACTERS = 400
"""Longest expression that is looked at: ten numbers with operators and generous spacing need fewer."""
MAX_DEPTH = 40
"""Deepest nesting of parentheses: more has no use for ten numbers, and recursion stays shallow."""
MAX_NUMBERS = 16
"""Most numbers of a problem; bounds the size of the fractions."""

_TOKEN = re.compile(r"\s*(?:(\d{1,9})(?!\d)|([-+*/()=]))")
_SPELLINGS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", "$": ""}


class ExpressionError(ValueError):
    """Text that is no arithmetic expression."""


class Countdown:
    """1 if the answer is an expression that uses every number once and makes the target; else 0.

    Rows carry the columns `numbers` (list of positive integers) and `target` (integer). The answer is what stands in
    the last `<answer>…</answer>`, else in the last `\\boxed{…}`, of what follows the thought.
    """

    columns = ("numbers", "target")
    """What rows must have."""

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item; a row without numbers or target is `bad_gold`."""
        return [self._judge(item) for item in items]

    @staticmethod
    def same(first: Verdict, second: Verdict) -> bool:
        """Whether two completions give one answer: they make the same number, or go wrong in the same way."""
        return (first.status, first.detail) == (second.status, second.detail)

    def _judge(self, item: Item) -> Verdict:
        numbers, target = item.columns.get("numbers"), item.columns.get("target")
        if not (_are_numbers(numbers) and isinstance(target, int)):
            return Verdict.of(Status.BAD_GOLD, detail=f"numbers {numbers!r} with target {target!r} is no problem")
        _, rest = item.split()
        expression = answer_tag(rest)
        if expression is None:
            expression = _last_boxed(rest)
        if expression is None:
            return Verdict.of(Status.NO_ANSWER, detail="there is neither <answer> nor \\boxed{} after the thought")
        if len(expression) > MAX_CHARACTERS:
            return Verdict.of(Status.REJECTED, expression[:80], f"longer than {MAX_CHARACTERS} characters")
        try:
            fault = check(expression, numbers, target)
        except ExpressionError as error:
            return Verdict.of(Status.WRONG, expression, str(error))
        return Verdict.of(Status.WRONG if fault else Status.CORRECT, expression, fault)


def check(expression: str, numbers: Iterable[int], target: int) -> str:
    """What is wrong with a solution, as a sentence; empty if nothing is.

    Raises:
        ExpressionError: it is no arithmetic expression.
    """
    tokens = tokenize(expression)
    if tokens.count("=") > 1:
        raise ExpressionError("more than one '='")
    if "=" in tokens:
        tokens, result = tokens[: tokens.index("=")], tokens[tokens.index("=") + 1 :]
        if result != [str(target)]:
            return f"what stands behind '=' is not {target}"
    used = Counter(int(token) for token in tokens if token.isdigit())
    given = Counter(numbers)
    if used != given:
        missing, extra = sorted((given - used).elements()), sorted((used - given).elements())
        return "; ".join(
            f"{words} {', '.join(map(str, some))}"
            for words, some in (("does not use", missing), ("uses without being given", extra))
            if some
        )
    value = _Parser(tokens).value()
    return "" if value == target else f"makes {value}, not {target}"


def tokenize(expression: str) -> list[str]:
    """Numbers, operators, parentheses and `=`. Raises ExpressionError for anything else."""
    for latex, sign in _LATEX.items():
        expression = expression.replace(latex, sign)
    expression = expression.translate(_SPELLINGS).rstrip()
    tokens, position = list[str](), 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise ExpressionError(f"cannot read {expression[position : position + 12]!r}")
        tokens.append(str(int(match[1])) if match[1] else match[2])
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over `sum := product (± product)*`, `product := atom (*/ atom)*`, `atom := number | (sum)`.

    There is no sign in front of a number: countdown has two-sided operations only.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens, self._at, self._depth = tokens, 0, 0

    def value(self) -> Fraction:
        value = self._sum()
        if self._at != len(self._tokens):
            raise ExpressionError(f"did not expect {self._tokens[self._at]!r}")
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while (sign := self._take("+-")) is not None:
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._atom()
        while (sign := self._take("*/")) is not None:
            factor = self._atom()
            if sign == "/" and factor == 0:
                raise ExpressionError("divides by zero")
            value = value * factor if sign == "*" else value / factor
        return value

    def _atom(self) -> Fraction:
        if self._take("("):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise ExpressionError("too many parentheses")
            value = self._sum()
            self._depth -= 1
            if self._take(")") is None:
                raise ExpressionError("a parenthesis is not closed")
            return value
        if self._at < len(self._tokens) and self._tokens[self._at].isdigit():
            self._at += 1
            return Fraction(int(self._tokens[self._at - 1]))
        raise ExpressionError(
            f"expected a number before {self._tokens[self._at]!r}" if self._at < len(self._tokens) else "ends too early"
        )

    def _take(self, signs: str) -> str | None:
        if self._at < len(self._tokens) and self._tokens[self._at] in signs:
            self._at += 1
            return self._tokens[self._at - 1]
        return None


def _are_numbers(numbers: object) -> TypeGuard[Sequence[int]]:
    return (
        isinstance(numbers, list | tuple)
        and 0 < len(numbers) <= MAX_NUMBERS
        and all(isinstance(number, int) and 0 <= number < 10**9 for number in numbers)
    )


def _last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`; expressions of this game hold no braces."""
    _, found, tail = text.rpartition(r"\boxed{")
    return tail.partition("}")[0] if found and "}" in tail else None
