"""Sampling and judging in chunks that survive an interruption; `evaluate` and `rejection_sample` share it.

Prompts are cut into chunks. Each chunk is sampled with a seed of its own, judged, and written to one file that appears
whole or not at all. A stage that was killed loses the chunk it was in; on resume it reads the others back, and because
seeds belong to chunks, the result is what it would have been without the interruption.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.context import Share
from pipeline.files import durable
from pipeline.files.rows import read_rows
from pipeline.prompts.rendering import Prompt, Renderer
from pipeline.prompts.templates import TemplateError, encode, set_chat_template
from pipeline.records.samples import Judgement, sample_row
from pipeline.rollout import TRANSFORMERS, VLLM_SERVER, engine_name, sampling
from pipeline.rollout.base import Finish, Rollout, RolloutError, derived_seed
from pipeline.rollout.context_limit import ContextLimit, context_of
from pipeline.rollout.speculative import facts
from pipeline.rollout.stops import FirstLook
from pipeline.sampling import chunks
from pipeline.sampling.engines import Engines
from pipeline.schema.pieces import RolloutSpec
from rewards import Batch, Composite
from rewards.function import guard_infra
from rewards.verdict import PREFILL, TRUNCATED, Verdict

logger = logging.getLogger(__name__)

CHUNK_SEQUENCES: Mapping[str, int] = {TRANSFORMERS: 512, VLLM_SERVER: 4096}
"""Sequences a chunk: some minutes of work, which is what an interruption may cost."""
CHUNK_SEQUENCES_VLLM = 16384
"""vLLM keeps hundreds of sequences going and idles at the end of each chunk, so its chunks are large."""
SECONDS_BETWEEN_REPORTS = 1.0

Report = Callable[[int, int], None]
"""Called with (sequences done, sequences in all)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged completion.

    Attributes:
        completion: what the model wrote, as text.
        tokens: sampled tokens.
        finish: why it ended.
        judgements: by the label of the reward; a reward that does not apply to the row is missing.
    """

    completion: str
    tokens: int
    finish: str
    judgements: Mapping[str, Judgement]

    @property
    def truncated(self) -> bool:
        """Whether it reached the longest allowed length."""
        return self.finish == Finish.LENGTH.value


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt row.

    Attributes:
        row: the prompt row (see `pipeline.tasks.resolve`).
        prompt: its rendered text, as the model saw it.
        samples: in the order of sampling.
        begun: what of the prompt the assistant is made to begin with.
    """

    row: Mapping[str, Any]
    prompt: str
    samples: tuple[Sample, ...]
    begun: str = ""


