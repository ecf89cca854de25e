"""Held-out scores while a stage trains: the model in training answers problems, and its best weights are kept.

What was seen is part of the trainer's log, and so of every checkpoint: a stage that was killed goes on with the looks
of the checkpoint that it resumes from. Whether a look is the best so far, and whether training ends, follows from them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.prompts.rendering import Prompt, Renderer
from pipeline.prompts.templates import encode
from pipeline.records import kept
from pipeline.rollout.base import Rollout, Sampling, derived_seed
from pipeline.rollout.context_limit import ContextLimit, context_of_config
from pipeline.sampling.sampler import judged_groups
from pipeline.sampling.scores import Labels, UnjudgedError, same_spelling, score
from pipeline.schema.pieces import RewardSpec
from pipeline.tasks.grading import ACCURACY, accuracy_options, reward_part, same_answers
from pipeline.tasks.resolve import Resolved, problem_rows, resolve
from pipeline.training import checkpoints, saving
from pipeline.training.checkpoints import BEST, MARK
from pipeline.training.held_out import live
from pipeline.training.held_out.fields import MAX_TOKENS, WatchSpec
from pipeline.training.parallel.collectives import by_first
from rewards import Composite

log = logging.getLogger(__name__)

PREFIX = "watch/"
"""Begins the names of what is logged: `watch/gsm8k/test/pass@1`."""
LABELS = Labels(ACCURACY, "language")
Scores = dict[str, dict[str, Any]]
"""Task -> what `pipeline.sampling.scores.score` says."""


class Problems:
    """The problems of a watch, rendered once; the process that is first among several judges the answers.

    Args:
        spec: the recipe's.
        context: the stage.
        trainer: whose model answers.

    Raises:
        TaskError: a task has no problems.
        TemplateError: the tokenizer has no chat template.
        RolloutError: no prompt leaves room for an answer.
    """

    def __init__(self, spec: WatchSpec, context: StageContext[Any], trainer: Any) -> None:
        self.spec, self.context, self.trainer, self.tokenizer = spec, context, trainer, trainer.processing_class
        self.first: bool = trainer.is_world_process_zero()
        rollout = getattr(context.config, "rollout", None)
        given = {} if rollout is None else rollout.engine_options
        options = {"max_model_len": getattr(trainer.args, "vllm_max_model_length", None), **given}
        longest = spec.max_tokens or (MAX_TOKENS if rollout is None else rollout.max_tokens)
        sampled = [] if rollout is None else rollout.stop
        self.sampling = Sampling(
            n=spec.samples,
            max_tokens=longest,
            temperature=spec.temperature,
            top_p=spec.top_p,
            stop=tuple(sampled if spec.stop is None else spec.stop),
        )
        self.seed = context.seed
        self.tasks = [resolve(task, context.tasks, context.base) for task in spec.tasks]
        self.same = {task.label: same_answers(task.task, context.base) or same_spelling for task in self.tasks}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.prompts: dict[str, list[Prompt]] = {}
        policy = trainer.accelerator.unwrap_model(trainer.model)
        limit = ContextLimit(context_of_config(policy.config, options), longest, "filter")
        renderer = Renderer(self.tokenizer)
        for task in self.tasks:
            self._add(task, renderer, limit)
        self.judge: Composite | None = None
        if self.first:
            accuracy = accuracy_options(self.tasks, context.base)
            self.judge = Composite([reward_part(RewardSpec(use=ACCURACY), accuracy)], context.base)
            self.judge.prepare()

    def _add(self, task: Resolved, renderer: Renderer, limit: ContextLimit) -> None:
        most, say = self.spec.problems, self.context.note if self.first else log.info
        every = problem_rows(task, self.context)[:most]
        prompts = renderer.prompts([row["prompt"] for row in every])
        kept = limit.fitting(self.tokenizer, [prompt.text for prompt in prompts], every)
        self.rows[task.label], self.prompts[task.label] = [every[at] for at in kept], [prompts[at] for at in kept]
        if most is not None and len(every) < most:
            say(f"watch: {task.label} has {len(every)} problems, not {most}: all are taken")
        if len(kept) < len(every):
            say(f"watch: {len(every) - len(kept)} of {len(every)} problems of {task.label} are too long")

    def scores(self) -> Scores:
        """Ask and judge, with the weights of the moment; the same in every process. Collective.

        Of a task of which no answer could be judged there is the number of these, `unjudged`, alone.

        Raises:
            UnjudgedError: that is so before the first step: its grader is broken.
        """
        answers = {task: self._answers(task) for task in self.rows}
        return by_first(self.trainer.accelerator, lambda: {task: self._score(task, answers[task]) for task in answers})

    def _answers(self, task: str) -> live.Groups:
        ids = encode(self.tokenizer, [prompt.text for prompt in self.prompts[task]])
        sampling = replace(self.sampling, seed=derived_seed(self.seed, "watch", task))
        if (sampler := getattr(self.trainer, "sampler", None)) is None:
            return live.generate(self.trainer, ids, sampling, self.spec.batch_size)
        groups: live.Groups = sampler.held_out(ids, sampling, self.spec.batch_size)
        return groups

    def _score(self, task: str, groups: Sequence[Sequence[Rollout]]) -> dict[str, Any]:
        assert self.judge is not None
        texts = [
            self.tokenizer.batch_decode([r.token_ids for r in group], skip_special_tokens=True) for group in groups
        ]
        told = [
            [replace(rollout, text=text) for rollout, text in zip(group, said, strict=True)]
            for group, said in zip(groups, texts, strict=True)
        ]
        judged = judged_groups(self.rows[task], self.prompts[task], told, self.judge)
        try:
            return score(judged, self.sampling.n, LABELS, self.same[task])
        except UnjudgedError as error:
            step = self.trainer.state.global_step
            if step == 0:
                raise UnjudgedError(f"watch: {task}: {error}") from error
            self.context.note(f"watch: {task} has no score after step {step}: {error}")
            return {"unjudged": sum(map(len, groups))}

    def close(self) -> None:
        """Stop the graders' processes."""
        if self.judge is not None:
            self.judge.close()


