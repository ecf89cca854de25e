"""Whose turn it is in a pool, and for how much CPU time.

A batch has CPU seconds to spend: its deadline, once for each core that works on it. What is left of them is divided
evenly among the calls that wait, so a call that hangs costs its own share and never a neighbour's. A call that did not
end within its share waits behind all the others, and is tried again if the rest allows twice as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_LEAST_S = 0.05
"""CPU seconds that a call gets at least: less would let no call end that is worth a process."""
_LONGER = 2.0
"""How many times as long a second attempt takes at least: less would only repeat the first."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One attempt at a call: its CPU seconds, and those of the attempt before (0 if it is the first)."""

    key: str
    share_s: float
    before_s: float = 0.0


class Turns:
    """Divides a batch's CPU seconds among its calls.

    Args:
        keys: the calls.
        limit_s: CPU seconds that one call may take at most.
        budget_s: CPU seconds for all of them; `None` for no bound but each call's limit.
    """

    def __init__(self, keys: list[str], limit_s: float, budget_s: float | None) -> None:
        self._limit_s, self._left_s = limit_s, float("inf") if budget_s is None else budget_s
        self._first, self._again = deque(keys), deque[tuple[str, float]]()

    def waiting(self, in_time: bool) -> bool:
        """Whether anybody waits; when time is up only who has not had a first attempt."""
        return bool(self._first or (in_time and self._again))

    def next(self) -> Turn | None:
        """The next attempt, whose share is set aside; `None` if what is left is not enough for one."""
        if self._first:
            share = min(self._limit_s, max(_LEAST_S, self._left_s / (len(self._first) + len(self._again))))
            self._left_s -= share
            return Turn(self._first.popleft(), share)
        _, before = self._again[0]
        share = min(self._limit_s, max(_LONGER * before, self._left_s / len(self._again)))
        if share > self._left_s:
            return None
        self._left_s -= share
        return Turn(self._again.popleft()[0], share, before)

    def ended(self, turn: Turn, used_s: float) -> None:
        """An attempt is over: what it did not use goes back to the others."""
        self._left_s += turn.share_s - used_s

    def overran(self, turn: Turn) -> bool:
        """An attempt took all of its share. Whether it waits for another one; else this was its last."""
        if turn.share_s >= self._limit_s or turn.before_s > 0:
            return False
        self._again.append((turn.key, turn.share_s))
        return True

    def rest(self) -> Iterator[tuple[str, bool]]:
        """The calls that nobody came back to, and whether they had a first attempt."""
        yield from ((key, True) for key, _ in self._again)
        yield from ((key, False) for key in self._first)
