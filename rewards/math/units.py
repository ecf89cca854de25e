"""Units of measure: enough of them to know that 2 hours are 120 minutes and that 5 km are not 5 cm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.math.kinds import Kind, Token, Tokens
from rewards.math.notation import words
from rewards.math.number_words import MULTIPLIERS, NUMBER_WORDS, ORDINALS, ROMAN


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit, as a factor times powers of base dimensions.

    Attributes:
        factor: how many base units (metre, second, gram, degree, ...) it is.
        dimensions: (dimension, power) pairs in alphabetical order; nothing for a pure number such as percent.
        label: the words of a "unit" that only counts things (`dogs`), which has no dimension that we know.
    """

    factor: Fraction = Fraction(1)
    dimensions: tuple[tuple[str, int], ...] = ()
    label: tuple[str, ...] = ()

    def __mul__(self, other: Unit) -> Unit:
        powers = dict(self.dimensions)
        for name, power in other.dimensions:
            powers[name] = powers.get(name, 0) + power
        rest = tuple(sorted((name, power) for name, power in powers.items() if power))
        return Unit(self.factor * other.factor, rest, self.label + other.label)

    def __pow__(self, power: int) -> Unit:
        return Unit(self.factor**power, tuple((name, p * power) for name, p in self.dimensions), self.label)

    def agrees(self, other: Unit) -> bool:
        """Whether both measure the same kind of thing."""
        if self.label or other.label:
            a, b = [_singular(w) for w in self.label], [_singular(w) for w in other.label]
            alike = bool(a) and bool(b) and a[-1] == b[-1] and (set(a) <= set(b) or set(b) <= set(a))
            return self.dimensions == other.dimensions and alike  # balls may be red balls, but these are not blue
        return self.dimensions == other.dimensions


def _unit(factor: Fraction | int | str, dimension: str, power: int = 1) -> Unit:
    return Unit(Fraction(factor), ((dimension, power),))


PERCENT = _unit("1/100", "percent")
DEGREE = _unit(1, "angle")
RADIAN = Unit(Fraction(1), (("radian", 1),))
"""Kept apart from degrees, since the factor between them is no rational."""

