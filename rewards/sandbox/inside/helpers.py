"""What test suites import to expect exceptions: `unittest` as it is, and the little of `pytest` that asserts use."""

from __future__ import annotations

import math
import re
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.sandbox.inside.questions import Conversation


def install(conversation: Conversation, suite: str) -> None:
    """Let `assertRaises` and `pytest.raises` expect exceptions of the solution, if a suite names their module."""
    if "unittest" in suite:
        _teach_unittest(conversation)
    if "pytest" in suite:
        module: Any = types.ModuleType("pytest")
        module.raises = lambda kind, match=None: _Raises(conversation, kind, match)
        module.approx = _Approx
        sys.modules["pytest"] = module


def _teach_unittest(conversation: Conversation) -> None:
    from unittest import case

    names: Any = case
    plain = names._AssertRaisesContext
    if hasattr(plain, "conversation"):  # of an earlier run
        plain.conversation = conversation
        return

    class Context(plain):  # type: ignore[misc,valid-type]
        def __enter__(self) -> Any:
            kinds = self.expected if isinstance(self.expected, tuple) else (self.expected,)
            self.conversation.expecting.append(kinds)
            return super().__enter__()

        def __exit__(self, *error: Any) -> Any:
            self.conversation.expecting.pop()
            return super().__exit__(*error)

    Context.conversation = conversation
    names._AssertRaisesContext = Context


class _Raises:
    """`with pytest.raises(kind, match=…) as info`."""

    def __init__(self, conversation: Conversation, kind: Any, match: str | None) -> None:
        self._conversation, self._kind, self._match = conversation, kind, match
        self.value: BaseException | None = None

    def __enter__(self) -> _Raises:
        self._conversation.expecting.append(self._kind if isinstance(self._kind, tuple) else (self._kind,))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: object) -> bool:
        self._conversation.expecting.pop()
        if error is None:
            raise AssertionError("it did not raise")
        self.value = error
        if not isinstance(error, self._kind):
            return False
        if self._match is not None and not re.search(self._match, str(error)):
            raise AssertionError(f"it raised {error}")
        return True


class _Approx:
    """`value == pytest.approx(expected)`, for numbers and for lists of them."""

    def __init__(self, expected: Any, rel: float = 1e-6, abs: float = 1e-12) -> None:
        self._expected, self._rel, self._abs = expected, rel, abs

    def __eq__(self, value: object) -> bool:
        return self._near(value, self._expected)

    __hash__ = None  # type: ignore[assignment]

    def _near(self, value: Any, expected: Any) -> bool:
        if isinstance(expected, list | tuple):
            same = type(value) is type(expected) and len(value) == len(expected)
            return same and all(self._near(v, e) for v, e in zip(value, expected, strict=True))
        if not isinstance(value, int | float) or not isinstance(expected, int | float):
            return bool(value == expected)
        return math.isclose(value, expected, rel_tol=self._rel, abs_tol=self._abs)
