"""Numbers and foreign text, as a reader sees them on the page and in the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

SETTING_LIMIT = 40  # characters of a setting that is text, such as a chat template
MINUTE, HOUR = 60.0, 3600.0  # seconds
EN_DASH, NARROW_SPACE = "–", "\u202f"

_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)
"""Characters that reorder what stands around them."""
_VISIBLE = (
    {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: "\u2421"}
    | dict.fromkeys((*range(0x80, 0xA0), 0xFFFE, 0xFFFF, *_DIRECTIONS), "\ufffd")
)


def clean(text: str) -> str:
    """Foreign text that can be encoded, and that cannot reorder or hide what stands beside it.

    Lone surrogates and direction overrides become U+FFFD, control characters their pictures (NUL: ␀). Escaping for
    HTML is the template's business.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n").translate(_VISIBLE)


def shorten(text: str, limit: int) -> str:
    """The text; of one that is longer than `limit` characters, the beginning and the end."""
    left_out = len(text) - limit
    if left_out <= 0:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}\n[… {left_out:,} characters left out …]\n{text[-tail:]}"


def percent(share: float, digits: int = 1) -> str:
    """A share as percent, without the sign: 0.8125 is `81.2`."""
    return f"{100 * share:.{digits}f}"


def points(share: float) -> str:
    """A difference of shares in points with its sign: `+3.5`, `−0.4`."""
    return f"{100 * share:+.1f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """A 95 % interval of a share, in percent: `77.2–84.9`."""
    return f"{percent(low)}{EN_DASH}{percent(high)}"


def number(value: float) -> str:
    """A number of unknown size, with four significant digits."""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def amount(value: float) -> str:
    """A large count in short: 671 B, 1.3 M, 12.4 k, 400."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if letter == "k" else size)
            return f"{scaled:.0f}{NARROW_SPACE}{letter}" if scaled >= 100 else f"{scaled:.1f}{NARROW_SPACE}{letter}"
    return f"{value:,.0f}"


def size(count: float) -> str:
    """A size in bytes: 4.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A time span: `0.8 s`, `42 s`, `9 min 41 s`, `3 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < MINUTE:
        return f"{seconds:.0f} s"
    if round(seconds) < HOUR:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / MINUTE), 60)
    return f"{hours:,} h {minutes:02d} min"


def moment(epoch: float) -> str:
    """A point in time, in UTC: `2026-11-22 07:23 UTC`."""
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M UTC")


def sampling(settings: Mapping[str, Any]) -> str:
    """Sampling settings in words: `transformers, temperature 0.6, top-p 0.95, seed 0`."""
    rest = {name: value for name, value in settings.items() if value is not None and name not in ("samples", "n")}
    parts = [str(rest.pop("engine"))] if "engine" in rest else []
    if rest.get("temperature") == 0:
        parts.append("greedy")
        rest = {name: value for name, value in rest.items() if name not in _WITHOUT_MEANING_WHEN_GREEDY}
    neutral = {"top_p": 1, "top_k": 0, "min_p": 0}
    for name in sorted(rest, key=lambda name: (name not in ("temperature", "top_p"), name == "seed")):
        if name not in neutral or rest[name] != neutral[name] or name == "top_p":
            value = rest[name]
            shown = f"{value:g}" if _real(value) else textwrap.shorten(str(value), SETTING_LIMIT, placeholder=" …")
            parts.append(f"{name.replace('top_', 'top-').replace('_', ' ')} {shown}")
    return clean(", ".join(parts))


_WITHOUT_MEANING_WHEN_GREEDY = ("temperature", "top_p", "top_k", "min_p")


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: object) -> float | None:
    """The value as a number, if it is a finite one; `True` is not a number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None
