"""Whether two answers say the same: `True`, `False`, or `None` where that takes algebra.

One walk over two shapes serves both stages. In the trainer's process leaves are compared by `exact`, which knows
rationals and recognises numbers that differ; in the pool they are compared by `rewards.math.symbolic`. The policy:

* values must be equal exactly, however they are written; a decimal may stand for another number only if it agrees to
  one part in a million and in all its digits, six at least (`0.333333` is 1/3, `0.33` is not, `3.14` is not pi);
* a unit counts if both sides have one (after conversion); one that only one side states is taken as understood;
* bare lists and sets are unordered, points and vectors ordered, brackets of intervals matter; named values go by
  their names, and to points in the order of the letters;
* a list in place of one value, a chain of equalities that is false, and words around a number are wrong answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase

from rewards.math.choices import letters_chosen
from rewards.math.equations import approximate, chains, consistent, equation, joined
from rewards.math.expressions import evaluate
from rewards.math.kinds import Kind, Token, Tokens
from rewards.math.quantities import quantities, ratios
from rewards.math.read import read
from rewards.math.regions import NOTHING, same_ranges
from rewards.math.shapes import (
    Approximate,
    Chain,
    Date,
    Group,
    Interval,
    Matrix,
    Named,
    Nonsense,
    Quantity,
    Ratio,
    Relation,
    Shape,
    Union,
    Words,
)
from rewards.math.tables import same_matrices
from rewards.math.tokens import tokens
from rewards.math.values import Leaf, every
from rewards.math.wording import in_words, same_words

_QUOTED = re.compile(r"``\s*([^`]+?)\s*''|`([^`]+)`|\"([^\"]+)\"|'([^']+)'|[“”„«]([^“”»]+)[”“»]")
_DOLLAR = re.compile(r"(?<!\\)\$")
_FEW = 24
"""Elements of a set that are compared with one another to find repetitions."""


tokens_of = lru_cache(maxsize=2048)(tokens)
"""Tokens of golds and answers; a cache of pure values."""


def shape_of(text: str) -> Shape:
    """Read an answer. Dollar signs in pairs delimit mathematics and are dropped; an odd one is money.

    Raises:
        TooDeepError: the text nests brackets deeper than anything that is read.
    """
    text = text.strip()
    while (quoted := _QUOTED.fullmatch(text)) is not None:
        text = quoted[1] or quoted[2] or quoted[3] or quoted[4] or quoted[5]
    if text.startswith("**") and text.endswith("**"):
        text = text.strip("*")
    if (text.count("$") - text.count(r"\$")) % 2 == 0:
        text = _DOLLAR.sub(" ", text)
    return read(tokens_of(text))


def equal(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """Whether two whole answers say the same; a set or list of one value is that value.

    Raises:
        TooBigError: a number in them is made to keep computers busy.
    """
    return same(_only(gold), _only(answer), leaf)


def _only(shape: Shape) -> Shape:
    return (
        shape.items[0]
        if isinstance(shape, Group)
        and shape.brackets in ("{}", "[]")
        and len(shape.items) == 1
        and shape.items[0] != NOTHING
        else shape
    )


def same(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """Whether the answer says what the gold says, by the policy above.

    Raises:
        TooBigError: a number in it is made to keep computers busy.
    """
    if gold == answer or same_words(_written(gold), _written(answer)):
        return True
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        return quantities(gold, answer, leaf)
    if isinstance(gold, Date) and isinstance(answer, Date):
        return gold.day == answer.day
    if isinstance(gold, Date) or isinstance(answer, Date):
        return same(_undated(gold), _undated(answer), leaf)
    if isinstance(answer, Approximate):
        return approximate(gold, answer, same, leaf)
    if isinstance(gold, Approximate):
        return same(gold.parts[0], answer, leaf)
    if (choices := letters_chosen(gold, answer)) is not None:
        return choices
    if isinstance(gold, Relation) or isinstance(answer, Relation):
        sides = [s.written if isinstance(s, Relation | Interval) else () for s in (gold, answer)]
        return leaf(sides[0], sides[1]) if sides[0] and sides[1] else False
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _named(gold, answer, leaf)
    if isinstance(gold, Chain) or isinstance(answer, Chain):
        return chains(gold, answer, same, leaf)
    if isinstance(gold, Interval | Union) or isinstance(answer, Interval | Union):
        return same_ranges(gold, answer, same, leaf)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return in_words(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return same_matrices(gold, answer, same, leaf)
    if isinstance(gold, Group) or isinstance(answer, Group):
        return _groups(gold, answer, leaf)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return ratios(gold, answer, leaf)
    return False


def _named(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    """`x = 3` against `3`, against `x = 3`, and against the equation `x - 3 = 0`."""
    parts = _taken_apart(gold), _taken_apart(answer)
    if _assigns(parts[0]) and _assigns(parts[1]):
        return _groups(*parts, leaf)
    if isinstance(gold, Named) and isinstance(answer, Named):
        if gold.name != answer.name and not _interchangeable(gold.name, answer.name):
            flipped = [equation(shape) for shape in (gold, answer)]
            return leaf(flipped[0], flipped[1]) if None not in flipped and _mentions(answer, gold) else False  # type: ignore[arg-type]
        return every([consistent(answer.values, same, leaf), same(gold.values[-1], answer.values[-1], leaf)])
    if isinstance(answer, Named):
        if isinstance(gold, Chain):
            equal = equation(answer)
            return False if equal is None else leaf(joined(gold.sides), equal)
        value = answer.values[-1]
        if isinstance(gold, Interval | Union) and not isinstance(value, Interval | Union | Group):
            return False
        return every([consistent(answer.values, same, leaf), same(gold, value, leaf)])
    assert isinstance(gold, Named)
    if isinstance(answer, Chain):
        wanted = equation(gold)
        if wanted is not None and any(t.kind is Kind.SYMBOL for side in answer.sides for t in side):
            return leaf(wanted, joined(answer.sides))
    if isinstance(answer, Interval | Union):
        return same(gold.values[-1], answer, leaf)
    return same(gold.values[-1], answer, leaf)


def _taken_apart(shape: Shape) -> Shape:
    """`(x, y) = (3, 4)` as `x = 3, y = 4`; other shapes as they are."""
    value = shape.values[0] if isinstance(shape, Named) and len(shape.values) == 1 else None
    if not isinstance(shape, Named) or not isinstance(value, Group) or value.brackets != "()":
        return shape
    names = [token for token in shape.name if token.kind is Kind.SYMBOL]
    if len(names) != len(value.items) or len(shape.name) != 2 * len(names) + 1:
        return shape
    return Group(tuple(Named((name,), (item,)) for name, item in zip(names, value.items, strict=True)))


def _assigns(shape: Shape) -> bool:
    return isinstance(shape, Group) and all(isinstance(item, Named) for item in shape.items)


def _is_phrase(name: Tokens) -> bool:
    return any(token.kind is Kind.TEXT or (token.kind is Kind.WORD and len(token.text) > 3) for token in name)


def _interchangeable(gold: Tokens, answer: Tokens) -> bool:
    """Whether two names may be said of one thing: phrases may, and so may `y` and `f(x)`."""
    if _is_phrase(gold) or _is_phrase(answer):
        return True
    names = sorted(("".join(token.text for token in name) for name in (gold, answer)), key=len)
    return names[0] == "y" and names[1][:1].isalpha() and names[1].endswith("(x)")


def _mentions(answer: Named, gold: Named) -> bool:
    """Whether both names occur on both sides, so that one equation may be the other rearranged."""
    both = [{t.text for t in (*n.name, *_written(n.values[0])) if t.kind is Kind.SYMBOL} for n in (answer, gold)]
    return both[0] == both[1] and len(both[0]) > 1


def _undated(shape: Shape) -> Shape:
    return shape.otherwise if isinstance(shape, Date) else shape


def _written(shape: Shape) -> Tokens:
    return shape.written if isinstance(shape, Quantity | Relation | Nonsense) else ()


def _groups(gold: Shape, answer: Shape, leaf: Leaf) -> bool | None:
    if isinstance(gold, Group) and isinstance(answer, Group):
        return _two_groups(gold, answer, leaf)
    if isinstance(gold, Quantity) and isinstance(answer, Group) and answer.written:
        return leaf(gold.value, answer.written)  # P(10, 3) is a point, or a number of permutations
    if isinstance(gold, Group) and gold.written and isinstance(answer, Quantity):
        return leaf(gold.written, answer.value)
    if isinstance(gold, Quantity) and isinstance(answer, Group) and (comma := _decimal_comma(answer)) is not None:
        return leaf(gold.value, comma)
    if isinstance(gold, Group) and isinstance(answer, Quantity) and (comma := _decimal_comma(gold)) is not None:
        return comma[-1].text.startswith("0.") and leaf(comma, answer.value)  # 0,75 is no list; 1,5 may be one
    return False


def _decimal_comma(answer: Group) -> Tokens | None:
    """`3,5` read as 3.5, as much of the world writes it."""
    if answer.brackets or len(answer.items) != 2:
        return None
    parts = [item.written for item in answer.items if isinstance(item, Quantity)]
    if len(parts) != 2 or len(parts[1]) != 1 or parts[1][0].spaced or not parts[1][0].text.isdigit():
        return None
    *sign, whole = parts[0]
    if not whole.text.isdigit() or [t.text for t in sign] not in ([], ["-"]):
        return None
    return (*sign, Token(Kind.NUMBER, f"{whole.text}.{parts[1][0].text}"))


def _two_groups(gold: Group, answer: Group, leaf: Leaf) -> bool | None:
    if "or" in (gold.brackets, answer.brackets) and gold.brackets != answer.brackets and gold.brackets:
        return False
    if gold.written and answer.written and gold.written[0] != answer.written[0]:
        return False  # P(1, 2) and Q(1, 2) are two points
    if "{}" in (gold.brackets, answer.brackets):
        gold, answer = (Group(_distinct(one.items, leaf), one.brackets) for one in (gold, answer))
    if len(gold.items) != len(answer.items):
        return False
    if any(isinstance(item, Named) for item in (*gold.items, *answer.items)):
        return _assignments(gold, answer, leaf)
    if _ordered(gold):
        if answer.brackets == "{}" or not _brackets_agree(gold, answer):
            return False
        return every(same(g, a, leaf) for g, a in zip(gold.items, answer.items, strict=True))
    if _ordered(answer):
        return False
    if not gold.brackets and all(isinstance(i, Words) and len(i.words[0]) > 1 for i in gold.items):
        return every(same(g, a, leaf) for g, a in zip(gold.items, answer.items, strict=True))
    return _unordered(gold.items, answer.items, lambda g, a: same(g, a, leaf))


def _ordered(group: Group) -> bool:
    return group.brackets not in ("", "{}", "or")


def _distinct(items: Sequence[Shape], leaf: Leaf) -> tuple[Shape, ...]:
    """The elements of a set, each once."""
    distinct: list[Shape] = []
    for item in items[:_FEW]:
        if not any(same(other, item, leaf) for other in distinct):
            distinct.append(item)
    return (*distinct, *items[_FEW:])


def _brackets_agree(gold: Group, answer: Group) -> bool:
    """Brackets matter where they may be the ends of an interval; else `(1, 2, 3)`, `[1, 2, 3]` and `1, 2, 3` agree."""
    if gold.brackets == answer.brackets:
        return True
    if "<>" in (gold.brackets, answer.brackets):
        return {gold.brackets, answer.brackets} <= {"<>", "()", "[]"}
    if not answer.brackets:
        return gold.brackets == "()"
    if {gold.brackets, answer.brackets} != {"()", "[]"}:
        return False
    return len(gold.items) != 2 or not _may_be_interval(gold)


def _may_be_interval(group: Group) -> bool:
    ends = [evaluate(item.value) if isinstance(item, Quantity) else None for item in group.items]
    if ends[0] is None or ends[1] is None:
        return True
    return bool(ends[0].about.real < ends[1].about.real)


def _assignments(gold: Group, answer: Group, leaf: Leaf) -> bool | None:
    """`x = 1, y = 2` in any order of its parts, or against bare values."""
    if "or" in (gold.brackets, answer.brackets) and gold.brackets != answer.brackets:
        return False  # x = 1 and y = 2 say more than x = 1 or y = 2
    if _assigns(gold) and _assigns(answer):
        return _unordered(gold.items, answer.items, lambda g, a: same(g, a, leaf))
    if _assigns(gold) and any(isinstance(item, Named) for item in answer.items):
        return False
    if gold.brackets in ("[)", "(]") or answer.brackets in ("[)", "(]"):
        return False
    # A bare list may follow the order in which the gold names its values, a point is one of the letters.
    wanted = _by_letter(gold.items) if answer.brackets else gold.items
    return every(same(g, a, leaf) for g, a in zip(wanted, _by_letter(answer.items), strict=True))


def _by_letter(items: Sequence[Shape]) -> Sequence[Shape]:
    """Values of neighbours in the alphabet (`y = 4, x = 3`) in that order, as points have it; others as they are."""
    names = {"".join(t.text for t in item.name): item for item in items if isinstance(item, Named)}
    letters = "".join(sorted(names))
    told = len(names) == len(letters) == len(items) and (letters in ascii_lowercase or letters in ascii_uppercase)
    return [names[letter] for letter in letters] if told else items


def _unordered(
    gold: Sequence[Shape], answer: Sequence[Shape], equal: Callable[[Shape, Shape], bool | None]
) -> bool | None:
    """Whether the two match one to one. Equality is an equivalence, so the first match found is as good as any."""
    if len(gold) != len(answer):
        return False
    left, unknown = list(answer), False
    for item in gold:
        results = []
        for position, candidate in enumerate(left):
            results.append(equal(item, candidate))
            if results[-1]:
                del left[position]
                break
        else:
            if None not in results:
                return False
            unknown = True
    return None if unknown else True
