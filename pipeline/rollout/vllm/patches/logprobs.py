"""Log-probabilities of sampled tokens, taken from vLLM a step at a time.

vLLM has them as one array a step, for all sequences. It cuts the array into one piece a sequence, hands each through
two layers, and appends it to that sequence's list, all in Python, at every token of every sequence; a small model waits
for that. Here the array of a step is read once, before vLLM cuts it, and vLLM finds none.

    logprobs = StepLogprobs(llm)            # whose engine core runs in this process
    with logprobs.reading():
        llm.llm_engine.add_request("0", prompt, SamplingParams(logprobs=0, ...))
    ...                                     # steps, until it has ended
    logprobs.taken({name: token_ids})       # a list a sequence, by the names that the scheduler has for them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.rollout.base import RolloutError

if TYPE_CHECKING:
    from pipeline.rollout.vllm.patches.scheduler import SchedulerFastPath


class StepLogprobs:
    """Watches an engine's scheduler, through which every step's results and every new sequence go.

    The sequences that are added while it is `reading` have their log-probabilities here, and none in vLLM's outputs.

    Args:
        llm: a `vllm.LLM` whose engine core runs in this process.
        steps: what keeps its books, if that is not vLLM alone; made before this.
    """

    def __init__(self, llm: Any, steps: SchedulerFastPath | None = None) -> None:
        self._steps = steps
        self._scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        # Name of a sequence -> vLLM's request, and the log-probabilities of its tokens so far.
        self._asked: dict[str, tuple[Any, list[float]]] = {}
        self._add, self._update = self._scheduler.add_request, self._scheduler.update_from_output
        self._scheduler.add_request, self._scheduler.update_from_output = self._added, self._updated
        self._reads = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the log-probabilities of the sequences that are added within."""
        self._read(True)
        try:
            yield
        finally:
            self._read(False)

    def taken(self, token_ids: Mapping[str, Sequence[int]]) -> list[list[float]]:
        """The log-probabilities of sequences that have ended, which are forgotten here.

        Args:
            token_ids: name of a sequence -> its sampled tokens.

        Raises:
            RolloutError: there is not one for every token.
        """
        found = [self._asked.pop(name)[1] for name in token_ids]
        for scored, ids in zip(found, token_ids.values(), strict=True):
            if len(scored) != len(ids):
                raise RolloutError(f"vLLM gave {len(scored)} log-probabilities for {len(ids)} tokens")
        return found

    def forget(self, names: Iterable[str]) -> None:
        """Forget sequences that were given up."""
        for name in names:
            self._asked.pop(name, None)

    def _read(self, reads: bool) -> None:
        self._reads = reads
        if self._steps is not None:
            self._steps.logprobs_are_read = reads

    def _added(self, request: Any) -> None:
        if self._reads:
            self._asked[request.request_id] = request, []
        self._add(request)

    def _updated(self, scheduled: Any, output: Any) -> Any:
        if output.logprobs is None or not self._asked:
            return self._update(scheduled, output)
        scores, output.logprobs = output.logprobs, None
        told = self._update(scheduled, output)
        first = scores.logprobs[:, 0].tolist()  # of the sampled tokens; others would follow
        starts = scores.cu_num_generated_tokens  # with speculation, rows are tokens instead of sequences
        places = output.req_id_to_index
        others: Iterable[str] = places
        if self._steps is not None and self._steps.others is not None:
            others = self._steps.others
            for name in self._steps.longer:
                self._asked[name][1].append(first[places[name]])
        for name in others:
            if name not in self._asked:  # given up, and still under way
                continue
            index, (request, values) = places[name], self._asked[name]
            # One, or several with speculation; none in a prompt, or where a sequence that was put off starts anew.
            if added := request.num_output_tokens - len(values):
                start = index if starts is None else starts[index]
                values += first[start : start + added]
        return told
