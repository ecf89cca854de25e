"""Rollouts by transformers' own `generate`: slow, but runs every model on every device.

Prompts are padded on the left, sorted by length so that little of a batch is padding, and sampled `batch_size`
sequences at a time with a KV cache. Defaults that a model's folder may bring along (a hidden temperature, top-p or
repetition penalty in `generation_config.json`) are cleared: what `Sampling` says is all that happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.modeling import load
from pipeline.rollout.base import Finish, Progress, Rollout, RolloutError, Sampling, Tick, Updatable, spans
from pipeline.rollout.speculative import Assistant, check_blocks
from pipeline.rollout.stops import Stops
from pipeline.schema.pieces import SpeculativeSpec

if TYPE_CHECKING:
    from model.speculative import Speculation


class TransformersEngine(Updatable):
    """A model held by transformers. See `pipeline.rollout.base.Engine`.

    Args:
        path: folder or hub id.
        batch_size: sequences at a time.
        logprobs: whether rollouts carry the log-probabilities of their tokens (one more forward pass each).
        tempered: whether those log-probabilities are at the temperature of sampling instead of 1.
        speculative: whether and how tokens are drafted; a draft model drafts for one sequence at a time.

    On a CPU the model is computed in float32, elsewhere in the type of its weights.
    """

    no_gradient: Callable[[], AbstractContextManager[Any]] = torch.inference_mode
    assistant: Assistant | None = None
    speculation: Speculation | None = None

    def __init__(
        self,
        path: str,
        batch_size: int = 64,
        logprobs: bool = False,
        tempered: bool = False,
        speculative: SpeculativeSpec | None = None,
    ) -> None:
        on_gpu = torch.cuda.is_available()
        model = load(path, dtype="auto" if on_gpu else torch.float32).to("cuda" if on_gpu else "cpu").eval()
        self._take(model, AutoTokenizer.from_pretrained(path, trust_remote_code=False), batch_size)
        self.model.generation_config = GenerationConfig()
        self.logprobs, self.tempered = logprobs, tempered
        if speculative is not None and speculative.draft is None:
            check_blocks(self.model, path)
            self.drafting = {"use_mtp": True, "num_assistant_tokens": speculative.tokens}
        elif speculative is not None and speculative.draft is not None and speculative.tokens is not None:
            self.assistant, self.batch_size = Assistant(self.model, speculative.draft, speculative.tokens), 1

    @classmethod
    def of(cls, model: Any, tokenizer: Any, batch_size: int) -> Self:
        """An engine around a model that is loaded already; nothing of the model is changed.

        Args:
            model: on its device.
            tokenizer: its own.
            batch_size: sequences at a time.
        """
        engine = cls.__new__(cls)
        engine._take(model, tokenizer, batch_size)
        return engine

    def _take(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.device: torch.device = model.device
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.end_ids = end_token_ids(model.generation_config, tokenizer)
        self.stops = Stops(tokenizer)
        self.pad_id = int(self.end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self.logprobs = self.tempered = False
        self.drafting = dict[str, Any]()
        self.version = 0
        self._asked: dict[int, Generator[None, None, list[list[Rollout]]]] = {}

    def add(
        self, ticket: int, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Progress | None = None
    ) -> None:
        """See `Updatable`; requests are answered one after another."""
        stops = Stops.of(self.tokenizer, sampling.stop)
        self._asked[ticket] = self._sampled(prompts, sampling, stops, progress)

    def step(self) -> dict[int, list[list[Rollout]]]:
        """The next `batch_size` sequences; see `Updatable`."""
        for ticket, batches in self._asked.items():
            try:
                next(batches)
            except StopIteration as end:
                del self._asked[ticket]
                return {ticket: end.value}
            break
        return {}

    def give_up(self) -> None:
        """See `Updatable`."""
        self._asked.clear()

    def _sampled(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, stops: Stops, progress: Progress | None
    ) -> Generator[None, None, list[list[Rollout]]]:
        """The groups of a request; stops after each batch but the last."""
        order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
        sequences = [index for index in order for _ in range(sampling.n)]
        groups: list[list[Rollout]] = [[] for _ in prompts]
        open_groups = Counter(sequences)
        random = RandomState(sampling.seed, self.device)
        for start in range(0, len(sequences), self.batch_size):
            if start:
                yield
            self.stops = stops
            chunk = sequences[start : start + self.batch_size]
            watch = _Watch(self.tick, self.end_ids, chunk, open_groups, sampling.enough, stops)
            with random.in_use(), self.no_gradient():
                rollouts = list(self._batch([prompts[i] for i in chunk], sampling, watch))
            for index, rollout in zip(chunk, rollouts, strict=True):
                groups[index].append(rollout)
                open_groups[index] -= rollout.finish is not Finish.ABORT
            if progress is not None:
                progress(start + len(chunk), len(sequences))
            if sampling.enough is not None and sum(not left for left in open_groups.values()) >= sampling.enough:
                break
        never_begun = Rollout("", (), Finish.ABORT, () if self.logprobs else None)
        return [group + [never_begun] * (sampling.n - len(group)) for group in groups]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int = 0) -> None:
        """Replace all weights, under their official names; see `Updatable.load_weights`."""
        copies = {
            name: tensor.clone() for name, tensor in weights
        }  # a model may be made of the very tensors it is given
        config, dtype = self.model.config, self.model.dtype
        model, report = type(self.model).from_pretrained(
            None, config=config, state_dict=copies, dtype=dtype, output_loading_info=True
        )
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[fault]:
                raise RolloutError(f"the new weights have {fault.replace('_', ' ')}: {sorted(map(str, report[fault]))}")
        self.model = model.to(self.device).eval()
        self.model.generation_config = GenerationConfig()
        self.version = version
        if self.assistant is not None:
            self.assistant.watch(self.model)

    def close(self) -> None:
        """Free the model's memory."""
        del self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batch(self, prompts: Sequence[Sequence[int]], sampling: Sampling, watch: _Watch) -> Iterator[Rollout]:
        width = watch.width = max(len(prompt) for prompt in prompts)
        ids_BT = torch.tensor([[self.pad_id] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        out_BT = self.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            generation_config=self._config(sampling),
            stopping_criteria=StoppingCriteriaList([watch]),
            **self._more(),
        )
        rows = [self._cut(row, sampling.max_tokens) for row in out_BT[:, width:].tolist()]
        self._note_speculation(sum(len(ids) for ids, _ in rows))
        texts = self.tokenizer.batch_decode([ids for ids, _ in rows], skip_special_tokens=True)
        sampled = [ids for ids, _ in rows]
        logprobs = self._logprobs(prompts, sampled, sampling) if self.logprobs else [None] * len(rows)
        for (ids, finish), text, values in zip(rows, texts, logprobs, strict=True):
            yield Rollout(text, tuple(ids), finish, values, spans(self.version, len(ids)))

    def _more(self) -> dict[str, Any]:
        """Further arguments of the model's `generate`."""
        return {} if self.assistant is None else {"assistant_model": self.assistant.model}

    def _config(self, sampling: Sampling) -> GenerationConfig:
        sampled: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            sampled = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p or None,
            }
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=[*self.end_ids, *self.stops.ids],
            pad_token_id=self.pad_id,
            **sampled,
            **self.drafting,
        )

    def _note_speculation(self, tokens: int) -> None:
        """Take over what the last batch, of this many sampled tokens, told of its drafts."""
        if self.drafting:
            self.speculation = self.model.speculation
        elif self.assistant is not None:
            told = self.assistant.told(tokens)
            self.speculation = told if self.speculation is None else self.speculation + told

    def _cut(self, ids: list[int], longest: int) -> tuple[list[int], Finish]:
        """What was sampled: up to and with the first end token, or what it was to stop at; the rest is padding."""
        end = next((at + 1 for at, token in enumerate(ids) if token in self.end_ids), None)
        stop = self.stops.length(ids[:end])
        if end is not None or stop is not None:
            return ids[: end if stop is None else stop], Finish.STOP
        return ids, Finish.LENGTH if len(ids) == longest else Finish.ABORT

    def _logprobs(
        self, prompts: Sequence[Sequence[int]], sampled: Sequence[list[int]], sampling: Sampling
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of sampled tokens, one sequence at a time: a batch of logits can be larger than a model."""
        as_sampled = self.tempered and sampling.temperature > 0
        temperature, cuts = (sampling.temperature, truncations(sampling)) if as_sampled else (1.0, [])
        result: list[tuple[float, ...]] = []
        for prompt, ids in zip(prompts, sampled, strict=True):
            self.tick()
            ids_1T = torch.tensor([[*prompt, *ids]], device=self.device)
            logits_TV = self.model(ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / temperature
            chosen_T1 = ids_1T[0, len(prompt) :, None]
            cut_TV = logits_TV
            for cut in cuts:
                cut_TV = cut(ids_1T, cut_TV)
            # What was sampled stays: rounded another way than in its batch, it may lie behind the edge of a truncation.
            cut_TV = cut_TV.scatter(-1, chosen_T1, logits_TV.gather(-1, chosen_T1))
            result.append(tuple(cut_TV.log_softmax(-1).gather(-1, chosen_T1)[:, 0].tolist()))
        return result


class RandomState:
    """The state of torch's random generators, for work that is interrupted.

    Args:
        seed: that it begins with.
        device: whose generator is used, beside the processor's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._devices = seed, [device] if device.type == "cuda" else []
        self._states: list[torch.Tensor] | None = None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Go on where it was left; the generators are as they were before, afterwards."""
        with torch.random.fork_rng(devices=self._devices):
            if self._states is None:
                torch.manual_seed(self._seed)
            else:
                torch.set_rng_state(self._states[0])
                for device, state in zip(self._devices, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield
            self._states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]


class AtStops(StoppingCriteria):  # type: ignore[misc]
    """Ends a sequence where it has come to a stop.

    Args:
        stops: what to stop at.
        width: tokens of the prompts, with their padding.
    """

    def __init__(self, stops: Stops, width: int) -> None:
        self.stops, self.width = stops, width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if not self.stops:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        sampled = input_ids[:, max(self.width, input_ids.size(1) - self.stops.reach) :].tolist()
        return torch.tensor([self.stops.ended(ids) for ids in sampled], device=input_ids.device)


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Ticks at every step of a batch, and ends it once enough groups are complete.

    Args:
        tick: see `Updatable`.
        end_ids: tokens that end a completion.
        chunk: the group of each sequence of the batch.
        open_groups: group -> its sequences that had not finished before this batch.
        enough: see `Sampling`.
        stops: what ends a completion beside these tokens.
    """

    width = 0
    """Tokens of the prompts, with their padding."""

    def __init__(
        self,
        tick: Tick,
        end_ids: Sequence[int],
        chunk: Sequence[int],
        open_groups: Counter[int],
        enough: int | None,
        stops: Stops,
    ) -> None:
        self.tick, self.end_ids, self.chunk, self.enough, self.stops = tick, end_ids, chunk, enough, stops
        self.open_groups = open_groups.copy()
        self.finished: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.tick()
        if self.enough is None and not self.stops:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        stopped = AtStops(self.stops, self.width)(input_ids, scores).tolist()
        if self.enough is not None:
            for row, token in enumerate(input_ids[:, -1].tolist()):
                if (token in self.end_ids or stopped[row]) and row not in self.finished:
                    self.finished.add(row)
                    self.open_groups[self.chunk[row]] -= 1
            if sum(not left for left in self.open_groups.values()) >= self.enough:
                stopped = [True] * len(input_ids)
        return torch.tensor(stopped, device=input_ids.device)


def truncations(sampling: Sampling) -> list[LogitsProcessor]:
    """What sampling leaves out, in transformers' order."""
    cuts: list[LogitsProcessor] = []
    cuts += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k > 0 else []
    cuts += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    cuts += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p > 0 else []
    return cuts


def end_token_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: those of the model's generation config, and the tokenizer's own.

    Raises:
        ValueError: there is none, so that no completion could ever end.
    """
    configured = generation_config.eos_token_id
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    if not ids:
        raise ValueError("neither the model's generation config nor its tokenizer names an end-of-sequence token")
    return sorted(set(ids))
