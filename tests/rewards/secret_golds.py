"""Golds of every form that only a program which knows a secret can pass, and the programs that try."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from typing import Any

from rewards.code.hostile import EXCESSES, PROGRAMS

SECRET = "sekret:" + os.urandom(8).hex()
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
