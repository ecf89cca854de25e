"""vLLM's bookkeeping of a decoding step, without per-token work that most steps do not need.

A step of decoding adds one token to each sequence. vLLM's scheduler then goes through some thirty Python calls for each
of them: it looks for blocks where the last one has room, hashes blocks that are not full, counts, and passes every
token on to a front end that wants the finished completion. With hundreds of sequences of a small model the GPU waits
for that.

    SchedulerFastPath(llm)                        # whose engine core runs in this process

From then on a token that does not end its sequence is written down, and handed on with the one that does; blocks are
hashed when they are full, and looked for and filed when the next one is begun. Sequences that only decode are counted
together (`decode_batch`), and vLLM schedules a step for the others alone, with what these leave of its budgets.
Everything else takes vLLM's own way: prompts, speculation, preemption, structured output, stop words, log-probabilities
that vLLM has to pass on (see `logprobs`). Which tokens are sampled does not change, and neither does what a step is
made of.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

from pipeline.rollout.vllm.patches.decode_batch import DecodeBatch, Step

log = logging.getLogger(__name__)

PASSED_ON = (
    "prompt_logprobs_dict",
    "prompt_token_id_logprobs_dict",
    "pooler_output",
    "kv_connector_output",
    "ec_connector_output",
    "num_nans_in_logits",
    "aux_output_connector_output",
    "sampling_masks",
    "routed_experts",
)
"""What a step may bring besides tokens, in one vLLM or another; vLLM deals with such a step alone. Log-probabilities
are not among it: sequences that want them from vLLM are left to it one by one."""
STALE = ("num_stale_output_tokens", "async_tokens_to_discard")
"""How a request counts the tokens under way that it will not take, in vLLM 0.31 and in 0.26. One that counts them in
another way is of a vLLM that this was not written for, and is left to it."""
FEW = 24
"""Sequences below which vLLM is as quick with each of them as arrays are with all (timed by hand, on a CPU)."""


class Kept(NamedTuple):
    """A sequence that may be written down quickly.

    Attributes:
        request: vLLM's.
        ends: tokens that end it.
        length: tokens, its prompt's included, with which it ends in any case.
        tokens: those that its front end was not told of yet.
        scored: whether vLLM itself has to pass its log-probabilities on.
    """

    request: Any
    ends: frozenset[int]
    length: int
    tokens: list[int]
    scored: bool


class SchedulerFastPath:
    """Takes the plain part of each step out of the hands of an engine's scheduler, for as long as the engine lives.

    Models whose cache is not one group of blocks for full attention are left to vLLM, which the log tells.

    Attributes:
        on: whether what is asked for from now on is treated so.
        logprobs_are_read: whether somebody takes log-probabilities out of each step before vLLM sees it.
        longer: the sequences that the last step made a token longer, as far as they are counted together.
        others: the other sequences of that step; `None` if steps are not watched at all.

    Args:
        llm: a `vllm.LLM` whose engine core runs in this process.
    """

    def __init__(self, llm: Any) -> None:
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
        from vllm.v1.request import RequestStatus

        self._scheduler = scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        self.on, self.logprobs_are_read = True, False
        self.longer: list[str] = []
        self.others: Collection[str] | None = None
        self._running, self._whole = RequestStatus.RUNNING, RequestOutputKind.FINAL_ONLY
        self._kept: dict[str, Kept] = {}
        caches = scheduler.kv_cache_manager.coordinator.single_type_managers
        if [type(cache) for cache in caches] != [FullAttentionManager] or scheduler.num_lookahead_tokens:
            log.info("every token takes vLLM's own way: the cache is not one group of blocks, or tokens are drafted")
            return
        self._block, self._files = caches[0].block_size, scheduler.kv_cache_manager.enable_caching
        self._stale = STALE[0]
        self._nothing = scheduler.kv_cache_manager.empty_kv_cache_blocks
        self._add, self._update = scheduler.add_request, scheduler.update_from_output
        self._allocate = scheduler.kv_cache_manager.allocate_slots
        scheduler.add_request, scheduler.update_from_output = self._added, self._updated
        scheduler.kv_cache_manager.allocate_slots = self._allocated
        self._together = DecodeBatch(self._block, self._files, isinstance(scheduler, AsyncScheduler))
        self._schedule, self._finish = scheduler.schedule, scheduler.finish_requests
        self._reset = scheduler.reset_prefix_cache
        if not special(scheduler):
            scheduler.schedule, scheduler.finish_requests = self._scheduled, self._finished
            scheduler.reset_prefix_cache = self._reset_cache

    def _added(self, request: Any) -> None:
        if not self._scheduler.requests:
            self._kept.clear()  # of what was given up
        params = request.sampling_params
        known = [name for name in STALE if hasattr(request, name)]
        plain = (
            self.on
            and known
            and params is not None
            and params.output_kind is self._whole
            and not params.stop
            and not getattr(params, "repetition_detection", None)
            and not (request.structured_output_request or request.mm_features or request.resumable)
        )
        if plain:
            self._stale = known[0]
            ends = frozenset({params.eos_token_id, *(params.stop_token_ids or ())} - {None})
            length = min(request.num_prompt_tokens + request.max_tokens, self._scheduler.max_model_len)
            scored = params.logprobs is not None and not self.logprobs_are_read
            self._kept[request.request_id] = Kept(request, ends, length, [], scored)
        self._add(request)

    def _allocated(self, request: Any, num_new_tokens: int, *args: Any, **others: Any) -> Any:
        """vLLM's `allocate_slots`; a token whose predecessor is in the same block needs none."""
        begun = request.num_computed_tokens % self._block
        full = self._files and begun == self._block - 1  # with this token, and may be filed
        plain = request.request_id in self._kept and request.status is self._running
        if plain and num_new_tokens == 1 and begun and not full:
            return self._nothing
        return self._allocate(request, num_new_tokens, *args, **others)

    def _scheduled(self, *args: Any, **others: Any) -> Any:
        """vLLM's `schedule`, which is shown those sequences that are not counted together."""
        together = self._together
        count = len(together.requests)
        if count and not self._may_go_on(count):
            together.dissolve()
            count = 0
        if not count:
            scheduled = self._schedule(*args, **others)
        else:
            step = together.schedule(lambda request: self._allocate(request, 1))
            with self._hidden(count, len(step.names)):
                scheduled = self._schedule(*args, **others)
            self._merge(step, scheduled)
        self._join(scheduled)
        return scheduled

    def _may_go_on(self, count: int) -> bool:
        """Whether so many sequences are still those that vLLM runs first, and have room for a token each."""
        together, scheduler = self._together, self._scheduler
        return bool(
            count > FEW // 2
            and scheduler.running[:count] == together.requests
            and scheduler.pause_state.name == "UNPAUSED"
            and together.blocks_needed() <= scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        )

    @contextmanager
    def _hidden(self, count: int, tokens: int) -> Iterator[None]:
        """Let vLLM not see the first sequences that it runs, nor the part of its budgets that is theirs."""
        scheduler = self._scheduler
        limits = {"max_num_running_reqs": count, "max_num_active_reqs": count, "max_num_scheduled_tokens": tokens}
        limits = {name: theirs for name, theirs in limits.items() if hasattr(scheduler, name)}
        first, scheduler.running = scheduler.running[:count], scheduler.running[count:]
        for name, theirs in limits.items():
            setattr(scheduler, name, getattr(scheduler, name) - theirs)
        try:
            yield
        finally:
            scheduler.running = first + scheduler.running
            for name, theirs in limits.items():
                setattr(scheduler, name, getattr(scheduler, name) + theirs)

    def _merge(self, step: Step, scheduled: Any) -> None:
        """Put sequences that are counted together before the others of a step, as vLLM would have."""
        scheduler, cached = self._scheduler, scheduled.scheduled_cached_reqs
        cached.req_ids[:0] = step.names
        cached.num_computed_tokens[:0] = step.computed
        cached.num_output_tokens[:0] = step.outputs
        cached.new_block_ids[:0] = step.blocks
        scheduled.num_scheduled_tokens = dict.fromkeys(step.names, 1) | scheduled.num_scheduled_tokens
        scheduled.total_num_scheduled_tokens += len(step.names)
        if scheduled.num_common_prefix_blocks:  # which vLLM 0.32 no longer counts
            first = scheduler.running[0].request_id
            scheduled.num_common_prefix_blocks = scheduler.kv_cache_manager.get_num_common_prefix_blocks(first)
        if not scheduler.use_v2_model_runner:
            scheduler.prev_step_scheduled_req_ids.update(step.names)
        scheduled.decode_batch = step

    def _join(self, scheduled: Any) -> None:
        """Count those together that only decode from now on, and come next to those that are."""
        together, running = self._together, self._scheduler.running
        count = len(together.requests)
        if len(running) == count or len(running) < FEW:
            return
        for request in islice(running, count, None):
            kept = self._kept.get(request.request_id)
            if (
                kept is None
                or kept.scored
                or request.request_id not in scheduled.num_scheduled_tokens
                or request.is_prefill_chunk
                or getattr(request, self._stale)
                or not together.join(request, kept.length, kept.ends, kept.tokens)
            ):
                break
        together.arrange()

    def _finished(self, *args: Any, **others: Any) -> Any:
        """vLLM's `finish_requests`, by which sequences are given up."""
        self._together.dissolve()
        return self._finish(*args, **others)

    def _reset_cache(self, *args: Any, **others: Any) -> Any:
        """vLLM's `reset_prefix_cache`, which may put off what runs."""
        self._together.dissolve()
        return self._reset(*args, **others)

    def _updated(self, scheduled: Any, output: Any) -> Any:
        """vLLM's `update_from_output`, for the sequences that are more than one token longer."""
        together, counts = self._together, scheduled.num_scheduled_tokens
        self.longer, self.others = [], counts
        if not output.sampled_token_ids or any(getattr(output, name, None) for name in PASSED_ON):
            together.dissolve()
            return self._told(self._update(scheduled, output))
        step: Step | None = getattr(scheduled, "decode_batch", None)
        if step is not None:
            left_over = together.write(step, output.sampled_token_ids, output.req_id_to_index)
            counts = self.others = dict.fromkeys(left_over, 1) | dict(islice(counts.items(), len(step.names), None))
            self.longer = [name for name in step.names if name not in counts] if left_over else step.names
        left = copy.copy(scheduled)
        left.num_scheduled_tokens = self._written(counts, output)
        together.settle(left.num_scheduled_tokens)
        told = self._told(self._update(left, output))
        gone = [name for name in left.num_scheduled_tokens if name in together and name not in self._kept]
        if gone:
            together.leave(gone)
            together.arrange()
        return told

    def _written(self, counts: dict[str, int], output: Any) -> dict[str, int]:
        """Write plain tokens down; returns the sequences that are left, and how many tokens of each were computed."""
        kept, places, sampled = self._kept, output.req_id_to_index, output.sampled_token_ids
        stale, running = self._stale, self._running
        block, files = self._block, self._files
        left = {}
        for name, count in counts.items():
            sequence = kept.get(name)
            if sequence is not None and count == 1 and not sequence.scored:
                request, ends, length, held, _ = sequence
                ids = sampled[places[name]]
                tokens = request._all_token_ids
                after = len(tokens) + 1
                if (
                    len(ids) == 1
                    and request.status is running
                    and ids[0] not in ends
                    and after < length
                    and not getattr(request, stale)
                ):
                    tokens.append(ids[0])
                    request._output_token_ids.append(ids[0])
                    request.num_in_flight_tokens -= 1
                    if request.num_output_placeholders:  # 0 where steps do not overlap
                        request.num_output_placeholders -= 1
                    held.append(ids[0])
                    if files and after % block == 0:
                        request.update_block_hashes()
                    continue
            left[name] = count
        return left

    def _told(self, outputs: Any) -> Any:
        """Put the tokens that were held back before those that are told."""
        for client in outputs.values():
            for output in client.outputs:
                sequence = self._kept.get(output.request_id)
                if sequence is None:
                    continue
                if sequence.tokens:
                    output.new_token_ids = sequence.tokens + output.new_token_ids
                    sequence.tokens.clear()
                if output.finish_reason is not None:
                    del self._kept[output.request_id]
        return outputs


def special(scheduler: Any) -> bool:
    """Whether more belongs to a step of this scheduler than its sequences' tokens and blocks."""
    return bool(
        scheduler.connector is not None
        or scheduler.ec_connector is not None
        or scheduler.lora_config
        or scheduler.use_pp
        or scheduler.num_spec_tokens
        or scheduler.num_sampled_tokens_per_step != 1
        or scheduler.needs_kv_cache_zeroing
        or scheduler.kv_cache_manager.watermark_blocks
        or scheduler.scheduler_config.long_prefill_token_threshold
        or scheduler.scheduler_config.policy != "fcfs"
        or getattr(scheduler, "enable_return_routed_experts", False)
        or getattr(scheduler, "aux_output_connector", None) is not None
    )
