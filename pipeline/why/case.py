"""Which alarm is looked into: the kept batches, the checkpoint before them, and the stage that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.context import StageContext
from pipeline.files import durable
from pipeline.records import kept
from pipeline.schema.pieces import TrainingConfig
from pipeline.stages.registry import config_class
from rewards.registry import nearest

MARK = "complete"
"""Of a checkpoint; see `pipeline.training.checkpoints`."""
OPTIMIZER, GATHERED = "optimizer.pt", "optimizer.bin"
"""The optimizer's state in a checkpoint: of one process or of DDP, and what FSDP has gathered of all ranks' parts."""
PARTS = "optimizer_0"
"""The same of FSDP where each rank has written its own part."""
REPLAYED = "grpo"
"""The stage kind whose batches are replayed."""


class WhyError(ValueError):
    """There is nothing to replay; the message says what is missing, and what would have to be there."""


@dataclass(frozen=True)
class Case:
    """An alarm with what was kept of it.

    Attributes:
        run: the run's folder.
        stage: the stage's name.
        folder: of the alarm.
        record: what was written down: see `pipeline.training.health.evidence`.
        others: steps of the stage's other alarms that were kept.
        checkpoint: the one before the symptom; `None`: the model that the stage began with.
    """

    run: Path
    stage: str
    folder: Path
    record: Mapping[str, Any]
    others: Sequence[int]
    checkpoint: Path | None

    def context(self, scratch: Path) -> StageContext[Any]:
        """What the stage ran with, with another folder to write into.

        Raises:
            WhyError: the model that it began with is gone.
        """
        record = self.record
        config = config_class(record["kind"]).model_validate(record["config"])
        inputs = {name: _moved(Path(folder), self.run) for name, folder in record["inputs"].items()}
        context: StageContext[Any] = StageContext(
            name=self.stage,
            config=config,
            inputs=inputs,
            output=scratch / "output",
            scratch=scratch,
            base=Path(record["base"]),
            seed=record["seed"],
            events=scratch / "events.jsonl",
            tasks=record["tasks"],
        )
        began: str = getattr(config, "model", "")
        model = context.model_folder(began) if began.startswith("@") else None
        if model is not None and not model.is_dir():
            raise WhyError(f"the model that stage {self.stage!r} began with is gone: {model}")
        return context

    @property
    def on(self) -> str:
        """What the batches are replayed on, in words."""
        step = self.record["checkpoint"]
        return "the model that the stage began with" if step is None else f"the checkpoint after step {step}"


def find(name: str, step: int | None = None) -> Case:
    """The case of `RUN@STAGE`.

    Args:
        name: such as `runs/nano-r1@zero`.
        step: of the alarm; the first one that was kept if not given: later ones may be its consequences.

    Raises:
        WhyError: there is no such run or stage, nothing was kept, or what was kept is damaged.
    """
    run, _, stage = name.rpartition("@")
    if not run or not stage:
        raise WhyError(f"{name} names no stage of a run: write RUN@STAGE, such as runs/nano-r1@zero")
    try:
        stages = {entry["name"]: entry for entry in artifacts.record(Path(run))["stages"]}
    except FileNotFoundError:
        raise WhyError(artifacts.no_run(run, f"@{stage}")) from None
    except artifacts.RecordError as error:
        raise WhyError(str(error)) from error
    if stage not in stages:
        raise WhyError(f"{run} has no stage {stage!r}{nearest(stage, list(stages))}. Stages: {', '.join(stages)}")
    kind = stages[stage]["kind"]
    if not issubclass(config_class(kind), TrainingConfig):
        raise WhyError(f"stage {stage!r} is of kind {kind}, which trains nothing: it has no batch to replay")
    found = kept.folder(Path(run), stage, stages[stage]["fingerprint"])
    if found is None:
        how = "`health: {}` in the recipe turns alarms on"
        raise WhyError(f"nothing is kept of stage {stage!r}: no alarm was raised in it; {how}")
    return _case(Path(run), stage, kind, found, step)


def _case(run: Path, stage: str, kind: str, found: Path, step: int | None) -> Case:
    try:
        records = kept.records(found)
    except durable.DamageError as error:
        raise WhyError(f"{error}: this batch cannot be replayed") from error
    chosen = min(records) if step is None else step
    if chosen not in records:
        raise WhyError(f"no alarm after step {step} was kept; those after steps {', '.join(map(str, records))} were")
    if kind != REPLAYED:
        raise WhyError(
            f"stage {stage!r} is of kind {kind}: batches of {REPLAYED} alone are replayed. This one is kept in {found}"
        )
    folder, record = found / f"{kept.STEP}{chosen:06d}", records[chosen]
    if faults := durable.damage_of(folder, kept.RECORD):
        raise WhyError(f"the batch in {folder} is damaged ({durable.describe(faults)}): it cannot be replayed")
    checkpoint = None
    if record["checkpoint"] is not None:
        checkpoint = found / f"{kept.CHECKPOINT}{record['checkpoint']}"
        if faults := durable.damage_of(checkpoint, MARK):
            raise WhyError(
                f"the checkpoint before the symptom is gone or damaged: {checkpoint} ({durable.describe(faults)});"
                " without it there is nothing to replay the batch on"
            )
        _check_optimizer(checkpoint)
    return Case(run, stage, folder, record, [other for other in records if other != chosen], checkpoint)


def _check_optimizer(checkpoint: Path) -> None:
    """Make sure that one process can go on from a checkpoint.

    Raises:
        WhyError: it cannot; says why, and with which setting it could.
    """
    if any((checkpoint / name).is_file() for name in (OPTIMIZER, GATHERED)):
        return
    if (checkpoint / PARTS).is_dir():
        why = "each rank of FSDP has written its part of the state. Set `fsdp_state_dict_type: FULL_STATE_DICT` in the"
        why += " accelerate config, as the one that is named fsdp2-1node has it"
    elif any(checkpoint.glob("global_step*")):
        why = "DeepSpeed has written it in its own format. Train with `launch: {accelerate: fsdp2-1node}`"
    else:
        why = "`trainer.save_only_model` has left it out. Leave that setting out"
    raise WhyError(
        f"the checkpoint before the symptom has no {OPTIMIZER}, which one process would replay from: {checkpoint}:"
        f" {why}, and run the stage again"
    )


def _moved(folder: Path, run: Path) -> Path:
    """An artifact of a run that may have been moved: `stages/NAME/FINGERPRINT` below it."""
    return folder if folder.exists() else run / "stages" / folder.parent.name / folder.name