class Sampler:
    """Samples and judges with one model, which is loaded when the first chunk needs it.

    Args:
        model: folder or hub id.
        rollout: how to sample.
        n: samples a prompt.
        seed: seed of everything.
        scratch: folder for finished chunks.
        chat_template: chat template to use instead of the tokenizer's own.
        template_kwargs, prefill: see `pipeline.prompts.rendering.Renderer`.
        engines: what opens the engine, if other samplers use it before or after this one.
        share: which chunks are sampled here, and which by other hosts, into the same folder: those of its own number,
            going round. Nothing of what is sampled depends on it.

    Attributes:
        left_out: rows so far that did not fit into the model's context.
        seconds: spent on sampling so far.

    Raises:
        RolloutError: completions could be longer than the model's context.
        TemplateError: the chat template does not exist, or does not fit the model.
    """

    def __init__(
        self,
        model: str,
        rollout: RolloutSpec,
        n: int,
        seed: int,
        scratch: Path,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        prefill: str | None = None,
        engines: Engines | None = None,
        share: Share = Share(),
    ) -> None:
        from transformers import AutoTokenizer

        self.model, self.rollout, self.n, self.seed, self.scratch = model, rollout, n, seed, scratch
        self.engine_name = engine_name(rollout)
        self.tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        if chat_template is not None:
            ends = self.tokenizer.eos_token
            set_chat_template(self.tokenizer, chat_template)
            if self.tokenizer.eos_token != ends:
                raise TemplateError(
                    f"chat template {chat_template!r} ends a turn with {self.tokenizer.eos_token}, but {model} stops "
                    f"at {ends}: import the model with that chat template instead"
                )
        self.renderer = Renderer(self.tokenizer, template_kwargs, prefill)
        self.limit = ContextLimit(context_of(model, rollout.engine_options), rollout.max_tokens, rollout.too_long)
        self.limit.check()
        self._engines, self.share = engines or Engines(rollout, seed), share
        self.speculation: dict[str, float] = {}
        self.left_out = 0
        self.seconds = 0.0
        self._first_look = FirstLook(self.tokenizer.eos_token)

    def groups(
        self,
        rows: Sequence[Mapping[str, Any]],
        judge: Composite | None,
        label: str,
        report: Report | None = None,
        ahead: bool = True,
    ) -> Iterator[Group]:
        """The judged samples of every row that fits into the model's context, in order.

        Args:
            rows: prompt rows.
            judge: the rewards that judge each sample; none do if not given.
            label: names the chunks on disk and separates their seeds from those of other calls.
            report: told about progress, about once a second.
            ahead: whether the next chunk may be sampled while one is judged; not for who may stop early. An engine
                in this very process never does so: its random numbers are those of a judge's model, too.

        Raises:
            RewardInfraError: too many samples could not be judged.
            RolloutError: the engine failed, or gave up on a completion; or a row does not fit and shall be an error.
            TemplateError: the tokenizer has no chat template.
        """
        every, rows = rows, self.fitting(rows)
        self.left_out += len(every) - len(rows)
        sequences = CHUNK_SEQUENCES.get(self.engine_name, CHUNK_SEQUENCES_VLLM)
        size = max(1, sequences // self.n)
        tell = _throttled(report)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        prompts = [self.renderer.prompts([row["prompt"] for row in part]) for part in parts]

        def sample(number: int) -> list[list[Rollout]]:
            seed, done = derived_seed(self.seed, label, number), number * size * self.n
            return self._rollouts(prompts[number], seed, lambda step, _: tell(done + step, len(rows) * self.n))

        def judged(number: int, rollouts: list[list[Rollout]]) -> Iterator[dict[str, Any]]:
            return _judged(parts[number], prompts[number], rollouts, judge)

        folder = self.scratch / durable.file_name(label)
        elsewhere = self.rollout.process is not None or self.engine_name == VLLM_SERVER
        made = chunks.files(len(parts), folder, self.share, sample, judged, ahead and elsewhere)
        for part, texts, path in zip(parts, prompts, made, strict=True):
            for row, prompt, (_, stored) in zip(part, texts, read_rows(path), strict=True):
                yield Group(row, prompt.text, tuple(map(_sample, stored["samples"])), prompt.begun)
        if report is not None:
            report(len(rows) * self.n, len(rows) * self.n)

    def fitting(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows whose prompts leave room for a completion in the model's context; nothing is sampled for it.

        Raises:
            RolloutError: a prompt does not, and shall be an error.
            TemplateError: the chat template cannot take a prompt, or the tokenizer has none.
        """
        texts = [prompt.text for prompt in self.renderer.prompts([row["prompt"] for row in rows])]
        return [rows[at] for at in self.limit.fitting(self.tokenizer, texts, rows)]

    def close(self) -> None:
        """Free the model, if it was loaded."""
        self._engines.close()

    def _rollouts(self, prompts: Sequence[Prompt], seed: int, progress: Report) -> list[list[Rollout]]:
        engine = self._engines.of(self.model)
        ids = encode(self.tokenizer, [prompt.text for prompt in prompts])
        started = time.perf_counter()
        groups = engine.generate(ids, sampling(self.rollout, self.n, seed), progress)
        self.seconds += time.perf_counter() - started
        self.speculation = facts(engine.speculation)
        cut = [rollout.finish is Finish.LENGTH for group in groups for rollout in group]
        self._first_look.look(sum(cut) / len(cut), len(cut), self.rollout.max_tokens)
        if aborted := sum(rollout.finish is Finish.ABORT for group in groups for rollout in group):
            raise RolloutError(f"{self.engine_name} gave up on {aborted} completions of {self.model}")
        return groups


def _judged(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Rollout]],
    judge: Composite | None,
) -> Iterator[dict[str, Any]]:
    """One line a prompt, with its judged samples."""
    flat = [
        (row, prompt, rollout) for row, prompt, group in zip(rows, prompts, groups, strict=True) for rollout in group
    ]
    batch = Batch(
        [prompt.text for _, prompt, _ in flat],
        [rollout.text for _, _, rollout in flat],
        [rollout.token_ids for _, _, rollout in flat],
        {
            **{name: [row[name] for row, _, _ in flat] for name in rows[0] if name != "prompt"},
            PREFILL: [prompt.begun for _, prompt, _ in flat],
            TRUNCATED: [rollout.finish is Finish.LENGTH for _, _, rollout in flat],
        },
    )
    verdicts = {} if judge is None else _verdicts(judge, batch)
    judged = iter(range(len(flat)))
    for group in groups:
        samples = [
            Sample(
                rollout.text,
                len(rollout.token_ids),
                rollout.finish.value,
                {label: Judgement.of(verdict) for label, column in verdicts.items() if (verdict := column[at])},
            )
            for rollout, at in zip(group, judged, strict=False)
        ]
        yield {"samples": [asdict(sample) for sample in samples]}


def _verdicts(judge: Composite, batch: Batch) -> Mapping[str, Sequence[Verdict | None]]:
    verdicts = judge.verdicts(batch)
    for part in judge.parts:
        guard_infra(part.label, [verdict for verdict in verdicts[part.label] if verdict is not None], judge.max_infra)
    return verdicts


def judged_groups(
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    rollouts: Sequence[Sequence[Rollout]],
    judge: Composite,
) -> list[Group]:
    """Rollouts that were sampled elsewhere, judged; one group a row.

    Raises:
        RewardInfraError: too many samples could not be judged.
    """
    stored = _judged(rows, prompts, rollouts, judge)
    return [
        Group(row, prompt.text, tuple(map(_sample, group["samples"])), prompt.begun)
        for row, prompt, group in zip(rows, prompts, stored, strict=True)
    ]


def _sample(stored: Mapping[str, Any]) -> Sample:
    judgements = {label: Judgement(**judgement) for label, judgement in stored["judgements"].items()}
    return Sample(stored["completion"], stored["tokens"], stored["finish"], judgements)


def _throttled(report: Report | None) -> Report:
    last = -SECONDS_BETWEEN_REPORTS

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if report is not None and now - last >= SECONDS_BETWEEN_REPORTS:
            last = now
            report(done, total)

    return tell


def record(group: Group, sample: Sample, label: str, **more: Any) -> dict[str, Any]:
    """A line of `samples.jsonl`: the sample with the judgement of one reward, and the scores of all."""
    parts = {label: judgement.score for label, judgement in sample.judgements.items()}
    judgement = sample.judgements.get(label)
    return sample_row(group.row, sample.completion, judgement, sample.tokens, sample.finish, parts, group.begun, **more)
