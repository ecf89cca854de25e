"""What is left out of a stage's data: questions of test sets, and what stands there twice.

Every row that is left out goes to `left_out.jsonl`, with the reason, where it stands, and what it asks.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from pipeline.context import StageContext
from pipeline.data.filters import Contamination

LEFT_OUT = "left_out.jsonl"
DIGEST_BYTES = 16


class Reason(StrEnum):
    """Why a row is left out."""

    CONTAMINATED = "contaminated"
    DUPLICATE = "duplicate"


class Seen:
    """Remembers texts by their hashes; they are the same if they differ in nothing but spaces and case."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def before(self, text: str) -> bool:
        """Whether a text came before; remembers it."""
        digest = blake2b(" ".join(text.casefold().split()).encode(), digest_size=DIGEST_BYTES).digest()
        known = digest in self._seen
        self._seen.add(digest)
        return known


def publish_left_out(context: StageContext[Any]) -> None:
    """Put the rows that were left out, also by an earlier attempt, beside what the stage publishes."""
    if (written := context.scratch / LEFT_OUT).is_file():
        shutil.copy2(written, context.output / LEFT_OUT)


class Cleaner:
    """Says which rows of a stage's data may be learnt, and keeps an account of the others.

    Args:
        tests: what must not be learnt.
        dedup: whether what comes twice is left out; it is counted either way.
        sink: file for the rows that are left out; written anew.
        sets: names of the test sets, for the account.
    """

    def __init__(
        self, tests: Contamination, dedup: bool = False, sink: Path | None = None, sets: Iterable[str] = ()
    ) -> None:
        self._tests, self.dedup, self._sink, self.sets = tests, dedup, sink, tuple(sets)
        self._file: IO[str] | None = None
        self.counts: Counter[Reason] = Counter()

    @property
    def left_out(self) -> int:
        """Rows so far that ask what a test set asks."""
        return self.counts[Reason.CONTAMINATED]

    def keeps(self, question: str, place: str, whole: str | None = None, seen: Seen | None = None) -> bool:
        """Whether a row may be learnt.

        Args:
            question: what it asks.
            place: where it stands, or its id.
            whole: all of it, by which duplicates are told; `question` if not given.
            seen: what came before; duplicates are not looked for without it.
        """
        if self._tests.found(question):
            reason = Reason.CONTAMINATED
        elif seen is not None and seen.before(question if whole is None else whole):
            reason = Reason.DUPLICATE
        else:
            return True
        self.counts[reason] += 1
        if reason is Reason.DUPLICATE and not self.dedup:
            return True
        self._write({"reason": reason.value, "place": place, "question": question})
        return False

    def _write(self, row: dict[str, str]) -> None:
        if self._sink is None:
            return
        if self._file is None:
            self._file = self._sink.open("w", encoding="utf-8")
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
