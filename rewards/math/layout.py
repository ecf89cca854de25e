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
_ASCII_SPELLINGS = (
    (re.compile(r",\s*(?:\\!\s*)+(?=\d{3})|\{,\}\s+(?=\d{3})"), "{,}"),  # 32,\! 349 and 32{,} 349
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\(?:left|right)\s*\."), r"\\relax "),
    (re.compile(r"\bper cent\b"), "percent"),
    (re.compile(r"(?<=\d) ?x ?(?=10 ?\^)"), r"\\times "),
    (re.compile(r"(?<![\w.\\])(\d{1,3})C(\d{1,3})(?!\w)"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\(?:text|texttt|textrm|textbf|mbox|hbox|mathrm|mathtt|mathsf|mathbf)\{([0-9A-F]+)\}(?=_)"), r"\1"),
    (re.compile(r"\\(?:hspace|vspace|hphantom|vphantom|phantom|tag|label|mspace)\*?\s*\{[^{}]{0,40}\}"), " "),
    (re.compile(r"\\(?:hskip|kern|mkern)\s*-?[\d.]{1,6}\s*(?:pt|em|ex|mu|mm|cm)"), " "),
)
"""Spellings that are replaced; each pattern is linear."""


def clean(text: str) -> str:
    """Fold Unicode look-alikes into ASCII and LaTeX: full-width and Arabic digits, minus signs, superscripts."""
    if not text.isascii():
        text = _folded(text)
    for pattern, instead in _ASCII_SPELLINGS:
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
