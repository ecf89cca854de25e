"""vLLM inside the trainer's process: set up as the recipe says, asked for whole groups, given weights by its reload.

TRL makes this engine with fixed settings, asks it for one completion at a time, takes log-probabilities out of an
object for every token, and writes parameters into its model one by one. Here its `VLLMGeneration` stays in charge of
sleeping, of tensor parallelism and of when weights are synchronised; what it calls is replaced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from accelerate.utils.other import get_free_port
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer

from pipeline.rollout.base import derived_seed
from pipeline.rollout.scores import Scores
from pipeline.rollout.steps import PlainSteps
from pipeline.rollout.weights import keep_weights_loadable, load_weights, official_weights

if TYPE_CHECKING:
    from pipeline.schema.efficiency import Efficiency

log = logging.getLogger(__name__)

DIFFERENCE = "sampling/sampling_logp_difference/mean"
"""TRL's metric: mean |log-probability in the engine - log-probability in the trainer| of sampled tokens."""
DRIFT_STEPS = 5
"""Steps that make the level at the start, and the level now."""
DRIFT_FACTOR = 3.0
"""How much larger than at the start the difference may get: a policy that sharpens moves it by less."""
DRIFT_FLOOR = 0.02
"""A difference below this, in nats, is rounding: bf16 against fp32 makes 0.01 to 0.04."""


