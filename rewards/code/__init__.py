"""`code`: does the program that a completion ends with pass the tests?

The program runs in the sandbox (`rewards.sandbox`); what the tests expect never does. It must pass all tests, unless
partial credit is asked for. Forms of gold answers: see `rewards.code.gold`.

    >>> load("code")([""], ["```python\\nprint(6 * 7)\\n```"], answer=[{"inputs": [""], "outputs": ["42"]}])
    [1.0]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from textwrap import dedent
from time import perf_counter
from typing import Any, Literal

from rewards.bounds import AtLeastOne, NotNegativeNumber, Positive
from rewards.code.errors import GoldError
from rewards.code.extract import MAX_CODE, extract_code
from rewards.code.gold import Asserts, Calls, Gold, read_gold
from rewards.code.hostile import attacks
from rewards.code.run import Result, Runner
from rewards.code.suite import Suite
from rewards.sandbox import Limits, open_sandbox
from rewards.verdict import Item, Status, Verdict

__all__ = ["CodeVerifier", "GoldError", "extract_code", "read_gold"]

_REMEMBERED = 1024
"""Gold answers that are not read and rehearsed again, if they return within as many others."""


_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")


class CodeVerifier:
    """Runs the program of each completion in a sandbox against hidden tests.

    Args:
        timeout: seconds of one job: a program on one input, or a solution under one list of calls or asserts.
        memory_mb: memory of one job, all its processes together.
        workers: jobs at one time, with `cluster` on each host; the cores of this process, or of the host, if not given.
        partial: pay the share of tests passed; otherwise all or nothing.
        tolerance: allowed absolute or relative difference where a number with a decimal point or an exponent is
            expected, in outputs or results; integers are always exact, and all numbers if not given.
        backend: `local`, `cluster` (the cores of all hosts that a run with `--cluster` has), `sandbox_fusion` (needs
            `url`) or `e2b` (needs the extra `e2b`).
        url: address of the SandboxFusion server, or of a Ray cluster that is not the run's own.
        unsafe_local: run programs bare, with your rights, where no sandbox can be had.

    Raises:
        SandboxError: no sandbox can be had, or it does not isolate; the message says what to install.
    """

    def __init__(
        self,
        timeout: Positive = 6.0,
        memory_mb: AtLeastOne = 512,
        workers: AtLeastOne | None = None,
        partial: bool = False,
        tolerance: NotNegativeNumber | None = None,
        backend: Literal["local", "cluster", "sandbox_fusion", "e2b"] = "local",
        url: str = "",
        unsafe_local: bool = False,
    ) -> None:
        limits = Limits(wall_s=timeout, memory_mb=memory_mb)
        self._sandbox = open_sandbox(backend, limits, workers, url, unsafe_local)
        self._runner, self._partial = Runner(self._sandbox, partial, tolerance), partial
        self._golds: dict[str, Gold | GoldError] = {}

    @staticmethod
    def unfit(backend: str, url: str, unsafe_local: bool, **_: Any) -> str:
        """Why these options do not go together; empty if they do."""
        if backend == "sandbox_fusion" and not url:
            return "backend sandbox_fusion needs url, the address of its server"
        if url and backend not in ("sandbox_fusion", "cluster"):
            return f"url is for the backends sandbox_fusion and cluster: leave it out of {backend}, or set backend"
        if unsafe_local and backend != "local":
            return f"unsafe_local is for the backend local: leave it out of {backend}"
        return ""

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """Judge all items, in parallel; equal programs under equal tests run once."""
        verdicts: dict[int, Verdict] = {}
        jobs: dict[tuple[str, str], tuple[str, Gold, list[int]]] = {}
        keys = [_key(item.answer) for item in items]
        with ThreadPoolExecutor(self._sandbox.workers, "code-reward") as threads:
            answers = {key: item.answer for key, item in zip(keys, items, strict=True)}
            golds = dict(zip(answers, threads.map(self._gold, answers, answers.values()), strict=True))
            for key in [*self._golds][:-_REMEMBERED]:
                del self._golds[key]
            for row, (key, item) in enumerate(zip(keys, items, strict=True)):
                gold, code = golds[key], extract_code(item.completion, item.opened)
                code = dedent(code) if code is not None else None  # a block may stand in a list
                if isinstance(gold, GoldError):
                    verdicts[row] = Verdict.of(Status.BAD_GOLD, detail=str(gold))
                elif code is None or not code.strip():
                    verdicts[row] = Verdict.of(Status.NO_ANSWER, detail="no closed block of code")
                elif len(code) > MAX_CODE:
                    verdicts[row] = Verdict.of(Status.REJECTED, detail=f"a program of {len(code)} characters")
                else:
                    jobs.setdefault((code, key), (code, gold, []))[2].append(row)
            judged = threads.map(lambda job: self._judge(job[0], job[1]), jobs.values())
            for (_, _, rows), verdict in zip(jobs.values(), judged, strict=True):
                verdicts.update(dict.fromkeys(rows, verdict))
        return [verdicts[row] for row in range(len(items))]

    def check_gold(self, gold: Any) -> str | None:
        """Why a gold answer cannot be judged by, or could be passed by cheating; `None` if it is sound."""
        read = self._gold(_key(gold), gold)
        return str(read) if isinstance(read, GoldError) else None

    def attacks(self, gold: Any) -> list[tuple[str, str]]:
        """Hostile completions for this gold answer, as (name, completion): all of them must score 0."""
        read = self._gold(_key(gold), gold)
        if isinstance(read, Calls):
            return [*attacks([read.function])]
        if isinstance(read, Asserts) and read.whole is None:
            return [*attacks([read.tests[0].function])]
        suite = read.whole if isinstance(read, Asserts) else read
        return [*attacks(suite.names)] if isinstance(suite, Suite) else [*attacks([])]

    @staticmethod
    def same(first: Verdict, second: Verdict) -> bool:
        """Whether two programs are one answer, however they are written: both do the same in the tests, as far as they
        were run."""
        told = [(verdict.status, _ADDRESS.sub("0x", verdict.detail)) for verdict in (first, second)]
        return told[0] == told[1]

    def close(self) -> None:
        """End the sandbox's processes."""
        self._sandbox.close()

    def _gold(self, key: str, answer: Any) -> Gold | GoldError:
        """Read a gold answer, and rehearse its tests, once."""
        if key not in self._golds:
            try:
                gold = read_gold(answer)
                reason = self._runner.rehearse(gold)
                result: Gold | GoldError = GoldError(reason) if reason else gold
            except GoldError as error:
                result = error
            self._golds[key] = result
            return result
        return self._golds[key]

    def _judge(self, code: str, gold: Gold) -> Verdict:
        started = perf_counter()
        result: Result = self._runner.run(code, gold)
        ms = (perf_counter() - started) * 1000
        if self._partial and result.status is not Status.INFRA:
            return Verdict(result.status, result.passed / result.total, code, ms, result.detail)
        return Verdict.of(result.status, code, result.detail, ms)


def _key(answer: Any) -> str:
    return answer if isinstance(answer, str) else repr(answer)
