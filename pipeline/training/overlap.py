"""Rewards that are judged while log-probabilities are computed.

Verifiers work in pools of processes, so the trainer's process only waits for them. It starts them as soon as the
completions are there, goes on to the passes of the policy and the reference, and collects the verdicts when they are
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.schema.efficiency import Efficiency
from rewards import Batch, Composite, Verdict
from rewards.function import given

_TRL_COLUMNS = frozenset({"prompt", "completion", "completion_ids"})
"""Columns of a row that TRL hands to a reward under other names."""

Verdicts = dict[str, list[Verdict | None]]


class Recorded(Composite):
    """A composite that can start early, and remembers its last verdicts so that samples show why a reward was given."""

    last: Verdicts
    _started: tuple[Sequence[Any], Future[Verdicts]] | None = None
    _thread: ThreadPoolExecutor | None = None

    def start(self, batch: Batch) -> None:
        """Judge a batch in the background; `verdicts` for the same list of completions then waits for it."""
        self._thread = self._thread or ThreadPoolExecutor(1, "rewards")
        self._started = batch.completions, self._thread.submit(super().verdicts, batch)

    def verdicts(self, batch: Batch) -> Verdicts:
        """Every part's verdict on every row; see `Composite.verdicts`."""
        started, self._started = self._started, None
        if started is not None and started[0] is batch.completions:
            self.last = started[1].result()
        else:
            self.last = super().verdicts(batch)
        return self.last

    def close(self) -> None:
        """Stop the processes of all parts, and the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
        super().close()


class Overlap:
    """Mixin for `GRPOTrainer`: `efficiency.overlap_rewards`. Its reward function is a `Recorded`."""

    efficiency: Efficiency
    reward_funcs: list[Any]
    state: Any
    _log_completion_extra: Callable[[str, list[Any]], None]
    _log_metric: Callable[[str, float], None]
    _rows: list[dict[str, Any]]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self._rows = inputs
        return super()._generate_and_score_completions(inputs)  # type: ignore[misc, no-any-return]

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)  # type: ignore[misc]
        if self.efficiency.overlap_rewards and isinstance(self.reward_funcs[0], Recorded):
            _, completion_ids, _, completions, *_ = generated
            columns = {name: [row[name] for row in self._rows] for name in self._rows[0] if name not in _TRL_COLUMNS}
            trainer = given(self.state, self._log_completion_extra, self._log_metric)
            self.reward_funcs[0].start(Batch(prompts, completions, completion_ids, columns, trainer))
        return generated
