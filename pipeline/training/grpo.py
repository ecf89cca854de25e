"""TRL's GRPO trainer with exact resumption, samples that can be read, and a look at groups that teach nothing.

What makes it fast is in the mixins beside this module, one a switch of `efficiency`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer

from pipeline.rows import whole_row, write_rows
from pipeline.schema.efficiency import STOCK, Efficiency, LengthChange
from pipeline.training.colocated import Colocated
from pipeline.training.dropping import Dropping
from pipeline.training.folding import Folding
from pipeline.training.fused import Fused
from pipeline.training.lengths import Lengths
from pipeline.training.mtp import MultiToken
from pipeline.training.overlap import Overlap
from pipeline.training.packing import Packing
from pipeline.training.passes import Passes
from pipeline.training.reference import sync_by_name
from pipeline.training.refill import Refill
from pipeline.training.resumable import Resumable
from pipeline.training.rollouts import EngineRollouts
from pipeline.training.rows import equal_groups
from pipeline.training.schedule import check_cycle

log = logging.getLogger(__name__)

REFERENCE = "reference.pt"
DEAD_SHARE = 0.9
"""Share of groups without variance above which hardly anything is learnt."""
DEAD_STEPS = 5
"""Generation batches in a row before it is said: one may be bad luck."""


@dataclass(frozen=True, slots=True)
class Samples:
    """A few completions with their verdicts, every so many steps.

    Attributes:
        path: JSONL file that survives an interruption.
        every: steps between two looks.
        count: completions at each look.
    """

    path: Path
    every: int
    count: int

    def due(self, step: int) -> bool:
        """Whether completions sampled after this many optimizer steps are to be written."""
        return self.count > 0 and step % self.every == 0

    def rewind(self, step: int) -> None:
        """Forget what was sampled after a step that training goes back to, and a line that was not finished."""
        if self.path.exists():
            with self.path.open("rb") as source:
                rows = [row for row in map(whole_row, source) if row is not None]
            write_rows(self.path, (row for row in rows if row["step"] < step))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; all of a step at once."""
        with self.path.open("a", encoding="utf-8") as sink:
            sink.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def publish(self, folder: Path) -> None:
        """Copy them beside the model."""
        if self.path.exists():
            (folder / "samples.jsonl").write_bytes(self.path.read_bytes())