class Colocated:
    """Mixin for TRL's GRPO trainer; the switches are `efficiency.reload_weights` and `efficiency.whole_groups`.

    Args:
        engine_options: further arguments of `vllm.LLM`, as `rollout.engine_options` has them.
    """

    if TYPE_CHECKING:
        efficiency: Efficiency

    def __init__(self, *args: Any, engine_options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self.drift = Drift()
        arguments = kwargs["args"]
        correction = arguments.vllm_importance_sampling_correction or arguments.off_policy_mask_threshold is not None

        def generation(**settings: Any) -> Generation:
            dtype = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
            options = {"dtype": dtype, **(engine_options or {})}
            return Generation(arguments.seed, options, self.efficiency, correction, **settings)

        with replaced(grpo_trainer, "VLLMGeneration", generation):
            super().__init__(*args, **kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        completion_ids, logprobs = super()._generate_single_turn(*args, **kwargs)  # type: ignore[misc]
        engine = getattr(getattr(self, "vllm_generation", None), "llm", None)
        return completion_ids, engine.take() if isinstance(engine, Groups) else logprobs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; and warn when engine and trainer no longer agree on what was sampled."""
        values = self._metrics["train"].get(DIFFERENCE, [])  # type: ignore[attr-defined]
        if values and (warning := self.drift.add(fmean(values))) is not None:
            log.warning("%s", warning)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class Generation(vllm_generation.VLLMGeneration):  # type: ignore[misc]
    """TRL's way to vLLM, with an engine of ours where that engine is in this process.

    Args:
        seed: the stage's seed; every engine has one of its own that follows from it.
        options: further arguments of `vllm.LLM`.
        switches: what is replaced.
        correction: whether something needs the log-probabilities of sampled tokens.
        settings: TRL's arguments.
    """

    def __init__(
        self, seed: int, options: Mapping[str, Any], switches: Efficiency, correction: bool, **settings: Any
    ) -> None:
        self.seed, self.options, self.switches, self.correction = seed, options, switches, correction
        super().__init__(**settings)

    def _init_vllm(self) -> None:
        if self.mode != "colocate":
            super()._init_vllm()
            return
        index = self.accelerator.process_index // self.tensor_parallel_size
        ours = {**self.options, "seed": derived_seed(self.seed, "engine", index)}
        # TRL cuts the answers of a tensor-parallel group into those of its processes, and so has to see all of them.
        whole_groups = self.switches.whole_groups and self.tensor_parallel_size == 1
        make = vllm_generation.LLM

        def engine(**settings: Any) -> Any:
            llm = make(**{**settings, **ours})
            steps = PlainSteps(llm) if self.switches.plain_steps else None
            return Groups(llm, steps) if whole_groups else llm

        if whole_groups and not self.correction:
            self.logprobs = None  # TRL asks for them and throws them away; vLLM is faster without them
        if self.switches.reload_weights:
            keep_weights_loadable()
        if self.accelerator.num_processes == 1:
            # TRL takes 29500 if it is free now; vLLM listens later, and so would a run that starts meanwhile.
            os.environ.setdefault("MASTER_PORT", str(get_free_port()))
        with replaced(vllm_generation, "LLM", engine):
            super()._init_vllm()

    def sync_weights(self) -> None:
        """Give the engine the policy's weights. Adapters, FSDP1 and DeepSpeed's third stage stay with TRL."""
        by_trl = self._dist.fsdp_version == 1 or is_peft_model(self.model) or self._dist.is_zero3
        if self.mode != "colocate" or not self.switches.reload_weights or by_trl:
            super().sync_weights()
            return
        if self.enable_sleep_mode:
            vllm_generation.empty_cache()
            self.llm.wake_up(tags=["weights"])
            self._llm_weights_sleeping = False
        # Whole parameters are cast while they are copied; shards before they are gathered, which halves what is sent.
        dtype = self.llm.llm_engine.model_config.dtype if self._dist.is_fsdp else None
        load_weights(self.llm, official_weights(self.model, dtype))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's `generate`; where `Groups` keeps the log-probabilities, an empty list stands in for them."""
        prompt_ids, completion_ids, logprobs, token_ids = super().generate(*args, **kwargs)
        return prompt_ids, completion_ids, [] if logprobs is None else logprobs, token_ids


class Groups:
    """A `vllm.LLM` that samples the rollouts of a prompt as one request, and gives their log-probabilities as lists.

    TRL repeats a prompt for each rollout and wants one completion of each. vLLM then does everything that belongs to a
    request (hashing the prompt, scheduling, decoding text token by token) once for each rollout.
    """

    def __init__(self, llm: Any, steps: PlainSteps | None = None) -> None:
        self.llm, self.scores = llm, Scores(llm, steps)
        self.taken: list[list[float]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llm, name)

    def generate(self, prompts: Sequence[Mapping[str, Any]], sampling_params: Any, use_tqdm: bool) -> list[Any]:
        """What `vllm.LLM.generate` gives for these prompts, those next to each other that are equal as one entry.

        The completions, one after another, are those of the prompts. They carry no log-probabilities: see `take`.
        """
        groups = [list(group) for _, group in groupby(prompts)]
        with self.scores:
            outputs = self.llm.generate(
                [group[0] for group in groups],
                sampling_params=[_for_group(sampling_params, len(group)) for group in groups],
                use_tqdm=use_tqdm,
            )
        samples = [sample for output in outputs for sample in output.outputs]
        wanted = sampling_params.logprobs is not None
        self.taken = self.scores.of([sample.token_ids for sample in samples]) if wanted else None
        for sample in samples:
            sample.logprobs = None
        return list(outputs)

    def take(self) -> list[list[float]] | None:
        """Log-probabilities of the tokens sampled last, a list a completion; `None` if they were not asked for."""
        taken, self.taken = self.taken, None
        return taken


def _for_group(params: Any, n: int) -> Any:
    params = params.clone()
    params.n, params.flat_logprobs = n, True
    params.detokenize = bool(params.stop)  # stop words are looked for in text
    return params


class Drift:
    """Watches the difference between engine and trainer, which a faulty weight sync lets grow."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: list[float] = []

    def add(self, difference: float) -> str | None:
        """Take the mean difference of a step, in nats; returns a warning if it has drifted off, once in a while."""
        if len(self.first) < DRIFT_STEPS:
            self.first.append(difference)
            return None
        self.last.append(difference)
        if len(self.last) < DRIFT_STEPS:
            return None
        start, now = median(self.first), median(self.last)  # one bad step is none
        self.last = []
        if now <= max(DRIFT_FACTOR * start, DRIFT_FLOOR):
            return None
        return (
            f"log-probabilities of sampled tokens differ by {now:.3g} between vLLM and the trainer, by {start:.3g} at"
            " the start: the engine may sample with stale or rounded weights (rollout.engine_options.dtype,"
            " efficiency.reload_weights)"
        )


@contextmanager
def replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while: TRL offers no other way to hand it another engine."""
    original = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, original)