class Looks(TrainerCallback):  # type: ignore[misc]
    """Looks at the scores of a trainer's model, keeps its best weights, and ends training where the recipe says so.

    Args:
        trainer: has the mixin `Resumable`.
        context: the stage; its config has `watch`.
    """

    def __init__(self, trainer: Any, context: StageContext[Any]) -> None:
        config = context.config
        self.trainer, self.context, self.spec = trainer, context, config.watch
        self.first = trainer.is_world_process_zero()
        self.problems = Problems(self.spec, context, trainer)
        self.folder = context.scratch / BEST
        self.step: int | None = None
        self.kept_by = config.keep.score(self.spec) if config.keep is not None else None
        self.stopped_by = config.stop.score(self.spec) if config.stop is not None else None

    # ------------------------------------------------------------------------------------------------------- when

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the untrained model; of a resumed stage, forget what lies behind its checkpoint."""
        state.log_history = [entry for entry in state.log_history if not _is_look(entry) or self._due(entry["step"])]
        if self.first:
            for folder in checkpoints.by_step(self.folder):
                if checkpoints.step_of(folder) > state.global_step:
                    checkpoints.remove(folder)
        self.trainer.accelerator.wait_for_everyone()
        if state.global_step == 0:
            self._look()
        elif self._reason() is not None:  # killed between the step that ended training and the published model
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, if it is time."""
        if not self._due(state.global_step):
            return
        self._look()
        if (reason := self._reason()) is not None and state.global_step < state.max_steps:
            control.should_training_stop = True
            if self.first:
                self.context.note(f"training ends after step {state.global_step}: {reason}")

    def _due(self, step: int) -> bool:
        return bool(step % self.spec.every == 0 or step >= self.trainer.state.max_steps)

    # ------------------------------------------------------------------------------------------------------- what

    def _look(self) -> None:
        """Score the weights of the moment. Collective."""
        state = self.trainer.state
        self.trainer.check_weights()
        with live.untouched(), self.trainer.clock.part("watching"):
            scores = self.problems.scores()
        flat = {f"{PREFIX}{task}/{name}": value for task, entry in scores.items() for name, value in entry.items()}
        state.log_history.append({**flat, "step": state.global_step})
        if self.first:
            self.context.log(state.global_step, state.max_steps, **flat)
        if self.kept_by is not None and state.global_step and self._best(self._looks()) == state.global_step:
            self._keep(state.global_step)

    def _scored(self, by: tuple[str, str], looks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of the looks that have a score; one has none where its answers could not be judged."""
        return [entry for entry in looks if _name(*by) in entry]

    def _looks(self, history: Sequence[Mapping[str, Any]] | None = None) -> list[Mapping[str, Any]]:
        """The looks at trained weights so far, or those of a log."""
        entries = self.trainer.state.log_history if history is None else history
        return [entry for entry in entries if _is_look(entry) and entry["step"] > 0]

    def _best(self, looks: Sequence[Mapping[str, Any]]) -> int | None:
        """The step of the best of them, the earlier of two that are as good."""
        if self.kept_by is None:
            return None
        name = _name(*self.kept_by)
        scored = self._scored(self.kept_by, looks)
        best = max(scored, key=lambda entry: (entry[name], -entry["step"]), default=None)
        return None if best is None else int(best["step"])

    def _reason(self) -> str | None:
        """Why training is to end after the last look, in words."""
        if self.stopped_by is None:
            return None
        name = _name(*self.stopped_by)
        scored = self._scored(self.stopped_by, self._looks())
        why: str | None = self.context.config.stop.reason([entry[name] for entry in scored])
        return None if why is None else f"{'/'.join(self.stopped_by)}: {why}"

    # ----------------------------------------------------------------------------------------------- best weights

    def _keep(self, step: int) -> None:
        """Save the weights of the moment, and delete those that neither training nor a checkpoint needs any more."""
        folder = self.folder / f"{checkpoints.PREFIX}{step}"
        if self.first:
            checkpoints.remove(folder)
            durable.make_folder(folder)
        self.trainer.accelerator.wait_for_everyone()
        saving.save(self.trainer, folder, self.context)
        if self.first:
            durable.seal(folder, MARK)
            needed = {step, *self._needed()}
            needed |= {self._best([look for look in self._looks() if look["step"] % self.spec.every == 0])}
            for other in checkpoints.by_step(self.folder):
                if checkpoints.step_of(other) not in needed:
                    checkpoints.remove(other)
        self.trainer.accelerator.wait_for_everyone()

    def _needed(self) -> Iterator[int | None]:
        """The best step of each checkpoint that the stage may resume from, or go back to at an alarm."""
        folders = self.context.checkpoints, self.context.scratch / kept.KEPT
        for checkpoint in (each for folder in folders for each in checkpoints.by_step(folder)):
            path = checkpoint / TRAINER_STATE_NAME
            if path.is_file():
                yield self._best(self._looks(json.loads(path.read_text(encoding="utf-8"))["log_history"]))

    def hand_over(self, target: Path) -> bool:
        """Put the best weights where what is published is gathered; whether there are any that are whole."""
        if self.kept_by is None:
            return False
        self.step = by_first(self.trainer.accelerator, self._published)
        if self.step is not None and self.first:
            source = self.folder / f"{checkpoints.PREFIX}{self.step}"
            shutil.copytree(source, target, copy_function=saving.link, ignore=shutil.ignore_patterns(MARK))
        return self.step is not None

    def _published(self) -> int | None:
        """The best step whose weights are as they were saved."""
        if self.kept_by is None:
            return None
        name, looks = _name(*self.kept_by), self._scored(self.kept_by, self._looks())
        for entry in sorted(looks, key=lambda entry: (-entry[name], entry["step"])):
            folder = self.folder / f"{checkpoints.PREFIX}{entry['step']}"
            faults = durable.damage_of(folder, MARK)
            if not faults:
                return int(entry["step"])
            if entry["step"] == self._best(looks):
                self.context.note(f"the best weights, of step {entry['step']}, are lost: {durable.describe(faults)}")
        return None

    def close(self) -> None:
        """Stop the graders' processes."""
        self.problems.close()

    def summary(self) -> dict[str, Any]:
        """For the manifest: which weights are published, what they score, and why training ended early."""
        step = self.step or self.trainer.state.global_step
        entry: Mapping[str, Any] = next((look for look in reversed(self._looks()) if look["step"] == step), {})
        held_out: Scores = {}
        for name, value in entry.items():
            if name.startswith(PREFIX):
                task, _, what = name.removeprefix(PREFIX).rpartition("/")
                held_out.setdefault(task, {})[what] = value
        found: dict[str, Any] = {"published_step": step, "held_out": held_out}
        if self.kept_by is not None and _name(*self.kept_by) in entry:
            found |= {"kept_by": "/".join(self.kept_by), "best_score": entry[_name(*self.kept_by)]}
        reason = self._reason()
        if reason is not None and self.trainer.state.global_step < self.trainer.state.max_steps:
            found["stopped_early"] = reason
        return found


def _is_look(entry: Mapping[str, Any]) -> bool:
    return any(name.startswith(PREFIX) for name in entry)


def _name(task: str, what: str) -> str:
    return f"{PREFIX}{task}/{what}"