class GrpoTrainer(
    MultiToken,
    Refill,
    Lengths,
    EngineRollouts,
    Overlap,
    Dropping,
    Passes,
    Folding,
    Packing,
    Fused,
    Colocated,
    Resumable,
    GRPOTrainer,  # type: ignore[misc]
):
    """`trl.GRPOTrainer`, resumable to the bit on one device.

    The mixins stand in the order in which they wrap each other: dead rows are dropped before a micro-batch is divided
    into passes, and what a pass knows of old log-probabilities is filled in around the packed forward.

    Args:
        samples: where completions are written; the other arguments are TRL's.
        efficiency: which of the mixins are on.
        length_schedule: from which steps on completions may be longer.

    Raises:
        ValueError: groups or checkpoints do not fit the generation batches, the synced reference model could not be
            restored from a checkpoint, or fused kernels do not fit the model.
        RuntimeError: fused kernels cannot run here.
    """

    def __init__(
        self,
        *args: Any,
        samples: Samples,
        efficiency: Efficiency = STOCK,
        length_schedule: Sequence[LengthChange] = (),
        **kwargs: Any,
    ) -> None:
        self.efficiency, self.length_schedule = efficiency, length_schedule
        super().__init__(*args, **kwargs)
        self.prepare_fused(self.model, self.ref_model)
        self.prepare_packing(self.model, self.ref_model)
        self.prepare_dropping()
        self.prepare_refill()
        sync_by_name(self)
        self.samples = samples
        self.dead: list[tuple[float, float]] = []
        self.cycle = check_cycle(vars(self.args) | {"generation_batch_size": None}, self.accelerator.num_processes)
        if self.args.sync_ref_model and self.is_deepspeed_enabled:
            raise ValueError("a synced reference model cannot be resumed under DeepSpeed: use FSDP, or beta: 0")

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

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.sync_ref_model:
            weights = _full_weights(self.ref_model)
            if self.args.should_save:
                torch.save(weights, Path(output_dir) / REFERENCE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.args.sync_ref_model:
            return
        path = Path(checkpoint) / REFERENCE
        if not path.is_file():
            raise ValueError(f"{checkpoint} lacks the reference model that the policy was compared with")
        _set_full_weights(self.ref_model, torch.load(path, map_location="cpu", weights_only=True))

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """TRL's, which tokenises a prompt once for each of its rollouts; these stand next to each other."""
        groups = [(prompt, len(list(group))) for prompt, group in groupby(prompts)]
        if self.efficiency.whole_groups and self.environment_factories is None and len(groups) < len(prompts):
            prompt_ids, images, others = super()._tokenize_prompts([prompt for prompt, _ in groups])
            if images is None and not others:
                counted = zip(prompt_ids, groups, strict=True)
                return [list(ids) for ids, (_, count) in counted for _ in range(count)], None, others
        found: tuple[list[list[int]], Any, dict[str, Any]] = super()._tokenize_prompts(prompts)
        return found

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        rewards_BF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training and not self.sampling_extra:
            self._watch_groups(rewards_BF)
            if self.accelerator.is_main_process and self.samples.due(self.state.global_step):
                self.samples.add(self._sampled(inputs, completions, completion_ids_list))
        return rewards_BF

    def _watch_groups(self, rewards_BF: torch.Tensor) -> None:
        """Log the shares of groups in which every rollout failed, or every one succeeded, and warn of too many."""
        same_P = equal_groups(rewards_BF, self.num_generations)
        best_P = rewards_BF.nansum(dim=1).view(-1, self.num_generations).amax(dim=1)  # the first may have no score
        failed = (same_P & (best_P <= 0)).float().mean().item()
        solved = (same_P & (best_P > 0)).float().mean().item()
        self._metrics["train"]["groups/all_failed"].append(failed)
        self._metrics["train"]["groups/all_equal_above_zero"].append(solved)
        self.dead = [*self.dead, (failed, solved)][-DEAD_STEPS:]
        if len(self.dead) == DEAD_STEPS and min(sum(shares) for shares in self.dead) > DEAD_SHARE:
            log.warning("%s", explain_dead_groups(self.dead, self.num_generations))
            self.dead = []

    def _sampled(self, inputs: Any, completions: Any, completion_ids: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """The first completions of this process as sample rows; the verdict is that of the first reward."""
        (reward,) = self.reward_funcs
        label = reward.parts[0].label
        rows = []
        for index, (row, completion) in enumerate(zip(inputs, completions, strict=True)):
            if index == self.samples.count:
                break
            verdict = reward.last[label][index]
            ids = completion_ids[index]
            rows.append(
                {
                    "step": self.state.global_step,
                    "task": row["task"],
                    "id": row["id"],
                    "question": row["question"],
                    "answer": row["answer"],
                    "completion": completion if isinstance(completion, str) else completion[0]["content"],
                    "status": None if verdict is None else verdict.status.value,
                    "score": None if verdict is None else verdict.score,
                    "extracted": None if verdict is None else verdict.extracted,
                    "tokens": len(ids),
                    "finish": "stop" if ids and ids[-1] in self.eos_token_ids else "length",
                }
            )
        return rows


def explain_dead_groups(shares: Sequence[tuple[float, float]], group: int) -> str:
    """Why groups teach nothing, in a sentence, and what to do about it.

    Args:
        shares: (all failed, all equal above zero) for each of the last generation batches.
        group: rollouts a group.
    """
    failed = sum(share for share, _ in shares) / len(shares)
    solved = sum(share for _, share in shares) / len(shares)
    text = f"{failed + solved:.0%} of the groups have no variance in their rewards, so they teach nothing: "
    if failed > 2 * solved:
        return text + (
            f"in {failed:.0%} every rollout failed. The problems are too hard, the completions are cut off"
            " (rollout.max_tokens), or the answers are not found (look at samples.jsonl)"
        )
    if solved > 2 * failed:
        return text + f"in {solved:.0%} every rollout got the same reward above zero. The problems are too easy"
    return text + f"groups of {group} are too small, or problems are either trivial or hopeless"


def _full_weights(model: Any) -> dict[str, Any]:
    """All weights on the CPU, gathered from the shards where there are any; every process must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)))


def _set_full_weights(model: Any, weights: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
