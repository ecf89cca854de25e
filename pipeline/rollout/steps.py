"""vLLM's bookkeeping of a decoding step, without what changes nothing in most of them.

A step of decoding adds one token to each sequence. vLLM's scheduler then goes through some twenty Python calls for each
of them: it looks for blocks where the last one has room, hashes blocks that are not full, and passes every token on to
a front end that wants the finished completion. With hundreds of sequences of a small model the GPU waits for that.

    PlainSteps(llm)                        # whose engine core runs in this process

From then on a token that does not end its sequence is written down, and handed on with the one that does; blocks are
hashed when they are full, and looked for and filed when the next one is begun. Everything else takes vLLM's own way:
prompts, speculation, preemption, structured output, stop words, log-probabilities that vLLM has to pass on (see
`scores`). Which tokens are sampled does not change.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, NamedTuple

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
    "logprobs",
)
"""What a step may bring besides tokens, in one vLLM or another; vLLM deals with such a step alone."""
STALE = ("num_stale_output_tokens", "async_tokens_to_discard")
"""How a request counts the tokens under way that it will not take, in vLLM 0.31 and in 0.26. One that counts them in
another way is of a vLLM that this was not written for, and is left to it."""


class Kept(NamedTuple):
    """A sequence that may be written down quickly.

    Attributes:
        request: vLLM's.
        ends: tokens that end it.
        length: tokens, its prompt's included, with which it ends in any case.
        tokens: those that its front end was not told of yet.
    """

    request: Any
    ends: frozenset[int]
    length: int
    tokens: list[int]


class PlainSteps:
    """Takes the plain part of each step out of the hands of an engine's scheduler, for as long as the engine lives.

    Models whose cache is not one group of blocks for full attention are left to vLLM, which the log tells.

    Attributes:
        on: whether what is asked for from now on is treated so.

    Args:
        llm: a `vllm.LLM` whose engine core runs in this process.
    """

    def __init__(self, llm: Any) -> None:
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
        from vllm.v1.request import RequestStatus

        self._scheduler = scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        self.on = True
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
            ends = frozenset({params.eos_token_id, *(params.stop_token_ids or ())})
            length = min(request.num_prompt_tokens + request.max_tokens, self._scheduler.max_model_len)
            self._kept[request.request_id] = Kept(request, ends, length, [])
        self._add(request)

    def _allocated(self, request: Any, num_new_tokens: int, *args: Any, **others: Any) -> Any:
        """vLLM's `allocate_slots`; a token whose predecessor is in the same block needs none."""
        begun = request.num_computed_tokens % self._block
        full = self._files and begun == self._block - 1  # with this token, and may be filed
        plain = request.request_id in self._kept and request.status is self._running
        if plain and num_new_tokens == 1 and begun and not full:
            return self._nothing
        return self._allocate(request, num_new_tokens, *args, **others)

    def _updated(self, scheduled: Any, output: Any) -> Any:
        """vLLM's `update_from_output`, which is told of the sequences that are more than one token longer."""
        if not output.sampled_token_ids or any(getattr(output, name, None) for name in PASSED_ON):
            return self._told(self._update(scheduled, output))
        left = copy.copy(scheduled)
        left.num_scheduled_tokens = self._written(scheduled.num_scheduled_tokens, output)
        return self._told(self._update(left, output))

    def _written(self, counts: dict[str, int], output: Any) -> dict[str, int]:
        """Write plain tokens down; returns the sequences that are left, and how many tokens of each were computed."""
        kept, places, sampled = self._kept, output.req_id_to_index, output.sampled_token_ids
        stale, running = self._stale, self._running
        block, files = self._block, self._files
        left = {}
        for name, count in counts.items():
            sequence = kept.get(name)
            if sequence is not None and count == 1:
                request, ends, length, held = sequence
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
