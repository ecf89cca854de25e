"""The callable that TRL sees: one reward as a picklable function of a batch.

TRL calls a reward function as `f(prompts=…, completions=…, completion_ids=…, trainer_state=…, log_extra=…,
log_metric=…, **columns)` with one list entry a row, where prompts and completions are strings or lists of chat
messages, and takes a list of `float | None`. `RewardFunction` does that for every kind of reward this package knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rewards.registry import TRAINER_ARGUMENTS, Found, check
from rewards.scores import Loop, RewardInfraError, ScoreError, call, judge
from rewards.text import plain
from rewards.verdict import Item, Status, Verdict, Verifier

_SHOWN = 40
"""Characters of a completion that a message shows."""
LARGEST = 1e15
"""Of a score, either way: advantages square differences in float32, which ends at 3e38."""
GOLD_COLUMNS = ("answer", "solution")
"""Columns that hold the gold answer, in the order they are looked for."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What TRL hands to a reward function, one entry a row, and `TRAINER_ARGUMENTS` where there is a trainer.

    `numbers` are those of the rows in the batch that these were selected from.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        rows = len(self.completions)
        parts = {"prompts": self.prompts, "completion_ids": self.completion_ids, **self.columns}
        for name, values in parts.items():
            if values is not None and len(values) != rows:
                raise ValueError(f"{rows} completions but {len(values)} entries in {name!r}")

    def __len__(self) -> int:
        return len(self.completions)

    @classmethod
    def of(cls, items: Sequence[Item]) -> Batch:
        """A batch of these items; a column that some of them lack is `None` there."""
        names = sorted({name for item in items for name in item.columns} - {"answer"})
        columns: dict[str, list[Any]] = {name: [item.columns.get(name) for item in items] for name in names}
        columns["answer"] = [item.answer for item in items]
        known = any(item.completion_ids is not None for item in items)  # an empty completion has ids too: none
        ids = [item.completion_ids or [] for item in items] if known else None
        return cls([item.messages or item.prompt for item in items], [item.completion for item in items], ids, columns)

    def items(self) -> list[Item]:
        """The rows as items: chats become plain text, the gold comes from `answer` or `solution`."""
        gold = next((self.columns[c] for c in GOLD_COLUMNS if c in self.columns), [None] * len(self))
        return [
            Item(
                plain(self.completions[row]),
                gold[row],
                plain(self.prompts[row]),
                None if self.completion_ids is None else self.completion_ids[row],
                {name: values[row] for name, values in self.columns.items()},
                None if isinstance(self.prompts[row], str) else self.prompts[row],
            )
            for row in range(len(self))
        ]

    def place(self, row: int) -> str:
        """A row in words, for people: its number, the problem's id where there is one, how the completion begins."""
        problem = self.columns.get("id", ())
        named = f", problem {problem[row]}" if row < len(problem) and problem[row] is not None else ""
        begins = " ".join(plain(self.completions[row])[:_SHOWN].split())
        return f"row {row if self.numbers is None else self.numbers[row]} (completion {begins!r}{named})"

    def select(self, rows: Sequence[int]) -> Batch:
        """The same batch with only these rows, in this order. What they log is `None` in the other rows."""
        ids = self.completion_ids
        return Batch(
            [self.prompts[row] for row in rows],
            [self.completions[row] for row in rows],
            None if ids is None else [ids[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.columns.items()},
            {**self.trainer, "log_extra": self._log_extra_of(rows)} if "log_extra" in self.trainer else self.trainer,
            rows if self.numbers is None else [self.numbers[row] for row in rows],
        )

    def _log_extra_of(self, rows: Sequence[int]) -> Callable[[str, Sequence[Any]], None]:
        """The trainer wants one entry for each of its rows, so those of some rows take their places among all."""

        def log_extra(column: str, values: Sequence[Any]) -> None:
            if len(values) != len(rows):
                raise ValueError(f"{len(rows)} completions but {len(values)} entries in {column!r} for the log")
            of_row = dict(zip(rows, values, strict=True))
            self.trainer["log_extra"](column, [of_row.get(row) for row in range(len(self))])

        return log_extra


class RewardFunction:
    """One reward, as TRL wants it; also gives the verdicts behind the numbers.

    It pickles as its name and options, and builds its verifier (with its pools of processes) in the process that
    first calls it.

    Args:
        use: what `rewards.registry.find` resolves.
        options: constructor arguments of the verifier.
        base: folder of the recipe, for relative file paths.
        max_infra: largest share of a batch of 16 rows or more that may fail for reasons the model did not cause.
        in_trainer: whether TRL's trainer calls it; see `rewards.registry.check`.

    Raises:
        RewardError: the reward or one of its options does not exist, or it asks for what only a trainer has.
    """

    def __init__(
        self,
        use: str,
        options: Mapping[str, Any] | None = None,
        base: Path | None = None,
        max_infra: float = 0.25,
        in_trainer: bool = True,
    ) -> None:
        self.use, self.options, self.base, self.max_infra = use, dict(options or {}), base, max_infra
        self.in_trainer = in_trainer
        self.__name__ = self._found.name.rpartition(":")[2]

    @cached_property
    def _found(self) -> Found:
        return check(self.use, self.options, self.base, self.in_trainer)

    @cached_property
    def verifier(self) -> Verifier | None:
        """The verifier behind it, built at the first use; `None` if it is a plain function."""
        built = self._found.target(**self.options) if self._found.is_verifier else None
        if built is not None and not isinstance(built, Verifier):
            raise TypeError(f"{self.use!r} is a class without a method verify(items)")
        return built

    @property
    def is_plain(self) -> bool:
        """Whether it is a function rather than a verifier."""
        return not self._found.is_verifier

    @cached_property
    def _loop(self) -> Loop:
        """Runs coroutines, if the reward is one."""
        return Loop()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("use", "options", "base", "max_infra", "in_trainer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        trainer_state: Any = None,
        **columns: Sequence[Any],
    ) -> list[float | None]:
        """Score a batch: one number a row, `None` for rows that must not be trained on.

        Raises:
            ValueError: lists of different lengths.
            ScoreError: the reward raised, or gave what is no finite score; names the row.
            RewardInfraError: more than `max_infra` of the rows could not be judged.
        """
        trainer = given(trainer_state, log_extra, log_metric)
        verdicts = self.verdicts(Batch(prompts, completions, completion_ids, columns, trainer))
        report(self.__name__, verdicts, log_extra, log_metric)
        guard_infra(self.__name__, verdicts, self.max_infra)
        return [verdict.score for verdict in verdicts]

    def verdicts(self, batch: Batch) -> list[Verdict]:
        """Judge a batch: one verdict a row."""
        if not len(batch):
            return []
        if self.verifier is None:
            verdicts = call(self.use, self._found, batch, lambda: self._loop)
        else:
            verdicts = judge(self.use, self.verifier, batch, lambda: self._loop)
        for row, verdict in enumerate(verdicts):
            score = verdict.score
            if score is not None and not abs(score) <= LARGEST:
                want = f"no larger than {LARGEST:g}" if math.isfinite(score) else "that is finite"
                raise ScoreError(
                    f"reward {self.use!r} gave {score} for {batch.place(row)}: return a number {want}, or None"
                )
        return verdicts

    def prepare(self) -> None:
        """Build the verifier now, so that what it lacks (a sandbox, a reward model) is known before training starts.

        A verifier may have a method `prepare` of its own, which starts what takes a while.
        """
        if (prepare := getattr(self.verifier, "prepare", None)) is not None:
            prepare()

    def close(self) -> None:
        """Stop the processes of the verifier, if it has any."""
        verifier = self.__dict__.pop("verifier", None)
        if (close := getattr(verifier, "close", None)) is not None:
            close()
        if (loop := self.__dict__.pop("_loop", None)) is not None:
            loop.close()


def given(*values: Any) -> dict[str, Any]:
    """Those of `TRAINER_ARGUMENTS`, in their order, that a trainer gave."""
    named = zip(TRAINER_ARGUMENTS, values, strict=True)
    return {name: value for name, value in named if value is not None}


def report(
    name: str,
    verdicts: Sequence[Verdict],
    log_extra: Callable[[str, list[Any]], None] | None,
    log_metric: Callable[[str, float], None] | None,
) -> None:
    """Log what a reward did: the share of each status that occurred, and what was extracted from each row."""
    if log_metric is not None and verdicts:
        for status in Status:
            share = sum(v.status is status for v in verdicts) / len(verdicts)
            if share or status in (Status.TIMEOUT, Status.INFRA, Status.BAD_GOLD):
                log_metric(f"rewards/{name}/{status.value}", share)
    if log_extra is not None and any(v.extracted is not None for v in verdicts):
        log_extra(f"{name}_extracted", [v.extracted or "" for v in verdicts])


def guard_infra(name: str, verdicts: Sequence[Verdict], limit: float) -> None:
    """Stop when too many rows failed for reasons that the model did not cause.

    Raises:
        RewardInfraError: with the first failure's own words.
    """
    failed = [v for v in verdicts if v.status is Status.INFRA]
    if failed and (len(failed) == len(verdicts) or (len(verdicts) >= 16 and len(failed) > limit * len(verdicts))):
        raise RewardInfraError(
            f"reward {name!r} could not judge {len(failed)} of {len(verdicts)} completions: {failed[0].detail}"
        )
