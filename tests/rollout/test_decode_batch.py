"""Sequences counted together against the same ones counted one by one. What vLLM makes of them: test_vllm_steps."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.rollout.vllm.patches.decode_batch import DecodeBatch, Step

BLOCK, END = 4, 9
FIELDS = ("num_computed_tokens", "num_in_flight_tokens", "num_output_placeholders")


@dataclass
class Request:
    """What of vLLM's request a decoding step changes."""

    request_id: str
    length: int
    num_computed_tokens: int
    num_in_flight_tokens: int
    num_output_placeholders: int
    _all_token_ids: list[int]
    _output_token_ids: list[int] = field(default_factory=list)
    hashed: int = 0

    @property
    def num_output_tokens(self) -> int:
        return len(self._output_token_ids)

    def update_block_hashes(self) -> None:
        self.hashed = len(self._all_token_ids) // BLOCK


class OneByOne:
    """The reference: each sequence has its own numbers, which are brought up to date at once."""

    def __init__(self, files: bool, overlaps: bool) -> None:
        self.files, self.overlaps = files, overlaps
        self.requests: dict[str, Request] = {}

    def schedule(self) -> list[tuple[str, int, int, bool]]:
        """Name, tokens computed, tokens asked for before, and whether room is looked for."""
        step = []
        for name, one in self.requests.items():
            if one.num_computed_tokens + 1 >= one.length:
                continue  # what is under way is its last token
            begun = one.num_computed_tokens % BLOCK
            looks = begun == 0 or (self.files and begun == BLOCK - 1)
            step.append((name, one.num_computed_tokens, one.num_output_tokens + one.num_output_placeholders, looks))
            one.num_computed_tokens += 1
            one.num_in_flight_tokens += 1
            one.num_output_placeholders += self.overlaps
        return step

    def write(self, names: list[str], tokens: dict[str, int]) -> list[str]:
        """Take a token each; returns those that end with it, or have ended, without having it."""
        ended = []
        for name in names:
            one = self.requests.get(name)
            if one is None or tokens[name] == END or len(one._all_token_ids) + 1 >= one.length:
                ended.append(name)
                continue
            one._all_token_ids.append(tokens[name])
            one._output_token_ids.append(tokens[name])
            one.num_in_flight_tokens -= 1
            one.num_output_placeholders -= self.overlaps
            one.update_block_hashes()
        return ended


class Both:
    """A sequence as `DecodeBatch` has it, and as `OneByOne` has it; held against each other."""

    def __init__(self, files: bool, overlaps: bool) -> None:
        self.together, self.apart = DecodeBatch(BLOCK, files, overlaps), OneByOne(files, overlaps)
        self.files, self.overlaps = files, overlaps
        self.ours: dict[str, Request] = {}
        self.held: dict[str, list[int]] = {}

    def begin(self, name: str, prompt: int, most: int) -> None:
        """A sequence whose prompt is part of the step that was scheduled last."""
        for where in (self.ours, self.apart.requests):
            ids = list(range(prompt))
            where[name] = Request(name, prompt + most, prompt, prompt, int(self.overlaps), ids, hashed=prompt // BLOCK)
        self.held[name] = []
        one = self.ours[name]
        assert self.together.join(one, one.length, frozenset({END}), self.held[name])
        self.together.arrange()

    def first_token(self, name: str, token: int) -> None:
        """What vLLM does when the prompt's step is done: it looks at the object itself."""
        for one in (self.ours[name], self.apart.requests[name]):
            one.num_in_flight_tokens -= len(one._all_token_ids)
            one.num_output_placeholders -= self.overlaps
            one._all_token_ids.append(token)
            one._output_token_ids.append(token)
            one.update_block_hashes()
        self.held[name].append(token)

    def settle(self, names: list[str]) -> None:
        """Bring sequences up to date, and look whether they are."""
        self.together.settle(names)
        for name in names:
            self.same(name)

    def same(self, name: str) -> None:
        """Hold an object that is up to date against its twin."""
        mine, reference = self.ours[name], self.apart.requests[name]
        for number in (*FIELDS, "_all_token_ids", "_output_token_ids"):
            assert getattr(mine, number) == getattr(reference, number), (name, number)
        assert self.held[name] == mine._output_token_ids
        assert not self.files or mine.hashed == reference.hashed

    def end(self, names: list[str]) -> None:
        """Let sequences go that have ended."""
        for name in names:
            if name in self.ours:
                self.same(name)
                del self.ours[name], self.apart.requests[name]
        self.together.leave(names)
        self.together.arrange()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("files", "overlaps"), [(True, False), (True, True), (False, True), (False, False)])
def test_numbers_are_those_of_sequences_counted_one_by_one(files: bool, overlaps: bool, seed: int) -> None:
    rng, both = random.Random(seed), Both(files, overlaps)

    def allocate(request: Request) -> Any:
        both.same(request.request_id)  # vLLM is going to look at it
        return SimpleNamespace(get_block_ids=lambda allow_none: f"block for {request.request_id}")

    under_way: deque[tuple[Step, list[str], list[str]]] = deque()
    for number in range(300):
        step, reference = both.together.schedule(allocate), both.apart.schedule()
        assert [*zip(step.names, step.computed, step.outputs, strict=True)] == [one[:3] for one in reference]
        assert step.blocks == [f"block for {name}" if looks else None for name, *_, looks in reference]
        begun = [f"{number}-{index}" for index in range(rng.choice([0, 0, 0, 1, 2, 300 if number == 50 else 5]))]
        for name in begun:
            both.begin(name, rng.randrange(1, 12), rng.randrange(3, 40))
        under_way.append((step, step.names, begun))
        if len(under_way) > overlaps:
            step, names, begun = under_way.popleft()
            for name in begun:
                both.first_token(name, rng.randrange(END))
            sampled = {name: END if rng.random() < 0.08 else rng.randrange(END) for name in names}
            order = rng.sample(names, len(names))
            left = both.together.write(step, [[sampled[name]] for name in order], {n: at for at, n in enumerate(order)})
            assert left == both.apart.write(names, sampled)
            both.end(left)
        both.settle([name for name in both.ours if rng.random() < 0.1])
    assert both.ours
    both.settle(list(both.ours))
    both.together.dissolve()
    assert not both.together.requests


def test_sequences_that_end_otherwise_stay_outside() -> None:
    together = DecodeBatch(BLOCK, files=False, overlaps=True)
    first, second = (Request(name, 20, 3, 0, 1, [1, 2, 3]) for name in "ab")
    assert together.join(first, 20, frozenset({END}), [])
    assert not together.join(second, 20, frozenset({END, 8}), [])
    together.arrange()
    assert together.requests == [first]
    assert "b" not in together
