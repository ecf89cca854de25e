"""Sequences that are a token longer at every step, counted together in arrays instead of one by one in objects.

While they decode, all that vLLM's scheduler does to a sequence at a step is to add one to three counters, and to look
whether it has room and has not come to its end. With hundreds of sequences of a small model, doing that in Python takes
longer than the step takes the GPU. Here a sequence that has joined is a row of arrays. Its object is brought up to date
(`settle`) when somebody is going to look at it: when it needs a block, when it ends, when it is given up.

What a step takes besides these sequences is vLLM's to say; see `steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_BEYOND = 4
"""Tokens that a row can hold beyond those of a block: it is settled once a block, with a step or two under way."""
_GROWTH = 256
"""Rows that are added when all are taken."""


class Member(NamedTuple):
    """A sequence that is counted here.

    Attributes:
        request: vLLM's.
        row: where its numbers are.
        held: tokens that its front end was not told of yet.
    """

    request: Any
    row: int
    held: list[int]


@dataclass(frozen=True, slots=True)
class Step:
    """What one step takes of the sequences here: lists and arrays with an entry each, in the order of `names`.

    Attributes:
        names: vLLM's names of the requests.
        computed: tokens whose keys and values are in the cache before the step.
        outputs: tokens that they were asked to sample before it.
        blocks: the blocks that they were given for it, as vLLM tells its workers; `None` for none.
        rows, serials: where they are kept, and who was kept there.
        lengths: tokens that they have once the step has sampled.
    """

    names: list[str]
    computed: list[int]
    outputs: list[int]
    blocks: list[Any]
    rows: Ints
    serials: Ints
    lengths: Ints


class DecodeBatch:
    """The sequences that are counted together, in the order in which vLLM runs them.

    Attributes:
        requests: vLLM's objects.
        ends: tokens that end a sequence, the same for all.

    Args:
        block: tokens that a block of the cache holds.
        files: whether full blocks are filed, to be found by later prompts.
        overlaps: whether a step is scheduled while the one before it runs.
    """

    def __init__(self, block: int, files: bool, overlaps: bool) -> None:
        self.block, self.files, self.overlaps = block, files, overlaps
        self.requests: list[Any] = []
        self.ends: frozenset[int] = frozenset()
        self._members: dict[str, Member] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._joined = 0
        self._rows = _zeros(0)
        self._steps_left = 0
        """Steps for which no sequence is sure to have ended, at least."""
        # By row: tokens computed, those that were when it was settled, how many more outputs are (see `Step`) ...
        self._computed = self._settled = self._ahead = self._length = self._serial = _zeros(0)
        # Since a sequence was settled: how many tokens were sampled, and which.
        self._sampled, self._tokens = _zeros(0), _zeros(0, block + _BEYOND)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def join(self, request: Any, length: int, ends: frozenset[int], held: list[int]) -> bool:
        """Take a sequence in, behind the others; the last token that it has was part of the latest step.

        Args:
            request: vLLM's.
            length: tokens, its prompt's included, with which it ends in any case.
            ends: tokens that end it.
            held: is given the tokens that it samples.

        Returns:
            Whether it was taken in, which it is not if others end with other tokens.
        """
        if not self._members:
            self.ends = ends
        if ends != self.ends:
            return False
        if not self._free:
            self._grow()
        row, self._joined = self._free.pop(), self._joined + 1
        outputs = request.num_output_tokens + (request.num_output_placeholders if self.overlaps else 1)
        self._computed[row] = self._settled[row] = request.num_computed_tokens
        self._ahead[row] = outputs - request.num_computed_tokens
        self._length[row], self._serial[row], self._sampled[row] = length, self._joined, 0
        self._members[request.request_id] = Member(request, row, held)
        return True

    def leave(self, names: Iterable[str]) -> None:
        """Let sequences go, settled before; those that are not here are passed over."""
        for name in names:
            member = self._members.pop(name, None)
            if member is not None:
                self._serial[member.row] = 0
                self._free.append(member.row)

    def arrange(self) -> None:
        """To be called when sequences have joined or left."""
        self._names = list(self._members)
        self.requests = [member.request for member in self._members.values()]
        self._rows = rows = np.array([member.row for member in self._members.values()], np.int64)
        self._steps_left = int((self._length[rows] - self._computed[rows]).min(initial=np.iinfo(np.int64).max)) - 1

    def dissolve(self) -> None:
        """Settle all sequences, and let them go."""
        self.settle(self._members)
        self.leave(list(self._members))
        self.arrange()

    def settle(self, names: Iterable[str]) -> None:
        """Bring vLLM's objects of sequences up to date; those that are not here are passed over."""
        for name in names:
            member = self._members.get(name)
            if member is None:
                continue
            request, row, held = member
            scheduled, sampled = int(self._computed[row] - self._settled[row]), int(self._sampled[row])
            self._settled[row], self._sampled[row] = self._computed[row], 0
            request.num_computed_tokens += scheduled
            request.num_in_flight_tokens += scheduled - sampled
            if self.overlaps:
                request.num_output_placeholders += scheduled - sampled
            if sampled:
                tokens = self._tokens[row, :sampled].tolist()
                request._all_token_ids += tokens
                request._output_token_ids += tokens
                held += tokens
                if self.files:
                    request.update_block_hashes()

    def blocks_needed(self) -> int:
        """Blocks that the next step takes from the cache."""
        return int(np.count_nonzero(self._computed[self._rows] % self.block == 0))

    def schedule(self, allocate: Callable[[Any], Any]) -> Step:
        """The next step. Sequences that the one before it is sure to end are left out, as vLLM does.

        Args:
            allocate: gives a request room for a token; there are blocks enough. Returns vLLM's new blocks.
        """
        rows, names, requests = self._rows, self._names, self.requests
        if self._steps_left <= 0:
            going = self._computed[rows] + 1 < self._length[rows]
            rows, places = rows[going], np.flatnonzero(going).tolist()
            names, requests = [names[place] for place in places], [requests[place] for place in places]
        self._steps_left -= 1
        computed = self._computed[rows]
        begun = computed % self.block
        wanting = (begun == 0) | (begun == self.block - 1) if self.files else begun == 0
        blocks: list[Any] = [None] * len(names)
        for place in np.flatnonzero(wanting).tolist():
            self.settle([names[place]])
            blocks[place] = allocate(requests[place]).get_block_ids(allow_none=True)
        self._computed[rows] = computed + 1
        outputs = (computed + self._ahead[rows]).tolist()
        # One token is fed, and another sampled from it.
        return Step(names, computed.tolist(), outputs, blocks, rows, self._serial[rows], computed + 2)

    def write(self, step: Step, sampled: Sequence[Sequence[int]], places: Mapping[str, int]) -> list[str]:
        """Write down what a step sampled.

        Args:
            step: from `schedule`.
            sampled: tokens by sequence.
            places: whose are where.

        Returns:
            The names of those that vLLM has to deal with, settled: they end with this token, or have left.
        """
        tokens = [sampled[places[name]] for name in step.names]
        ids, rows = np.array([one[0] if len(one) == 1 else -1 for one in tokens], np.int64), step.rows
        others = (self._serial[rows] != step.serials) | (step.lengths >= self._length[rows]) | (ids < 0)
        for end in self.ends:
            others |= ids == end
        names = [step.names[place] for place in np.flatnonzero(others).tolist()]
        if names:
            rows, ids = rows[~others], ids[~others]
        at = self._sampled[rows]
        self._tokens[rows, at] = ids
        self._sampled[rows] = at + 1
        self.settle(names)
        return names

    def _grow(self) -> None:
        count = len(self._serial)
        self._free += range(count + _GROWTH - 1, count - 1, -1)
        more = _zeros(_GROWTH)
        self._computed, self._settled = np.append(self._computed, more), np.append(self._settled, more)
        self._ahead, self._sampled = np.append(self._ahead, more), np.append(self._sampled, more)
        self._length, self._serial = np.append(self._length, more), np.append(self._serial, more)
        self._tokens = np.append(self._tokens, _zeros(_GROWTH, self._tokens.shape[1]), axis=0)


def _zeros(*shape: int) -> Ints:
    return np.zeros(shape, np.int64)
