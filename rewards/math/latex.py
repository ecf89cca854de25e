"""Tokens back into LaTeX, for a parser that is not ours."""

from __future__ import annotations

from rewards.math.numbers import literal
from rewards.math.shapes import fraction_tokens, is_product
from rewards.math.tokens import Kind, Token, Tokens

_VOCABULARY = frozenset(
    r"\frac \sqrt \binom \pi \infty \sin \cos \tan \cot \sec \csc \ln \log \lg \exp \arcsin \arccos \arctan \sinh \cosh"
    r" \tanh \int \sum \prod \lim \lfloor \rfloor \lceil \rceil \{ \} \langle \rangle \to \cap \cup \pm \mp \bmod \mod"
    r" \pmod \gcd \max \min \det \partial \nabla \overline \bar \emptyset \neg \prime \operatorname".split()
)
_OPERATORS = frozenset("+ - * / ^ ! ( ) [ ] { } | , = < > <= >= _ ' deg".split())
_LATEX = {"*": r"\cdot", "<=": r"\le", ">=": r"\ge", "deg": r"^{\circ}"}


def latex(expression: Tokens) -> str | None:
    """An expression as LaTeX without decimals, or `None` if it has words that no expression has."""
    parts: list[str] = []
    for token in expression:
        if token.kind is Kind.NUMBER:
            value = literal(token.text)
            if value is None:
                return None
            parts += _braced(value.denominator != 1, [t.text for t in fraction_tokens(value)])
        elif token.kind is Kind.SYMBOL or (token.kind is Kind.WORD and is_product(token)):
            parts += [_subscripted(token)] if token.kind is Kind.SYMBOL else list(token.text)
        elif token.text in _VOCABULARY | _OPERATORS:
            parts.append(_LATEX.get(token.text, token.text))
        else:
            return None
    return " ".join(parts)


def _braced(needed: bool, parts: list[str]) -> list[str]:
    return ["{", *parts, "}"] if needed else parts


def _subscripted(token: Token) -> str:
    name, _, index = token.text.partition("_")
    return f"{name}_{{{index}}}" if index else name
