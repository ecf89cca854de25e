"""Golds of every form that only a program which knows a secret can pass, and the programs that try."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from typing import Any

from rewards.code.hostile import PROGRAMS

SECRET = "sekret:" + os.urandom(8).hex()
EXCESSES = {
    "endless recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()",
    "deep results": "def f():\n    x = ()\n    for _ in range(99): x = (x,)\n    return x",
    "deeper results": "def f():\n    x = {}\n    for _ in range(5000): x = {1: x}\n    return x",
    "a generator without end": "def f():\n    while True: yield 'x'",
    "a huge range": "def f(): return range(10**30)",
    "huge numbers": """
        from fractions import Fraction
        from decimal import Decimal
        def f(): return [10**5000, Fraction(1, 10**5000), Decimal("1e-60000"), 1e308]""",
    "a huge text": "def f(): return 'x' * (2 << 20)",
    "a million objects": "class C: pass\ndef f(): return [C() for _ in range(10**6)]",
    "endless words": "import sys\ndef f():\n    while True: print('x' * 10**6)",
    "a busy exit": "import atexit\n@atexit.register\ndef late():\n    while True: pass\ndef f(): return 0",
    "numbers that equal nothing": "def f(): return [float('nan'), float('inf'), -0.0, complex('nanj')]",
    "surrogates and zeros": "def f(): return '\\udc80\\0' * 9 + chr(0x10ffff)",
}
"""Programs that take too much: some of them use up their time."""

ALL = {**PROGRAMS, **EXCESSES}

_HELPERS = f"""
expected = {SECRET!r}
def same(a, b):
    return abs(len(a) - len(b)) < 1 and not a != b
"""
_LOOPS = f"""
assert all(map(lambda _: f() == {SECRET!r}, range(2)))
for got in [f()]:
    assert got == {SECRET!r}
"""
_CHECK = """
def check(candidate):
    for got, want in zip((candidate() for _ in range(2)), [reference()] * 2):
        assert got == want
    assert candidate() == reference()
"""
_UNITTEST = f"""
import unittest
class T(unittest.TestCase):
    def test(self):
        self.assertEqual(f(), {SECRET!r})
        self.assertTrue(f().startswith({SECRET!r}))
unittest.main()
"""


def forms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Golds that a program passes only if its `f()` returns the secret, by the way they are made."""
    yield "program", {"inputs": [""], "outputs": [SECRET]}
    yield "calls", {"function": "f", "calls": [{"args": [], "expected": SECRET}] * 2}
    yield "assert", {"tests": [f"assert f() == {SECRET!r}"]}
    yield (
        "predicate",
        {"tests": [f"assert f().startswith({SECRET!r}) and len(f()) == 23 and f().strip() in {SECRET!r}"]},
    )
    yield "set-up", {"tests": ["assert same(f(), expected)"], "setup": _HELPERS}
    yield "loops", {"tests": [_LOOPS]}
    yield "check", {"check": _CHECK, "entry": "f", "setup": f"def reference():\n    return {SECRET!r}"}
    yield "unittest", {"tests": [_UNITTEST]}


def program(name: str, form: str) -> str:
    """A hostile program, for a gold of this form."""
    code = textwrap.dedent(ALL[name])
    return f"{code}\nprint(f())" if form == "program" else code
