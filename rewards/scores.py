"""Calling reward functions that are not ours, and reading what they return.

A function of one completion returns a score; one of a whole batch returns a list of them. A score is a number, `None`
("not my row"), a `Verdict`, or a mapping with the key `score` (or `reward`) beside whatever else it tells, as some
libraries return it; a batch may also be an array, or a mapping of such a list. Coroutines are awaited, those of a
batch's rows together. Everything else is an error that names the reward, the row, and what to do about it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence, Sized
from inspect import Parameter, isawaitable, signature
from typing import TYPE_CHECKING, Any, SupportsFloat

from rewards.registry import Found, RewardError, never_returns
from rewards.verdict import Status, Verdict, Verifier

if TYPE_CHECKING:
    from rewards.function import Batch

log = logging.getLogger(__name__)

SCORE_KEYS = ("score", "reward")
"""Keys of a mapping that hold a row's score, in the order they are looked for."""
BATCH_KEYS = (*SCORE_KEYS, "scores", "rewards")
"""Keys of a mapping that hold a batch's scores."""
_SHOWN = 60
"""Characters of a value or of a completion that a message shows."""
NOT_MINE = "the reward does not apply to this row"
NO_RETURN = "returned None: is a `return` missing?"


class ScoreError(RewardError):
    """A reward raised, or returned what is no score. Training cannot go on: no row could be blamed on the model."""


class RewardInfraError(RuntimeError):
    """Too many rows could not be judged, for reasons that the model did not cause. Training on the rest would lie."""


class Loop:
    """An event loop in a thread of its own, for coroutines: the caller's thread may already run one (a notebook).

    It stays the same from batch to batch, because clients that a function keeps open belong to the loop they began in.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reward", daemon=True)
        self._thread.start()

    def all(self, awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        """What they return, in order; an exception takes the place of what raised it."""

        async def gather() -> list[Any]:
            return await asyncio.gather(*awaitables, return_exceptions=True)

        return asyncio.run_coroutine_threadsafe(gather(), self._loop).result()

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def call(use: str, found: Found, batch: Batch, loop: Callable[[], Loop]) -> list[Verdict]:
    """Ask a plain function about a batch.

    Args:
        use: what the recipe calls it.
        found: the function.
        batch: the rows.
        loop: gives the event loop for coroutines.

    Raises:
        ScoreError: it raised, or returned what is no score; or it needs a column that the rows lack.
    """
    started = time.perf_counter()
    if missing := [name for name in found.columns if name not in batch.columns]:
        has = ", ".join(batch.columns) or "none"
        raise ScoreError(
            f"reward {use!r} needs {_columns(missing)}, which the rows lack (they have: {has}): "
            "hand it over with the data, or give the parameter a default"
        )
    ask = _of_batch if found.takes_batches else _of_rows
    scores = ask(use, found.target, batch, loop)
    ms = (time.perf_counter() - started) * 1000 / len(batch)
    verdicts = _read(use, scores, batch, ms)
    if all(score is None for score in scores) and never_returns(found.target):
        raise ScoreError(f"reward {use!r} {NO_RETURN} No row of it will ever have a score")
    return verdicts


def judge(use: str, verifier: Verifier, batch: Batch, loop: Callable[[], Loop]) -> list[Verdict]:
    """Ask a verifier about a batch; the arguments are those of `call`.

    Raises:
        ScoreError: it raised, or returned what are no verdicts.
    """
    try:
        judged = _awaited(verifier.verify(batch.items()), loop)
    except (RewardError, RewardInfraError):
        raise
    except Exception as error:
        raise _raised(use, type(verifier).verify, error, f"a batch of {len(batch)} rows") from error
    return _read(use, _listed(use, judged, len(batch)), batch, 0.0)


def _awaited(result: Any, loop: Callable[[], Loop]) -> Any:
    if not isawaitable(result):
        return result
    (result,) = loop().all([result])
    if isinstance(result, Exception):
        raise result
    return result


def _columns(names: Sequence[str]) -> str:
    return f"the column{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"


def _of_batch(use: str, function: Callable[..., Any], batch: Batch, loop: Callable[[], Loop]) -> list[Any]:
    rows = {"prompts": batch.prompts, "completions": batch.completions}
    if batch.completion_ids is not None:
        rows["completion_ids"] = batch.completion_ids
    own = {name: list(values) for name, values in {**batch.columns, **rows}.items()}  # others read these lists as well
    arguments = _accepted({**own, **batch.trainer}, signature(function).parameters)
    try:
        result = _awaited(_asked(use, function, arguments), loop)
    except Exception as error:
        raise _raised(use, function, error, f"a batch of {len(batch)} rows") from error
    return _listed(use, result, len(batch))


def _of_rows(use: str, function: Callable[..., Any], batch: Batch, loop: Callable[[], Loop]) -> list[Any]:
    parameters, results = signature(function).parameters, list[Any]()
    for row, item in enumerate(batch.items()):
        own = {"completion": item.completion, "prompt": item.prompt, "answer": item.answer}
        if item.completion_ids is not None:
            own["completion_ids"] = item.completion_ids
        try:
            results.append(_asked(use, function, _accepted({**item.columns, **own}, parameters)))
        except Exception as error:
            raise _raised(use, function, error, batch.place(row)) from error
    waiting = {row: result for row, result in enumerate(results) if isawaitable(result)}
    if waiting:
        for row, result in zip(waiting, loop().all(list(waiting.values())), strict=True):
            if isinstance(result, Exception):
                raise _raised(use, function, result, batch.place(row)) from result
            results[row] = result
    return results


def _asked(use: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a function returns. A child that it forks and that comes back ends here: two would go on training."""
    parent = os.getpid()
    try:
        return function(**arguments)
    except SystemExit as error:
        if os.getpid() == parent:
            raise RuntimeError(f"it left by sys.exit({error.code!r})").with_traceback(error.__traceback__) from error
        os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))
    finally:
        if os.getpid() != parent:
            log.error("the reward %r forked, and the child came back: it is ended. End a child by os._exit()", use)
            os._exit(1)