_NAMES: dict[str, tuple[Unit, str]] = {
    # unit, then its spellings; case counts in symbols of up to two letters only
    "metre": (_unit(1, "length"), "m metre metres meter meters"),
    "kilometre": (_unit(1000, "length"), "km kms kilometre kilometres kilometer kilometers"),
    "centimetre": (_unit("1/100", "length"), "cm cms centimetre centimetres centimeter centimeters"),
    "millimetre": (_unit("1/1000", "length"), "mm millimetre millimetres millimeter millimeters"),
    "inch": (_unit("254/10000", "length"), "in inch inches"),
    "foot": (_unit("3048/10000", "length"), "ft foot feet"),
    "yard": (_unit("9144/10000", "length"), "yd yds yard yards"),
    "mile": (_unit("1609344/1000", "length"), "mi mile miles"),
    "second": (_unit(1, "time"), "s sec secs second seconds"),
    "minute": (_unit(60, "time"), "min mins minute minutes"),
    "hour": (_unit(3600, "time"), "h hr hrs hour hours"),
    "day": (_unit(86400, "time"), "day days"),
    "week": (_unit(604800, "time"), "week weeks wk wks"),
    "month": (_unit(1, "month"), "month months"),
    "year": (_unit(12, "month"), "year years yr yrs"),
    "gram": (_unit(1, "mass"), "g gram grams gm"),
    "kilogram": (_unit(1000, "mass"), "kg kgs kilogram kilograms kilo kilos"),
    "milligram": (_unit("1/1000", "mass"), "mg milligram milligrams"),
    "tonne": (_unit(10**6, "mass"), "tonne tonnes"),
    "pound": (_unit("45359237/100000", "mass"), "lb lbs pound pounds"),
    "ounce": (_unit("45359237/1600000", "mass"), "oz ounce ounces"),
    "litre": (_unit("1/1000", "length", 3), "L l litre litres liter liters"),
    "millilitre": (_unit("1/1000000", "length", 3), "mL ml millilitre millilitres milliliter milliliters"),
    "gallon": (_unit(4, "quart"), "gal gallon gallons"),
    "quart": (_unit(1, "quart"), "qt quart quarts"),
    "pint": (_unit("1/2", "quart"), "pint pints"),
    "cup": (_unit("1/4", "quart"), "cup cups"),
    "degree": (DEGREE, "deg degree degrees"),
    "radian": (RADIAN, "rad rads radian radians"),
    "percent": (PERCENT, "percent pct percentage"),
    "dollar": (_unit(100, "dollar"), "$ USD dollar dollars bucks"),
    "cent": (_unit(1, "dollar"), "cent cents ¢"),
    "euro": (_unit(1, "euro"), "€ EUR euro euros"),
    "sterling": (_unit(1, "sterling"), "£ GBP"),
    "yen": (_unit(1, "yen"), "¥ yen JPY"),
    "rupee": (_unit(1, "rupee"), "₹ rupee rupees Rs INR"),
    "newton": (Unit(Fraction(1000), (("length", 1), ("mass", 1), ("time", -2))), "N newton newtons"),
    "joule": (Unit(Fraction(1000), (("length", 2), ("mass", 1), ("time", -2))), "J joule joules"),
    "watt": (Unit(Fraction(1000), (("length", 2), ("mass", 1), ("time", -3))), "W watt watts"),
    "hertz": (_unit(1, "time", -1), "Hz hertz"),
    "mph": (Unit(Fraction(1609344, 1000 * 3600), (("length", 1), ("time", -1))), "mph"),
    "kmh": (Unit(Fraction(1000, 3600), (("length", 1), ("time", -1))), "kph kmh kmph"),
    "kelvin": (_unit(1, "temperature"), "K kelvin kelvins"),
    "electronvolt": (_unit(1, "electronvolt"), "eV"),
    "kiloelectronvolt": (_unit(1000, "electronvolt"), "keV"),
    "megaelectronvolt": (_unit(10**6, "electronvolt"), "MeV"),
    "unit": (Unit(), "unit units"),
}
_SPELLINGS: dict[str, Unit] = {word: unit for unit, words in _NAMES.values() for word in words.split()}
_SQUARE = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_OTHER_WORDS = words(
    "not no isn isn't isnt never wrong incorrect false true untrue or nor maybe either neither except least most more"
    " less fewer than over under above below up below about around approximately roughly plus minus times if unless and"
    " is are was were be if half quarter squared cubed factorial mod modulo correct right answer ignore accept equals"
    " equal to greater between any all every some each per base point"
    " possibly perhaps probably instead rather but the score reward grade grader instead i think hmm wait lie fake bad"
    " none nothing invalid unknown undefined different from percent halves"
    " quarters doubled tripled o'clock clock pm am bc ad ish odd something anything somewhat thereabouts max maximum"
    " min minimum upwards onwards guess estimate tens tenths hundredths thousandths millionths"
)
NOT_LABELS = _OTHER_WORDS | NUMBER_WORDS | {f"{word}s" for word in NUMBER_WORDS} | ORDINALS | ROMAN
"""Words that say more than what is counted: `5 or more`, `5 is wrong`."""
FUNCTIONS = words(r"\sin \cos \tan \cot \sec \csc \cis")
_VOWELS = frozenset("aeiou")
_OPENED, _CLOSED, _TIMES = (Token(Kind.OPERATOR, text) for text in "()*")
_WORDY = (Kind.WORD, Kind.TEXT, Kind.SYMBOL)


