"""What is changed, one thing at a time; the table and the sentence that come of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.context import StageContext, in_json
from pipeline.schema.pieces import RewardSpec
from pipeline.tasks.grading import ACCURACY, composite
from pipeline.training.grpo.recorded import TOTAL
from pipeline.why import batches
from pipeline.why.batches import Kept
from pipeline.why.case import Case
from pipeline.why.replay import MOST_UPDATES, PRECISIONS, Numbers, Replay, Setting
from rewards import Batch as Judged

ENGINE, WEIGHTS, VERIFIER = "engine precision", "importance weights", "verifier"
TEMPLATE, MASK, RATE, CLIPPING = "template", "truncation mask", "learning rate", "gradient clipping"
AS_IT_WAS, OFF = "as it was", "verifier off: all rewards equal"
SPECIFIC = (ENGINE, MASK, WEIGHTS, TEMPLATE, VERIFIER, RATE, CLIPPING)
"""Causes, from the most specific on: a lower learning rate softens whatever an update does."""
RATES = (10, 100, 1000)
"""What the learning rate is divided by; the last only where the others do not help."""
IN = "the trainer in "
"""Begins a line of another precision."""
ALIKE = 3.0
"""A precision explains a mismatch as well that is as large as what it does to the trainer, up to this factor: kernels
of an engine round at other places, so that the numbers themselves differ."""
SHARE = 0.5
"""A precision explains the engine's log-probabilities if they lie nearer to it than this share of the mismatch."""
FALLS = ("entropy_fall", "effective_samples")
SAMPLED = ("dead_groups", "reward_gap", "mismatch", "effective_samples")
"""Alarms, and columns, about what was sampled or what it was paid."""
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss", "loss_after"),
    "grad_norm": ("grad_norm", "grad_norm_after"),
    "entropy_fall": ("entropy_after", "entropy"),
    "entropy_rise": ("entropy_after", "entropy"),
    "kl": ("kl_after", "kl"),
    "mismatch": ("mismatch",),
    "effective_samples": ("effective_samples",),
    "dead_groups": ("dead_groups",),
    "reward_gap": ("reward_gap",),
}
"""Alarm -> the columns in which a replay shows it, the first that does."""
HINTS = {"truncated": ". Raise rollout.max_tokens, or see in the kept rows why answers do not end"}
"""Alarm -> what to do where no update has brought it about."""
MOVED = "moved_after"
"""How far an update takes the policy, in nats a token; what other alarms are judged by."""


UPSETS, LITTLE = 3.0, 0.01
"""A change cures nothing if the policy moves this many times as far with it, and by more than this, in nats a token."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """What says in the table whether an alarm would be raised.

    Attributes:
        alarm: its field in `health`.
        column: what is looked at.
        limit: its threshold.
    """

    alarm: str
    column: str
    limit: float

    def shown_by(self, numbers: Mapping[str, float]) -> bool | None:
        """Whether these numbers show it; `None` where they cannot tell."""
        value = numbers.get(self.column)
        if value is None or (math.isnan(value) and self.alarm != "loss"):
            return None
        if self.alarm == "loss":
            return not math.isfinite(value)
        return value < self.limit if self.alarm in FALLS else value > self.limit


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table.

    Attributes:
        what: what was changed, in words.
        cause: what is to blame if the symptom goes away with it.
        numbers: column -> value.
    """

    what: str
    cause: str
    numbers: Numbers


@dataclass(frozen=True)
class Finding:
    """What came of a replay.

    Attributes:
        case: what was looked into.
        symptom: what was judged; `None`: the replay shows no alarm.
        step: of the batch.
        lines: the table.
        cause: what is to blame; empty where nothing was found.
        conclusion: a sentence.
    """

    case: Case
    symptom: Symptom | None
    step: int
    lines: list[Line]
    cause: str
    conclusion: str

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        record, symptom = self.case.record, self.symptom
        lines = [
            {
                "change": line.what,
                "about": line.cause,
                "symptom": None if symptom is None else symptom.shown_by(line.numbers),
                "numbers": in_json(line.numbers),
            }
            for line in self.lines
        ]
        return {
            "stage": self.case.stage,
            "alarm_step": record["step"],
            "alarms": record["alarms"],
            "replayed_step": self.step,
            "checkpoint_step": record["checkpoint"],
            "symptom": None
            if symptom is None
            else {"alarm": symptom.alarm, "column": symptom.column, "limit": symptom.limit},
            "changes": lines,
            "cause": self.cause or None,
            "conclusion": self.conclusion,
        }


