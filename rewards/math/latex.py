"""Tokens back into LaTeX, for a parser that is not ours."""

from __future__ import annotations

from rewards.math.kinds import CLOSING, OPENING, Kind, Token, Tokens, fraction_tokens
from rewards.math.notation import words
from rewards.math.numbers import literal
from rewards.math.units import is_product

_VOCABULARY = words(
    r"\frac \sqrt \binom \pi \infty \sin \cos \tan \cot \sec \csc \ln \log \lg \exp \arcsin \arccos \arctan \sinh \cosh"
    r" \tanh \lfloor \rfloor \lceil \rceil \{ \} \cap \cup \gcd \max \min \overline \bar"
)
UNEVALUATED = words(r"\int \sum \prod \lim \to \mod \bmod \pmod \det \partial \nabla")
"""What an answer may use only if the gold does, too: an integral is a question, and may take very long to answer."""
_MAX_TOKENS, _MAX_NESTING = 160, 12
"""Beyond these the parser takes seconds."""
_OPERATORS = words("+ - * / ^ ! ( ) [ ] { } | , = < > <= >= _ ' deg")
_LATEX = {"*": r"\cdot", "<=": r"\le", ">=": r"\ge", "deg": r"^{\circ}"}


def latex(expression: Tokens, vocabulary: frozenset[str] = frozenset()) -> str | None:
    """An expression as LaTeX without decimals, or `None` if it is none: words, lists, open brackets, no end of it.

    Args:
        expression: its tokens.
        vocabulary: commands that it may use besides the common ones.
    """
    if not _is_orderly(expression):
        return None
    parts: list[str] = []
    for token in expression:
        if token.kind is Kind.NUMBER:
            value = literal(token.text)
            if value is None:
                return None
            parts += _braced(value.denominator != 1, [t.text for t in fraction_tokens(value)])
        elif token.kind is Kind.SYMBOL or (token.kind is Kind.WORD and is_product(token.text)):
            parts.append(_subscripted(token))
        elif token.text in _VOCABULARY or token.text in _OPERATORS or token.text in vocabulary:
            parts.append(_LATEX.get(token.text, token.text))
        else:
            return None
    return " ".join(parts)


def _is_orderly(expression: Tokens) -> bool:
    depth, before = 0, None
    for token in expression:
        depth += (token.text in OPENING) - (token.text in CLOSING)
        if not 0 <= depth <= _MAX_NESTING or (token.text == "," and depth == 0):
            return False
        if before is not None and before.kind is token.kind is Kind.NUMBER:
            return False
        before = token
    return depth == 0 and len(expression) <= _MAX_TOKENS


def used(expression: Tokens) -> frozenset[str]:
    """The unevaluated operations in an expression."""
    return UNEVALUATED & {token.text for token in expression}


def _braced(needed: bool, parts: list[str]) -> list[str]:
    return ["{", *parts, "}"] if needed else parts


def _subscripted(token: Token) -> str:
    name, _, index = token.text.partition("_")
    return f"{name}_{{{index}}}" if index else name
