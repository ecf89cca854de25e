r"""Text before it is cut into tokens: what only concerns how it looks goes, and look-alikes become ASCII and LaTeX."""

from __future__ import annotations

import re
import unicodedata

from rewards.math.notation import UNICODE

_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙₖₐₓ", "0123456789+-=()nkax", strict=True))
_RAISED_RUN = re.compile(f"[{''.join(_RAISED)}]+")
_LOWERED_RUN = re.compile(f"[{''.join(_LOWERED)}]+")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_ROOT = re.compile(r"([√∛∜])\s?(\d+(?:\.\d+)?)")
_UNICODE_FRACTION = re.compile("([⁰¹²³⁴⁵⁶⁷⁸⁹]+)[⁄/]([₀₁₂₃₄₅₆₇₈₉]+)")
_SPELLINGS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (",", re.compile(r",\s*(?:\\!\s*)+(?=\d{3})|\{,\}\s+(?=\d{3})"), "{,}"),  # 32,\! 349 and 32{,} 349
    (r"\!", re.compile(r"\\!"), ""),
    (".", re.compile(r"\\(?:left|right)\s*\."), r"\\relax "),
    ("per cent", re.compile(r"\bper cent\b"), "percent"),
    ("x", re.compile(r"(?<=\d) ?x ?(?=10 ?\^)"), r"\\times "),
    ("C", re.compile(r"(?<![\w.\\])(\d{1,3})C(\d{1,3})(?!\w)"), r"\\binom{\1}{\2}"),
    ("}_", re.compile(r"\\(?:text(?:tt|rm|bf)?|mbox|hbox|math(?:rm|tt|sf|bf))\{([0-9A-F]+)\}(?=_)"), r"\1"),
    ("{", re.compile(r"\\(?:[hv]space|[hv]?phantom|tag|label|mspace)\*?\s*\{[^{}]{0,40}\}"), " "),
    ("k", re.compile(r"\\(?:hskip|m?kern)\s*-?[\d.]{1,6}\s*(?:pt|em|ex|mu|mm|cm)"), " "),
)
"""Spellings that are replaced: what a text with them contains in any case, a linear pattern, and the replacement."""


def clean(text: str) -> str:
    """Fold Unicode look-alikes into ASCII and LaTeX: full-width and Arabic digits, minus signs, superscripts."""
    if not text.isascii():
        text = _folded(text)
    for sign, pattern, instead in _SPELLINGS:
        if sign in text:
            text = pattern.sub(instead, text)
    return text


def _folded(text: str) -> str:
    text = _UNICODE_FRACTION.sub(lambda m: rf"\frac{{{_plain(m[1], _RAISED)}}}{{{_plain(m[2], _LOWERED)}}}", text)
    text = _ROOT.sub(lambda m: rf"{_ROOTS[m[1]]}{{{m[2]}}}", text)
    text = _RAISED_RUN.sub(lambda m: f"^{{{_plain(m[0], _RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda m: f"_{{{_plain(m[0], _LOWERED)}}}", text)
    folded = unicodedata.normalize("NFKC", text.translate(UNICODE)).translate(UNICODE)
    return "".join(
        str(unicodedata.digit(c)) if unicodedata.category(c) == "Nd" else c
        for c in folded
        if unicodedata.category(c) not in ("Cf", "Mn", "Cc") or c in "\t\n"
    )


def _plain(run: str, table: dict[str, str]) -> str:
    return "".join(table[character] for character in run)