def _accepted(values: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(values)
    return {name: value for name, value in values.items() if name in parameters}


def _raised(use: str, function: Callable[..., Any], error: Exception, where: str) -> ScoreError:
    """The error of a reward that raised, with the line of its own code that did."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames
    line = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    said = "".join(traceback.format_exception_only(error)).partition(": ")[2]  # also of one that cannot say it itself
    return ScoreError(
        f"reward {use!r} raised {type(error).__name__}: {' '.join(said.split())}{line}, for {where}: "
        "mend it there, or let it return None for rows that it cannot judge"
    )


def _listed(use: str, result: Any, rows: int) -> list[Any]:
    """What a function of a batch returned, as one score a row.

    Raises:
        ScoreError: it is no list of as many.
    """
    if isinstance(result, Mapping):
        result = result[_key(use, result, BATCH_KEYS, f"a batch of {rows} rows")]
    if result is None:
        raise ScoreError(f"reward {use!r} {NO_RETURN} It takes {rows} completions and returns a list of {rows} scores")
    if isinstance(result, str | bytes):
        raise ScoreError(
            f"reward {use!r} returned the text {_short(result)} for {rows} completions, not a list of scores"
        )
    shape: tuple[int, ...] = getattr(result, "shape", ()) if isinstance(result, Sized) else ()
    single = isinstance(result, SupportsFloat) and not shape
    if single and rows == 1:
        return [result]
    if single or not hasattr(result, "__iter__"):
        raise ScoreError(
            f"reward {use!r} returned {_short(result)} for {rows} completions: return a list with one score for each,"
            " or let it take `completion`, and it is called for each"
        )
    scores = list(result)
    if len(scores) != rows:
        raise ScoreError(
            f"reward {use!r} gave {len(scores)} scores for {rows} completions: return one for each, in order,"
            " and None for those that it does not apply to"
        )
    return scores


def _read(use: str, scores: Sequence[Any], batch: Batch, ms: float) -> list[Verdict]:
    """Scores as verdicts.

    Raises:
        ScoreError: one of them is no score.
    """
    return [_verdict(use, score, batch.place(row), ms) for row, score in enumerate(scores)]


def _verdict(use: str, score: Any, place: str, ms: float) -> Verdict:
    if isinstance(score, Verdict):
        return score
    detail = ""
    if isinstance(score, Mapping):
        key = _key(use, score, SCORE_KEYS, place)
        detail = json.dumps({name: value for name, value in score.items() if name != key}, default=str)
        score = score[key]
    if score is None:
        return Verdict(Status.NO_ANSWER, None, ms=ms, detail=NOT_MINE)
    if isinstance(score, str | bytes):
        raise ScoreError(f"reward {use!r} returned the text {_short(score)} for {place}: return a number, or None")
    try:
        return Verdict.graded(float(score), detail=detail, ms=ms)
    except (TypeError, ValueError) as error:
        kind = type(score).__name__
        raise ScoreError(
            f"reward {use!r} returned {_short(score)} ({kind}) for {place}: return a number, None, or"
            " a mapping with the key 'score'"
        ) from error


def _key(use: str, result: Mapping[Any, Any], keys: Sequence[str], place: str) -> str:
    if (found := next((key for key in keys if key in result), None)) is not None:
        return found
    has = ", ".join(map(str, result)) or "none"
    raise ScoreError(f"reward {use!r} returned a mapping without the key 'score' for {place}; its keys: {has}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