def explain(case: Case) -> Finding:
    """Replay a case with one thing changed at a time.

    Raises:
        WhyError: the model that the stage began with is gone.
    """
    with TemporaryDirectory() as folder:
        context = case.context(Path(folder))
        replay, record = Replay(case, context), case.record
        found = _Explained(case, context, replay, record["alarms"][0]["alarm"] in SAMPLED).finding()
        if found.cause or record["alarms"][0]["alarm"] not in SAMPLED or record["batches"][0] >= record["began"]:
            return found
        before = _Explained(case, context, replay, of_samples=False).finding()  # an update may have ruined what samples
        return before if before.cause else found


class _Explained:
    """One batch: that of the symptom, which shows what samples are like; or the one before it, and its update."""

    def __init__(self, case: Case, context: StageContext[Any], replay: Replay, of_samples: bool) -> None:
        self.case, self.context, self.replay, self.record = case, context, replay, case.record
        self.health, self.of_samples = context.config.health, of_samples
        steps, alarm = self.record["batches"], self.record["step"]
        began = self.record["began"] if self.record["began"] in steps else alarm
        self.kept = batches.read(case, began if of_samples else steps[0], replay.device)
        start = self.record["checkpoint"] or 0
        self.updates = max(1, min(MOST_UPDATES, self.record["began"] - 1 - start))
        self.accuracy = self._accuracy()

    def finding(self) -> Finding:
        """The table, and what it says."""
        base = Line(AS_IT_WAS, "", self._line(self.kept, Setting(), self._totals(TOTAL)))
        symptom = self._symptom(base.numbers)
        lines = [base, *(self._changes(symptom) if symptom is not None else ())]
        cause, conclusion = self._conclusion(symptom, lines)
        return Finding(self.case, symptom, self.kept.step, lines, cause, conclusion)

    # ------------------------------------------------------------------------------------------------------ symptoms

    def _symptom(self, numbers: Numbers) -> Symptom | None:
        """The first alarm that the replay shows, as it was; those about samples last where an update is replayed."""
        alarms = self.record["alarms"]
        for alarm in alarms if self.of_samples else sorted(alarms, key=lambda one: one["alarm"] in SAMPLED):
            known = alarm["alarm"] in COLUMNS and (self.of_samples or alarm["alarm"] not in SAMPLED)
            for column in COLUMNS[alarm["alarm"]] if known else (MOVED,):
                limit = float(alarm["limit"]) if known else self.health.kl
                symptom = Symptom(alarm["alarm"], column, limit)
                if symptom.shown_by(numbers):
                    return symptom
        return None

    def _line(self, kept: Kept, setting: Setting, totals: list[list[float]]) -> Numbers:
        """All columns of a line."""
        known = [score for of in totals for score in of if not math.isnan(score)]
        right = [score for of in self.accuracy or () for score in of if not math.isnan(score)]
        reward, accuracy = fmean(known) if known else math.nan, fmean(right) if right else math.nan
        return {
            **self.replay.numbers(kept, setting),
            "dead_groups": batches.dead_share(kept, totals),
            "reward": reward,
            "accuracy": accuracy,
            "reward_gap": reward - accuracy,
            **self.replay.updated(kept, setting, self.updates),
        }

    # ------------------------------------------------------------------------------------------------------- changes

    def _changes(self, symptom: Symptom) -> Iterator[Line]:
        kept, totals, plain = self.kept, self._totals(TOTAL), Setting()
        if any(batch.sampler_BC is not None for batch in kept.micro):
            agreeing = batches.engine_agrees(kept)
            yield Line("the engine in the trainer's precision", ENGINE, self._line(agreeing, plain, totals))
            for precision in PRECISIONS:
                yield Line(f"{IN}{precision}", "", self.replay.rounded(kept, precision))
            on = not self.record["corrected"]
            setting = Setting(corrected=on)
            yield Line(f"importance weights {'on' if on else 'off'}", WEIGHTS, self._line(kept, setting, totals))
        yield from self._of_rewards(symptom)
        if symptom.column in SAMPLED:
            return  # nothing below changes what was sampled, or what it was paid
        tokenizer = self.replay.trainer._tokenizer
        if any(row["finish"] == "length" for rows in kept.rows for row in rows):
            masked = self.replay.trainer.mask_truncated_completions
            changed = batches.cut_off(kept, tokenizer.pad_token_id, masked)
            told = "completions that are cut off " + ("count" if masked else "do not count")
            yield Line(told, MASK, self._line(changed, plain, totals))
        if all(row["question"] for rows in kept.rows for row in rows):
            bare = self.replay.as_reference(batches.bare(kept, tokenizer))
            yield Line("questions without the template", TEMPLATE, self._line(bare, plain, totals))
        for by in RATES:
            yield (slower := Line(f"learning rate / {by}", RATE, self._line(kept, Setting(rate=1 / by), totals)))
            if by >= RATES[1] and symptom.shown_by(slower.numbers) is False:
                break
        yield Line("gradient clipped to a tenth", CLIPPING, self._line(kept, Setting(clip=0.1), totals))

    def _of_rewards(self, symptom: Symptom) -> Iterator[Line]:
        """Rewards that are all equal, the tasks' own graders alone, and each part alone."""
        kept, scale = self.kept, self.record["scale_rewards"]
        every = {f"the reward {name} alone": self._totals(name) for name in self.record["rewards"][1:]}
        if self.accuracy is not None:
            every = {"the tasks' own graders alone": self.accuracy, **every}
            label = _accuracy_label(self.context.config)
            every.pop(f"the reward {label} alone", None)
        before = self._totals(TOTAL)
        for what, totals in every.items():
            if _same(totals, before):
                continue
            yield Line(what, VERIFIER, self._line(batches.rewarded(kept, totals, scale), Setting(), totals))
        if symptom.column not in ("dead_groups", "reward_gap"):
            equal = [[0.0] * len(of) for of in before]
            yield Line(OFF, "", self._line(batches.rewarded(kept, equal, scale), Setting(), equal))

    def _totals(self, name: str) -> list[list[float]]:
        return batches.scores_of(self.kept, name)

    def _accuracy(self) -> list[list[float]] | None:
        """What the tasks' own graders say: as it was recorded, or asked again; `None` where they cannot be asked."""
        label = _accuracy_label(self.context.config)
        if label is not None and label in self.record["rewards"]:
            return self._totals(label)
        rows = [row for of in self.kept.rows for row in of]
        if any(row["answer"] is None for row in rows):
            return None
        asked = [
            {**row["columns"], **{name: row[name] for name in ("task", "id", "question", "answer")}} for row in rows
        ]
        columns = {name: [row.get(name) for row in asked] for name in asked[0]}
        texts = [row["text"] for row in rows]
        judge = composite([RewardSpec(use=ACCURACY)], self.context.config.tasks, self.context)
        try:
            verdicts = judge.verdicts(Judged([row["prompt"] for row in rows], texts, None, columns))[ACCURACY]
        finally:
            judge.close()
        scores = iter([math.nan if v is None or v.score is None else v.score for v in verdicts])
        return [[next(scores) for _ in of] for of in self.kept.rows]

    # ---------------------------------------------------------------------------------------------------- conclusion

    def _conclusion(self, symptom: Symptom | None, lines: list[Line]) -> tuple[str, str]:
        if symptom is None:
            if self.record["began"] <= (self.record["checkpoint"] or 0) + 1:
                alarm = self.record["alarms"][0]["alarm"]
                where = f"in the batch of step {self.record['began']}, which no update stands before"
                hint = HINTS.get(alarm, "")
                if hint and (temperature := self.record["sampling"]["temperature"]) > 1:
                    hint += f", or lower rollout.temperature, which is {temperature:g}"
                return "", f"The symptom is {where}: it is in how {self.case.on} samples{hint}."
            what = f"the batch of step {self.kept.step} is replayed on {self.case.on}"
            how = (
                "it came about over more steps than are kept. A smaller trainer.save_steps brings the checkpoint nearer"
            )
            return "", f"The symptom does not show when {what}: {how}."
        cures = [line for line in lines[1:] if line.cause and symptom.shown_by(line.numbers) is False]
        if symptom.column.endswith("_after"):
            cures = [line for line in cures if not self._upsets(line.numbers, lines[0].numbers)]
        cures.sort(key=lambda line: SPECIFIC.index(line.cause))
        name = symptom.column.removesuffix("_after")
        if not cures:
            return "", self._nothing(name, lines)
        first = cures[0]
        others = list(dict.fromkeys(line.cause for line in cures if line.cause != first.cause))
        told = (
            f"{first.cause.capitalize()}: with {first.what}, {name} is {first.numbers[symptom.column]:.3g} instead of"
        )
        told += f" {lines[0].numbers[symptom.column]:.3g} (limit {symptom.limit:.3g})."
        told += self._more(first.cause, symptom, lines)
        if others:
            told += f" It also goes away by: {', '.join(others)}."
        return first.cause, told

    def _upsets(self, numbers: Mapping[str, float], before: Mapping[str, float]) -> bool:
        """Whether an update ruins the policy still, or takes it much further than that of the alarm."""
        moved, then = numbers.get(MOVED, 0.0), before.get(MOVED, math.inf)
        return min(moved, then) > self.health.kl or moved > max(UPSETS * then, LITTLE)

    def _more(self, cause: str, symptom: Symptom, lines: list[Line]) -> str:
        """What else is known of a cause."""
        base = lines[0].numbers
        if cause == ENGINE:
            return _of_precision(
                base["mismatch"],
                {line.what.removeprefix(IN): line.numbers for line in lines if line.what.startswith(IN)},
            )
        if cause == VERIFIER:
            reward, accuracy = f"{base['reward']:.3g}", f"{base['accuracy']:.3g}"
            return f" The reward is {reward} on average, and the tasks' own graders say {accuracy}."
        return ""

    def _nothing(self, name: str, lines: list[Line]) -> str:
        if name == "dead_groups" and not math.isnan(lines[0].numbers["accuracy"]):
            right = lines[0].numbers["accuracy"]
            kind = "too easy" if right > 0.5 else "too hard, or answers are not found"
            known = f"the tasks' own graders find {right:.0%} right"
            told = f"No change gives groups variance: {known}"
            if (same := batches.same_share(self.kept)) >= SHARE:
                temperature = self.record["sampling"]["temperature"]
                told += f", and in {same:.0%} of the groups all completions are the same"
                return f"{told}: raise rollout.temperature, which is {temperature:g}, or take harder problems."
            return f"{told}, so problems are {kind}."
        return f"None of these changes makes {name} go away."