def _singular(word: str) -> str:
    word = word.lower()
    for ending, instead in (("ies", "y"), ("es", "e"), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + instead
    return word


def lookup(word: str) -> Unit | None:
    """The unit of that name; long names in any case."""
    return _SPELLINGS.get(word) or (_SPELLINGS.get(word.lower()) if len(word) > 2 else None)


NOT_A_PRODUCT = words(
    "no on yes is it in or and not at of to if so we be by do an as true none odd even one two ten six four five nine"
    " zero mod gcd lcm min max det log dne deg rad am pm km cm mm ft kg mg lb oz"
)
"""Short words that are never a product of variables."""


def is_product(letters: str) -> bool:
    """Whether a run of letters may be a product of variables: `xy`, `abc`, but not `no`, `km` or the segment `AB`."""
    return (
        len(letters) <= 4 and not letters.isupper() and letters.lower() not in NOT_A_PRODUCT and lookup(letters) is None
    )


def are_letters(word: str) -> bool:
    """Whether a word within a formula is a product of letters: there `mg` and `km` are no units."""
    return is_product(word) or (len(word) == 2 and word in _SPELLINGS and word.islower())


def split_unit(expression: Tokens) -> tuple[Tokens, Unit | None]:
    """Separate a quantity into its value and its unit: `5 km/h` is `5` and kilometres an hour.

    Words that are no known unit become the label of a counting unit (`21 dogs`), unless they change the meaning.
    """
    if len(expression) < 2:
        return expression, None
    if expression[0].text in ("$", "€", "£", "¥"):
        rest, unit = split_unit(expression[1:])
        money = _SPELLINGS[expression[0].text]
        return rest, money if unit is None or unit.dimensions == money.dimensions else money * unit
    if expression[0].text in ("-", "+") and expression[1].text in ("$", "€", "£", "¥"):
        rest, unit = split_unit(expression[1:])
        return (expression[0], *rest), unit
    if expression[-1].text == "%":
        return expression[:-1], PERCENT
    if expression[-1].text == "$":
        return expression[:-1], _SPELLINGS["$"]
    start = _suffix_start(expression)
    if any(token.text in FUNCTIONS for token in expression) and expression[start:] == (Token(Kind.OPERATOR, "deg"),):
        return expression, None  # the degrees of \sin 30^\circ belong to its argument
    if start == 0 or start == len(expression):
        return expression, None
    value, suffix = expression[:start], expression[start:]
    while suffix and (factor := _multiplier(suffix[0])) is not None:  # 2 million people
        value, suffix = (_OPENED, *value, _CLOSED, _TIMES, Token(Kind.NUMBER, str(factor))), suffix[1:]
    if not suffix:
        return value, None
    unit = _read(suffix, value)
    if unit is None:
        return expression, None
    return value, unit


def _multiplier(token: Token) -> int | None:
    """What a word multiplies the number before it with: `2 million`, `5K`; but `5 K` are kelvins."""
    return 1000 if token.text == "K" and not token.spaced else MULTIPLIERS.get(token.text.lower())


def in_letters(expression: Tokens) -> tuple[Tokens, Unit] | None:
    """A number with letters right behind it that may be a unit, `5m`, `5m/s`; `None` if they may not."""
    start = 1 + (expression[0].text == "-")
    number, rest = expression[:start], expression[start:]
    if not rest or number[-1].kind is not Kind.NUMBER or rest[0].kind is not Kind.SYMBOL or rest[0].spaced:
        return None
    if _multiplier(rest[0]) is not None:
        return None
    value, unit = split_unit((*number, replace(rest[0], spaced=True), *rest[1:]))
    return None if unit is None or value != number else (number, unit)


def _suffix_start(expression: Tokens) -> int:
    """Where the trailing run of words (with powers, strokes and degree signs) begins."""
    start = len(expression)
    while start > 0:
        token, follower = expression[start - 1], expression[start : start + 1]
        joins = token.text in ("/", "*", ".") and bool(follower) and follower[0].kind in _WORDY
        if token.text == "deg" or joins or (token.kind in _WORDY and _may_be_unit(expression, start - 1)):
            start -= 1
        elif length := _power_of_word(expression, start):
            start -= length
        else:
            break
    if start < len(expression) and expression[start].text == "/":
        return len(expression)  # over a unit, but what stands above is none
    while start < len(expression) and expression[start].text in ("/", "*", "."):
        start += 1
    return start


def _power_of_word(expression: Tokens, end: int) -> int:
    """The number of tokens before `end` that are `^{2}` or `^{-2}` behind a word; 0 if there is none."""
    for length in (4, 5):
        power = [t.text for t in expression[max(0, end - length) : end]]
        if len(power) == length < end and power[:2] == ["^", "{"] and power[-1] == "}":
            sign_is_fine = length == 4 or power[2] == "-"
            return length if sign_is_fine and expression[end - length - 1].kind in _WORDY else 0
    return 0


def _may_be_unit(expression: Tokens, index: int) -> bool:
    token = expression[index]
    if token.text in ("C", "F") and index and expression[index - 1].text == "deg":
        return True
    if token.kind in (Kind.TEXT, Kind.WORD):
        return len(token.text) > 1 or token.text in _SPELLINGS or token.kind is Kind.TEXT
    # A single letter outside of \text is a unit only after a space and a plain number or a power of ten: "5 m" and
    # "10^{8} m", but not "5m" or "x m".
    before = expression[index - 1] if index else None
    if before is None or token.text not in _SPELLINGS:
        return False
    if token.text == "K" and before.kind is Kind.NUMBER:
        return True
    if before.text == "/":
        return index >= 2 and expression[index - 2].kind in _WORDY
    if token.spaced and before.kind is Kind.SYMBOL and before.text in _SPELLINGS:
        return _may_be_unit(expression, index - 1)  # m s^{-2}
    return token.spaced and (before.kind is Kind.NUMBER or _ends_in_power_of_ten(expression[:index]))


def _ends_in_power_of_ten(expression: Tokens) -> bool:
    """Whether the last tokens are `10^{8}` or `10^{-8}`."""
    texts = [token.text for token in expression[-6:]]
    if "-" in texts[-3:-2]:
        del texts[-3]
    return texts[-5:-2] == ["10", "^", "{"] and texts[-2].isdigit() and texts[-1] == "}"


def _read(suffix: Tokens, value: Tokens) -> Unit | None:
    unit, label, inverse, pending, index = Unit(), [], False, 1, 0
    known = False
    while index < len(suffix):
        token = suffix[index]
        index += 1
        word = token.text.strip("'").lower()
        if token.text in ("/", "*", ".") or word in ("per", "a", "an"):
            inverse = inverse or token.text == "/" or word in ("per", "a", "an")
            continue
        if word in _SQUARE:
            if word.endswith("d"):
                return None if not known else unit ** _SQUARE[word]
            pending = _SQUARE[word]
            continue
        power, index = _power(suffix, index)
        if power is None:
            return None
        found = DEGREE if token.text == "deg" else lookup(token.text)
        scale = suffix[index].text.upper()[:1] if found is DEGREE and index < len(suffix) else ""
        if scale in ("C", "F") and suffix[index].text.lower() in ("c", "f", "celsius", "fahrenheit"):
            found = _unit(1, f"degree {scale}")
            index += 1
        if found is not None:
            known = True
            unit = unit * found ** (power * pending * (-1 if inverse else 1))
        elif word == "right" and index < len(suffix):
            label.append(word)  # 14 right triangles
        elif word in NOT_LABELS or power != 1 or not _is_plain(value) or not _counts(token):
            return None
        elif word not in ("of", "in", "distinct", "different", "total", "whole"):
            label.append(word)
        pending = 1
    if len(label) > 3:
        return None
    if known and label and unit.dimensions:
        label = []  # "5 cm long", "8 dollars profit"
    return Unit(unit.factor, unit.dimensions, tuple(label))


def _counts(token: Token) -> bool:
    """Whether a word may name what is counted: `12 dogs`, but neither `12xy` nor `12 xy`."""
    return token.kind is Kind.TEXT or (token.spaced and len(token.text) > 2 and bool(_VOWELS & set(token.text.lower())))


def _power(suffix: Tokens, index: int) -> tuple[int | None, int]:
    """The power at `index`, if there is one, and where it ends; `None` for a power that no unit has."""
    if index + 3 >= len(suffix) or suffix[index].text != "^":
        return 1, index
    negative = suffix[index + 2].text == "-"
    digits = suffix[index + 2 + negative].text
    if not digits.isdigit() or len(digits) > 1:
        return None, index
    return -int(digits) if negative else int(digits), index + 4 + negative


def _is_plain(value: Sequence[Token]) -> bool:
    """Whether the value before a counting word is a number, not a formula with letters that belong to it."""
    return all(token.kind is not Kind.WORD and token.kind is not Kind.TEXT for token in value)
