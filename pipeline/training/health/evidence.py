"""The batches around an alarm, kept whole: those of the step before the symptom, of its first step, and of the alarm.

Each rank writes what it had. See `pipeline.records.kept` for the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.context import StageContext, in_json
from pipeline.files import durable
from pipeline.files.rows import write_rows
from pipeline.records import kept
from pipeline.schema import environment
from pipeline.training.health.thresholds import Tripped

HELD = 3
"""Batches that are held while a symptom lasts: see above."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where batches were kept, if they were, and what to say about it."""

    folder: Path | None
    told: str


class Evidence:
    """Holds the batches of the last steps, on the CPU.

    Args:
        context: the stage.
        trainer: has the mixin `Watched`; GRPO's has `recorded`, too.
    """

    def __init__(self, context: StageContext[Any], trainer: Any) -> None:
        self.context, self.trainer = context, trainer
        self.recorded: Any = getattr(trainer, "recorded", None)
        self.held: dict[int, dict[str, Tensor]] = {}
        if self.recorded is not None:
            self.recorded.wanted = True

    def begin(self) -> None:
        """A step begins."""
        if self.recorded is not None:
            self.recorded.clear()

    def take(self, step: int) -> None:
        """A step's gradients are there."""
        self.held[step] = self.recorded.tensors() if self.recorded is not None else _plain(self.trainer.watch.batches)
        if len(self.held) > HELD:
            del self.held[sorted(self.held)[-2]]

    def healthy(self) -> None:
        """No symptom: only the last batch can become the one before a symptom."""
        for step in sorted(self.held)[:-1]:
            del self.held[step]

    def keep(
        self, step: int, began: int, before: int | None, tripped: Sequence[Tripped], logs: Mapping[str, Any]
    ) -> Place:
        """Write the batches that are held, and what is known of them. Collective.

        Args:
            step: of the alarm.
            began: the first logged step that showed the symptom.
            before: the step of the checkpoint before the symptom; `None`: the stage's own beginning.
            tripped: the alarms.
            logs: everything that the step has logged.
        """
        scratch, accelerator = self.context.scratch, self.trainer.accelerator
        folder = scratch / kept.KEPT / f"{kept.STEP}{step:06d}"
        known = kept.records(scratch / kept.KEPT)
        accelerator.wait_for_everyone()  # all have looked, before anything is written
        if step in known:
            return Place(folder, f"The batch of an earlier alarm after this step is kept in {folder}.")
        if len(known) >= kept.MOST:
            return Place(None, f"Its batch is not kept: those of {kept.MOST} alarms are.")
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            durable.make_folder(folder)
        accelerator.wait_for_everyone()
        for number, tensors in self.held.items():
            self._write(folder, f"batch-{number}.rank-{accelerator.process_index}", tensors)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            durable.seal(folder, kept.RECORD, **self._record(step, began, before, tripped, logs))
        accelerator.wait_for_everyone()
        run = scratch.parent.parent if scratch.parent.name == "scratch" else scratch
        return Place(folder, f"The batch is kept in {folder}: `zero2r1 why {run}@{self.context.name}` replays it.")

    def _write(self, folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
        save_file(tensors, folder / f"{name}.safetensors")
        rows = self.recorded.rows(tensors) if self.recorded is not None else self._plain_rows(tensors)
        write_rows(folder / f"{name}.jsonl", rows)

    def _plain_rows(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """The token ids of each row as text."""
        processor = self.trainer.processing_class
        found = []
        for name, ids in tensors.items():
            at, _, key = name.partition("/")
            if key.endswith("input_ids"):
                texts = processor.batch_decode(ids)
                found += [{"micro_batch": int(at), "row": n, key: text} for n, text in enumerate(texts)]
        return found

    def _record(
        self, step: int, began: int, before: int | None, tripped: Sequence[Tripped], logs: Mapping[str, Any]
    ) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "step": step,
            "began": began,
            "checkpoint": before,
            "alarms": [one.fields() for one in tripped],
            "metrics": in_json(logs),
            "history": [in_json(line) for line in trainer.state.log_history[-kept.HISTORY :]],
            "batches": sorted(self.held),
            "ranks": trainer.accelerator.num_processes,
            "learning_rate": trainer.args.learning_rate,
            "seed": trainer.args.seed,
            "kind": self.context.config.kind,
            "config": environment.recorded(self.context.config),
            "inputs": {name: str(path) for name, path in self.context.inputs.items()},
            "base": str(self.context.base),
            "tasks": environment.names_only(self.context.tasks),
            **({} if self.recorded is None else self.recorded.settings()),
        }


def _plain(batches: Sequence[Any]) -> dict[str, Tensor]:
    """The tensors of micro-batches as a data loader gives them."""
    return {
        f"{at}/{name}": value.detach().cpu().contiguous()
        for at, batch in enumerate(batches)
        for name, value in (batch.items() if isinstance(batch, Mapping) else ())
        if isinstance(value, torch.Tensor)
    }