def _of_precision(mismatch: float, tried: Mapping[str, Numbers]) -> str:
    """What the engine seems to compute in.

    Args:
        mismatch: between engine and trainer, in nats a token.
        tried: precision -> how far the trainer in it is from the engine, and from itself.
    """
    precision, gap = min(((name, numbers["mismatch"]) for name, numbers in tried.items()), key=lambda pair: pair[1])
    if gap < SHARE * mismatch:
        return f" The engine's log-probabilities are those of a model in {precision} ({gap:.2g} nats apart)."
    sizes = {name: numbers["rounding"] for name, numbers in tried.items() if numbers["rounding"] > 0}
    alike = {name: size for name, size in sizes.items() if mismatch / ALIKE < size < mismatch * ALIKE}
    if not alike:
        return " They fit no other precision: the engine may sample with stale weights."
    nearest = min(alike, key=lambda name: tried[name]["mismatch"])
    return (
        f" They are about as far from the trainer's as {nearest} takes it from itself ({alike[nearest]:.2g} nats): the"
        f" engine seems to compute in {nearest}, with kernels of its own."
    )


def _accuracy_label(config: Any) -> str | None:
    return next((spec.label for spec in config.rewards if spec.use == ACCURACY), None)


def _same(scores: list[list[float]], others: list[list[float]]) -> bool:
    pairs = zip((s for of in scores for s in of), (s for of in others for s in of), strict=True)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
