"""The step of GRPO, top to bottom. Axes: see the package; equations: see `objective`.

A generation batch is sampled by one policy and trained on in micro-batches; `gradient_accumulation_steps` of these make
an optimizer step. A micro-batch goes through the model in passes of bounded size.

    generation batch: `generation_batch`, `scored`
      sample                 problems -> prompt ids (B, P), completion ids (B, C)        `sampler.batch`
      judge, in background   completions -> rewards (B, F)                               `_start_judging`
      score, no gradient     log π_old and log π_ref (B, C), where they are needed       `old_logprobs`, …
      compare within groups  rewards -> advantages (B,)                                  `objective.advantages`
      replace dead groups    if that is wished                                           `dynamic_sampling`
    micro-batch: `compute_loss`, rows drawn from the generation batch
      weigh tokens           ω (B, C), what each counts in the step's loss               `objective.token_weights`
      split                  rows -> passes, without those that teach nothing            `_passes`
    pass: `_pass_loss`
      score, with gradient   log π and entropy (B, C)                                    `logprobs.with_gradient`
      loss                   () and its backward pass                                    `objective.Objective.loss`

TRL's trainer is beneath: its models, its reference, its config, its metrics' names. Each of its hooks is overridden
once, here, and calls plain functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from pipeline.rollout.adapted import base_of
from pipeline.rollout.stops import FirstLook, Stops
from pipeline.schema.efficiency import STOCK, Efficiency, LengthChange, PoolSpec, drops
from pipeline.schema.mtp import MtpSpec
from pipeline.training import adapters, experts, fused, stopping, varlen
from pipeline.training.clock import Clock, shape_of
from pipeline.training.grpo import entropy, judging, logprobs, objective, pool, reporting
from pipeline.training.grpo.batch import Batch, Row, of_rows
from pipeline.training.grpo.drift import Drift
from pipeline.training.grpo.dynamic_sampling import DynamicSampling
from pipeline.training.grpo.micro_batches import FillWatch, passes_of
from pipeline.training.grpo.recorded import StepRecord
from pipeline.training.grpo.reference import load_reference, save_reference, sync_by_name
from pipeline.training.grpo.sampling import Problem, Sampled, Sampler, TrlSampler
from pipeline.training.grpo.schedule import check_cycle
from pipeline.training.health.thresholds import MISMATCH
from pipeline.training.parallel.collectives import summed
from pipeline.training.parallel.sharding import between_micro_batches
from pipeline.training.trainers.mtp import BlockTraining, completion_labels
from pipeline.training.trainers.resumable import Resumable
from rewards import Batch as Judged
from rewards.function import given


class GrpoTrainer(Resumable, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` with a step of its own, resumable to the bit on one device.

    Args:
        samples: where completions are written; the arguments that are not named here are TRL's.
        efficiency: how the work of a step is arranged.
        length_schedule: from which steps on completions may be longer.
        pool_spec: how long problems rest that teach nothing; see `pool`. Problems then have an `id`.
        mtp: how blocks of multi-token prediction follow the policy; they stay as they are if not given.
        sampler: makes the sampler of this trainer; TRL's own ways if not given.
        stop: texts and token ids that end a completion.

    Raises:
        ValueError: groups or checkpoints do not fit the generation batches, the synced reference model could not be
            restored from a checkpoint, or fused kernels do not fit the model.
        RuntimeError: fused kernels cannot run here.
    """

    batch_number: int | None = None
    micro_batches: Sequence[Batch] = ()

    def __init__(
        self,
        *args: Any,
        samples: judging.Samples,
        efficiency: Efficiency = STOCK,
        length_schedule: Sequence[LengthChange] = (),
        pool_spec: PoolSpec | None = None,
        mtp: MtpSpec | None = None,
        sampler: Callable[[Any], Sampler] = TrlSampler,
        stop: Sequence[str | int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.efficiency, self.length_schedule, self.samples = efficiency, length_schedule, samples
        self.cycle = check_cycle(vars(self.args) | {"generation_batch_size": None}, self.accelerator.num_processes)
        if self.args.sync_ref_model and self.is_deepspeed_enabled:
            raise ValueError("a synced reference model cannot be resumed under DeepSpeed: use FSDP, or beta: 0")
        if efficiency.drop_dead_groups is True and self.aux_loss_enabled:
            raise ValueError(
                "efficiency.drop_dead_groups: the model has a router loss; set trainer.router_aux_loss_coef: 0"
            )
        # The policy and its reference:
        for model in (self.model, *([] if self.ref_model is None else [self.ref_model])):
            plain = base_of(self.accelerator.unwrap_model(model))
            if efficiency.fused_kernels:
                fused.fuse(plain)
            if efficiency.packing:
                varlen.install(plain)
        sync_by_name(self)
        self.blocks = BlockTraining(self, mtp)
        # What is measured, watched and kept:
        self.group_watch, self.drift = judging.GroupWatch(), Drift()
        self.fill_watch = FillWatch(self.args.gradient_accumulation_steps, efficiency.tokens_per_pass)
        self.first_look = FirstLook(self._tokenizer.eos_token)
        self.recorded = StepRecord(self)
        self.clock = Clock(shape_of(base_of(self.accelerator.unwrap_model(self.model)).config))
        # Which problems come when, and where their rollouts come from:
        self.dynamic_sampling = DynamicSampling(self)  # refuses what it cannot do before an engine starts
        self.stops = Stops.of(self._tokenizer, stop)
        self.sampler = sampler(self)
        self.order = pool.order(self, pool_spec)
        # The loss:
        corrected = self.sampler.scored and self.args.vllm_importance_sampling_correction
        if corrected and self.loss_type == "vespo" and self.args.vllm_importance_sampling_mode.startswith("sequence"):
            raise ValueError("trainer.loss_type vespo needs vllm_importance_sampling_mode token_truncate or token_mask")
        self.objective = objective.Objective(self.args, corrected)
        if adapters.trained_by(self):
            adapters.warn_of_shards(self.accelerator)
        self.unconfirmed = logprobs.confirmable(self)

    # ---------------------------------------------------------------------------------------- a generation batch

    def _prepare_inputs(self, problems: list[Problem]) -> Batch:
        """TRL's hook: the next micro-batch; a new generation batch where the last one is used up."""
        uses = self.args.steps_per_generation * self.num_iterations
        at: int = self._step % uses  # the micro-batch among all that the generation batch serves
        if at == 0 or not self.micro_batches:
            before = self.batch_number  # none yet, also where a run is resumed
            number = self.order.number_at(self.state.global_step) if before is None else before + 1
            self.batch_number = number
            batch = self.generation_batch(number, problems)
            shuffled = batch.select(torch.randperm(len(batch)))
            self.micro_batches = shuffled.split(self.args.steps_per_generation)
        slot: int = at % self.args.steps_per_generation
        return self.micro_batches[slot]

    def generation_batch(self, number: int, problems: list[Problem]) -> Batch:
        """Rollouts of this process, sampled and judged, with dead groups replaced if that is wished. Collective."""
        self.check_weights()
        if self.length_schedule:
            self.max_completion_length = self.length_at(self.state.global_step)
            self._metrics["train"]["max_tokens"].append(self.max_completion_length)
        # Checkpointing would warn that no input has a gradient.
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            with self.clock.part("sampling"):
                sampled = self.sampler.batch(number, problems)
            return self.dynamic_sampling.filled(self.scored(sampled), self._more)

    def _more(self, problems: list[Problem]) -> Batch:
        """Further rollouts in place of those that teach nothing. Collective."""
        with self.clock.part("sampling"):
            sampled = self.sampler.extra(problems)
        return self.scored(sampled, on_top=True)

    def scored(self, sampled: Sampled, on_top: bool = False) -> Batch:
        """Rollouts with their advantages, and with the log-probabilities that the loss will need. Collective.

        Args:
            sampled: rollouts of this process.
            on_top: whether they were sampled in addition to a batch, and may be trained on by a later policy.
        """
        sampled = sampled.ending(self.stopped)  # rewards are told which ones were cut off
        completions = self._decoded(sampled)
        self._start_judging(sampled, completions)  # in the background, while the models are at work
        batch = self.counted(self._rows(sampled))
        with self.clock.part("scoring"):
            if self._needs_old(on_top):
                batch = batch.knowing(old_BC=self.old_logprobs(batch))
            if self.beta:
                batch = batch.knowing(reference_BC=self.reference_logprobs(batch))
        prompts = [problem["prompt"] for problem in sampled.problems]
        with self.clock.part("rewards"):  # of all processes, since a group may lie in two
            rewards_BF = self._calculate_rewards(list(sampled.problems), prompts, completions, sampled.completion_ids)
        self.clock.counts["samples"] += len(sampled.problems)
        weights_F = self.reward_weights.to(rewards_BF.device)
        advantages_B = objective.advantages(
            rewards_BF, weights_F, self.num_generations, self.scale_rewards, self.multi_objective_aggregation
        )
        reporting.log_rollouts(self, sampled, rewards_BF, weights_F)
        if not on_top:
            taught = reporting.look_at(self, sampled, completions, rewards_BF, weights_F)
            pool.learn(self, sampled.problems, *taught)
        self._pending_extra_logs.clear()  # what rewards have put beside the samples that were written just now
        mine_B = advantages_B.view(self.accelerator.num_processes, -1)[self.accelerator.process_index]
        return batch.knowing(advantages_B=mine_B, rewards_BF=self.recorded.scores(sampled, rewards_BF, weights_F))

    def _needs_old(self, on_top: bool) -> bool:
        """Whether log π_old has to be computed before training, rather than taken from the first training pass."""
        uses = self.args.steps_per_generation * self.num_iterations
        if self.args.gradient_accumulation_steps % uses:
            return True  # an optimizer step lies between sampling and training
        if self.objective.corrected:
            return not self.efficiency.reuse_logprobs
        return on_top

    def old_logprobs(self, batch: Batch) -> Tensor:
        """(B, C) log π_old. Collective."""
        return logprobs.without_gradient(self, self.model, batch)

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """(B, C) log π_ref; the reference of an adapter is its base. Collective."""
        if self.ref_model is None:
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                return logprobs.without_gradient(self, self.model, batch)
        return logprobs.without_gradient(self, self.ref_model, batch)

    def counted(self, rows: Sequence[Row]) -> Batch:
        """A batch of these rows, which knows how many tokens the batch of all processes has. Collective."""
        (tokens,) = summed(self.accelerator, sum(float(row["mask"].sum()) for row in rows))
        return of_rows(rows, self._tokenizer.pad_token_id, self.accelerator.device, tokens)

    def _rows(self, sampled: Sampled) -> list[Row]:
        """Rollouts as tensors; those that were cut off may not count (`trainer.mask_truncated_completions`)."""
        rows: list[Row] = []
        for at, (prompt, completion) in enumerate(zip(sampled.prompt_ids, sampled.completion_ids, strict=True)):
            counts = not self.mask_truncated_completions or self.stopped(completion)
            row = {
                "prompt_ids": torch.tensor(prompt),
                "completion_ids": torch.tensor(completion),
                "mask": torch.full((len(completion),), int(counts)),
            }
            if sampled.logprobs is not None:
                row["sampler_BC"] = torch.tensor(sampled.logprobs[at])
            rows.append(row)
        return rows

    def stopped(self, completion: Sequence[int]) -> bool:
        """Whether the policy ended a completion by itself."""
        return stopping.ended(self, completion)

    def _decoded(self, sampled: Sampled) -> list[Any]:
        """Completions as rewards see them: texts, or chats of one message where prompts are chats."""
        texts = self.processing_class.batch_decode(sampled.completion_ids, skip_special_tokens=True)
        chats = not isinstance(sampled.problems[0]["prompt"], str)
        return [[{"role": "assistant", "content": text}] for text in texts] if chats else texts

    def _start_judging(self, sampled: Sampled, completions: list[Any]) -> None:
        """Have verifiers begin; `_calculate_rewards` of TRL asks the same reward later, and waits for them."""
        reward = self.reward_funcs[0]
        if self.efficiency.background_rewards and isinstance(reward, judging.Judge):
            rows = sampled.problems
            columns = {name: [row[name] for row in rows] for name in rows[0] if name not in judging.TRL_COLUMNS}
            prompts = [row["prompt"] for row in rows]
            trainer = given(self.state, self._log_completion_extra, self._log_metric)
            reward.start(Judged(prompts, completions, sampled.completion_ids, columns, trainer))

    # ---------------------------------------------------------------------------------------------- a micro-batch

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """TRL's hook: the loss of a micro-batch, as the sum over its passes.

        Each pass but the last has its backward pass here; the trainer makes the last one.
        """
        tokens = self._step_tokens(inputs)
        batch = self.recorded.begin(inputs.knowing(weights_BC=self._token_weights(inputs, tokens)))
        if self.unconfirmed:  # the first one under FSDP2; see `logprobs.confirm`
            batch, self.unconfirmed = batch.knowing(checked_BC=self.old_logprobs(batch)), False
        labels_BT = completion_labels(batch.prompt_ids_BP, batch.completion_ids_BC, batch.mask_BC)
        with self.blocks.trained(labels_BT, tokens):
            *others, last = parts = self._passes(batch)
            self.clock.trained(parts, adapters.trained_by(self))
            done = torch.zeros((), device=self.accelerator.device)
            for part in others:
                with between_micro_batches(self.accelerator, model):
                    loss = self._pass_loss(model, part, len(batch))
                    self.accelerator.backward(loss)
                done += loss.detach()
            return self._pass_loss(model, last, len(batch)) + done

    def _step_tokens(self, batch: Batch) -> float:
        """Completion tokens of an optimizer step, a process: of the generation batch, an even share."""
        accumulated = self.current_gradient_accumulation_steps
        return float(batch.tokens * accumulated / self.args.steps_per_generation / self.accelerator.num_processes)

    def _token_weights(self, batch: Batch, step_tokens: float) -> Tensor:
        """(B, C) ω of a micro-batch, all of its rows; see `objective.token_weights`."""
        accumulated, longest = self.current_gradient_accumulation_steps, self.max_completion_length
        return objective.token_weights(self.loss_type, batch.mask_BC, longest, step_tokens, accumulated)

    def _passes(self, batch: Batch) -> list[Batch]:
        """The micro-batch without rows that teach nothing, in passes: as many of them in every process."""
        lengths_B = batch.lengths
        if drops(self.efficiency, vars(self.args)) and not self.aux_loss_enabled:
            dead_B = batch.advantages_B == 0
            self.metrics.total("groups/dropped_rows", dead_B.sum(), len(batch))
            lengths_B = lengths_B.masked_fill(dead_B, 0)
        lengths = lengths_B.tolist()
        if not self._divisible:
            rows = [row for row, tokens in enumerate(lengths) if tokens]
            return [batch if self.aux_loss_enabled or len(rows) == len(batch) else batch.part(rows)]
        parts = passes_of(lengths, self.efficiency.tokens_per_pass, self.accelerator)
        self.metrics.total("packing/fill", self.fill_watch.add(lengths, len(parts)), 1)
        return [batch.part(rows) for rows in parts]

    @property
    def _divisible(self) -> bool:
        """Whether the loss of a micro-batch is a sum over its rows, and gradients may be added up pass by pass."""
        of_tokens = self._entropy_bonus_enabled or self.top_entropy_quantile < 1.0
        of_experts = self.aux_loss_enabled or experts.balances_batches(self)
        return self.efficiency.packing and not (of_tokens or of_experts or self.is_deepspeed_enabled)

    def _pass_loss(self, model: Any, part: Batch, rows: int) -> Tensor:
        """The loss of some rows of a micro-batch that has so many.

        A router loss is TRL's, over all rows of a micro-batch, so it depends on how a step is divided into these.
        """
        of_micro_batch = len(part) / rows if part.mask_BC.any() else 0.0
        experts.share(self, of_micro_batch / self.current_gradient_accumulation_steps)
        scores = logprobs.with_gradient(self, model, part, self.aux_loss_enabled)
        assert scores.entropy_BC is not None
        self.recorded.take(part, scores)
        kept_BC = None
        if self.top_entropy_quantile < 1.0:  # arXiv 2506.01939
            kept_BC = self.get_high_entropy_mask(scores.entropy_BC, part.mask_BC, 1 - self.top_entropy_quantile)
        bonus = partial(entropy.bonus, self) if self._entropy_bonus_enabled else None
        loss = self.objective.loss(part, scores.logprobs_BC, scores.entropy_BC, self.metrics, kept_BC, bonus)
        if scores.router_loss is not None:
            loss = loss + self.router_aux_loss_coef * scores.router_loss / self.current_gradient_accumulation_steps
            self.metrics.total("aux_loss", scores.router_loss, 1)
        return loss

    # ----------------------------------------------------------------------------------------- order and lengths

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order.sampler(lambda: int(self.state.epoch or 0))

    def length_at(self, step: int) -> int:
        """The longest completion, in tokens, of a batch that is trained on after `step` optimizer steps.

        R1-Zero sampled up to 32,768 tokens, and up to 65,536 from step 8,200 on. The length depends on the step alone,
        so that a resumed run has that of an uninterrupted one, also where a batch is sampled ahead.
        """
        changes = reversed(self.length_schedule)
        return next((c.max_tokens for c in changes if step >= c.step), self.args.max_completion_length)

    # --------------------------------------------------------------------------------- what is logged and written

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Warn when engine and policy no longer agree."""
        super().log(logs, start_time)
        if (mismatch := logs.get(MISMATCH)) is not None:
            self.drift.add(mismatch)

    # ------------------------------------------------------------------------------------- optimizer, checkpoints

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`."""
        step = 0
        if resume_from_checkpoint is not None:
            state = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text("utf-8"))
            step = state["global_step"]
            if step % self.cycle and step < state["max_steps"]:
                raise ValueError(
                    f"the checkpoint after step {step} lies within a generation batch of {self.cycle} steps"
                )
        if self.accelerator.is_main_process:
            self.samples.rewind(step)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.blocks.clip(model, super()._clip_grad_norm)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)  # the process that makes it may come later than this one
        save_reference(self, folder)
        self.dynamic_sampling.save(folder)
        self.sampler.save(folder)
        if self.args.should_save:  # the order is the same in every process
            self.order.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_reference(self, Path(checkpoint))
            self.dynamic_sampling.load(Path(checkpoint))
            self.sampler.load(Path(checkpoint))
            self.order.load(Path(checkpoint))
