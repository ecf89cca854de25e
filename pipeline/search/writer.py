"""Answers written step by step: from where they broke off, and with an account of every token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipeline.context import StageContext
from pipeline.files.rows import read_rows
from pipeline.prompts.rendering import Prompt
from pipeline.prompts.templates import ChatTemplateName, encode
from pipeline.rollout import sampling
from pipeline.rollout.base import Finish, Rollout, RolloutError
from pipeline.rollout.stops import Stops
from pipeline.sampling import chunks
from pipeline.sampling.engines import Engines
from pipeline.sampling.sampler import Group, Sampler, judged_groups
from pipeline.schema.pieces import ModelRef, PromptedConfig, RolloutSpec
from pipeline.tasks.grading import ACCURACY
from rewards import Composite
from rewards.steps import STEP_END, STEP_TOKENS, StepRule

Row = Mapping[str, Any]
CHUNK_ANSWERS = 256
"""Answers that are worked on at a time: what an interruption may cost."""


class SteppedConfig(PromptedConfig):
    """Fields of the stages that work on the steps of an answer; see `PromptedConfig` for the others.

    Attributes:
        model: the model that answers.
        step_end: text at which a step of a thought ends; what follows a thought is one step.
        step_tokens: most tokens of a step of a thought.
        rollout: how to sample.
        chat_template: chat template to use instead of the tokenizer's own.
    """

    shared: ClassVar[bool] = True

    model: ModelRef
    step_end: Annotated[str, Field(min_length=1)] = STEP_END
    step_tokens: Annotated[int, Field(gt=0)] = STEP_TOKENS
    rollout: RolloutSpec = RolloutSpec()
    chat_template: ChatTemplateName | None = None

    @property
    def rule(self) -> StepRule:
        """How answers are cut into steps."""
        return StepRule(self.step_end, self.step_tokens)


class Writer:
    """Samples with one model, and counts what it samples.

    Args:
        context: a stage with a `SteppedConfig`.
        rows: prompt rows; those that do not fit into the model's context are left out.

    Attributes:
        rows: the others.
        limit: see `pipeline.rollout.context_limit`.
    """

    def __init__(self, context: StageContext[Any], rows: Sequence[Row]) -> None:
        config = context.config
        self._spec = context.rollout(config.rollout)
        self._engines, self._model = Engines(self._spec, context.seed), context.model_path(config.model)
        self._work = context.work
        self.rule: StepRule = config.rule
        self.sampler = Sampler(
            self._model,
            self._spec,
            1,
            context.seed,
            context.scratch,
            config.chat_template,
            config.chat_template_kwargs,
            config.prefill,
            self._engines,
        )
        self.rows = self.sampler.fitting(rows)
        self.left_out = self.sampler.limit.left_out(len(rows) - len(self.rows))
        self.most = self._spec.max_tokens

    @cached_property
    def stops(self) -> Stops:
        """What ends an answer beside the model's own end-of-sequence tokens."""
        return Stops.of(self.sampler.tokenizer, self._spec.stop)

    def prompts(self, rows: Sequence[Row]) -> list[Prompt]:
        """The rendered prompts of rows."""
        return self.sampler.renderer.prompts([row["prompt"] for row in rows])

    def ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Their token ids."""
        return encode(self.sampler.tokenizer, [prompt.text for prompt in prompts])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.sampler.tokenizer.decode(list(ids), skip_special_tokens=True))

    def steps(self, ids: Sequence[int]) -> list[list[int]]:
        """The token ids of each step of an answer."""
        return self.rule.cut(ids, self.decode)

    def answers(
        self, prompts: Sequence[Sequence[int]], begun: Sequence[Sequence[int]], n: int, seed: int
    ) -> list[list[Rollout]]:
        """Answers that begin so, to their ends: `n` for each.

        Args:
            prompts: token ids.
            begun: the tokens of each answer so far, fewer than `rollout.max_tokens`; the rollouts have them, too.
            n: how many.
            seed: of this call.
        """
        if not prompts:
            return []
        groups = self._sampled(prompts, begun, n, seed, self.most - min(map(len, begun)), ())
        return [[self._joined(head, rollout) for rollout in group] for head, group in zip(begun, groups, strict=True)]

    def next_steps(
        self, prompts: Sequence[Sequence[int]], begun: Sequence[Sequence[int]], n: int, seed: int
    ) -> list[list[tuple[Rollout, bool]]]:
        """What answers that begin so may go on with: `n` steps for each, without their beginnings, and whether that
        ends the answer."""
        groups = self._sampled(prompts, begun, n, seed, self.rule.tokens, (self.rule.end,))
        return [
            [(rollout, self._ends(head, rollout)) for rollout in group]
            for head, group in zip(begun, groups, strict=True)
        ]

    def close(self) -> None:
        """Free the model."""
        self._engines.close()

    def _sampled(
        self,
        prompts: Sequence[Sequence[int]],
        begun: Sequence[Sequence[int]],
        n: int,
        seed: int,
        tokens: int,
        stop: tuple[str, ...],
    ) -> list[list[Rollout]]:
        asked = sampling(self._spec, n, seed)
        asked = replace(asked, max_tokens=tokens, stop=(*asked.stop, *stop))
        texts = [[*prompt, *head] for prompt, head in zip(prompts, begun, strict=True)]
        engine, started = self._engines.of(self._model), time.perf_counter()
        groups = engine.generate(texts, asked)
        self._work.add(time.perf_counter() - started)
        if any(rollout.finish is Finish.ABORT for group in groups for rollout in group):
            raise RolloutError(f"the engine gave up on answers of {self._model}")
        return groups

    def _joined(self, head: Sequence[int], rollout: Rollout) -> Rollout:
        """A rollout with the beginning of its answer; together they are no longer than answers may be."""
        ids = (*head, *rollout.token_ids)[: self.most]
        cut = len(head) + len(rollout.token_ids) > self.most
        return Rollout(self.decode(ids), ids, Finish.LENGTH if cut else rollout.finish)

    def _ends(self, head: Sequence[int], rollout: Rollout) -> bool:
        if len(head) + len(rollout.token_ids) >= self.most or self.stops.ended(rollout.token_ids):
            return True
        return rollout.finish is Finish.STOP and self.rule.end not in rollout.text


def judged(
    rows: Sequence[Row], prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]], judge: Composite
) -> list[Group]:
    """The answers to some problems with the judgement of their task; those without an answer have no sample."""
    some = [at for at, group in enumerate(rollouts) if group]
    groups = (
        judged_groups([rows[at] for at in some], [prompts[at] for at in some], [rollouts[at] for at in some], judge)
        if some
        else []
    )
    found = dict(zip(some, groups, strict=True))
    return [found.get(at) or Group(rows[at], prompts[at].text, (), prompts[at].begun) for at in range(len(rows))]


def right(group: Group) -> list[bool | None]:
    """Which answers of a group are right; `None` for one that could not be judged."""
    judgements = [sample.judgements.get(ACCURACY) for sample in group.samples]
    return [None if one is None or one.score is None else one.correct for one in judgements]


def in_chunks(
    rows: Sequence[Row],
    size: int,
    context: StageContext[Any],
    work: Callable[[Sequence[Row], int], Sequence[Row]],
) -> Iterator[Row]:
    """What `work` makes of each chunk of rows, which survives an interruption. Hosts that share the stage take turns.

    Args:
        rows: prompt rows.
        size: of a chunk.
        context: the stage.
        work: gives rows for a chunk and its number.
    """
    folder = context.scratch / "samples" / context.name
    starts = range(0, len(rows), size)

    def worked(number: int) -> Sequence[Row]:
        return work(rows[starts[number] : starts[number] + size], number)

    made = chunks.files(len(starts), folder, context.share, worked, lambda _, made: made)
    for start, path in zip(starts, made, strict=True):
        context.log(min(start + size, len(rows)), len(rows))
        yield from (row for _, row in read_rows(path))
