"""What went right and what went wrong in a run, from its numbers: three sentences for the top of its report.

Each rule looks for one thing and says it in one sentence with its numbers, and with what to change. The first sentence
is what the run gained, with what guessing would score; then come the two worst findings. Names stand between backticks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from statistics import fmean, variance

from pipeline.records.dead_groups import EQUAL, FAILED, Cause, Shares
from pipeline.report.differences import Difference, Outcomes, difference, task_name
from pipeline.report.prose import main_root
from pipeline.report.run_data import Run, Stage, State, events, health_of, log_tail, mapping, rows
from pipeline.report.scores import Group, Table
from pipeline.report.text import clean, finite, interval, number, percent

MOST_SENTENCES = 3
CUT_OFF = 0.1
"""Share of answers that end at the limit of tokens, from which on it is said."""
FEW_KEPT = 0.05
"""Share of samples that rejection sampling keeps, below which it is said."""
LAST = 4
"""The last fourth of a stage's logged steps is how it ended, the first how it began."""
FEWEST_LOGGED = 8
"""Logged steps, at least, from which a stage is judged."""
BECAUSE = {
    Cause.HARD: "none of their answers is right: easier problems, or a look at how answers are read, would help",
    Cause.EASY: "all their answers are right, so harder problems would teach more",
    Cause.MIXED: "in some all answers are right and in others none: larger groups, or other problems, would help",
}
TOLD_OTHERWISE = ("dead_groups", "truncated")
"""Alarms about what a rule of its own looks for."""
SOLVED = 0.9
"""Share of rewarded rollouts above which a reward has no room to rise."""
FAILURE = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)\b(?:: .*)?")
LONGEST_FAILURE = 200  # characters


class Concern(IntEnum):
    """What a finding is about: what was gained, or what is wrong, the worst first."""

    GAIN = 0
    FAILED = 1
    ALARM = 2
    CUT_OFF = 3
    REGRESSION = 4
    FLAT = 5
    NO_GAIN = 6
    FEW_KEPT = 7
    DEAD_GROUPS = 8
    NOTHING_WRONG = 9


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence of a diagnosis.

    Attributes:
        concern: what it is about.
        text: the sentence; names stand between backticks.
        size: how bad it is among those of its concern.
    """

    concern: Concern
    text: str
    size: float = 0.0

    @property
    def good(self) -> bool:
        """Whether it says that something went right."""
        return self.concern in (Concern.GAIN, Concern.NOTHING_WRONG)


@dataclass(frozen=True)
class Change:
    """What one stage made of a score: the model it started from, or whose samples it learned from, and itself."""

    before: str
    after: str
    group: Group
    difference: Difference

    def interval(self) -> str:
        """Of its size, which is clear of nought: `(95 % interval 48.1–60.3)`."""
        low, high = sorted((abs(self.difference.low), abs(self.difference.high)))
        return f"(95 % interval {interval(low, high)})"


def diagnose(run: Run, table: Table, found: Outcomes) -> list[Finding]:
    """Every finding, the gain first and then the worst; the first three are the diagnosis."""
    changes = list(_changes(run, table, found))
    findings = [
        *_gain(run, table, changes, found),
        *_failures(run),
        *_worst(_alarms(run)),
        *_worst(_cut_off(run, table)),
        *_worst(_regressions(run, changes)),
        *_flat(run),
        *_few_kept(run),
        *_dead_groups(run),
    ]
    if all(finding.good for finding in findings) and all(s.state is State.FINISHED for s in run.stages.values()):
        findings.append(
            Finding(
                Concern.NOTHING_WRONG,
                "Nothing looks wrong: no stage clearly lost what the one before it could do, and fewer than"
                f" {percent(CUT_OFF, 0)} % of the answers are cut off.",
            )
        )
    return sorted(findings, key=lambda finding: (finding.concern, -finding.size))


def _worst(findings: Iterable[Finding]) -> list[Finding]:
    """The largest of the findings of one concern: one sentence of it is enough."""
    return sorted(findings, key=lambda finding: -finding.size)[:1]


def _changes(run: Run, table: Table, found: Outcomes) -> Iterator[Change]:
    """Every evaluated model against the evaluated models that it was made from, on every task."""
    for group in table.groups:
        for after in (name for name in run.stages if name in group.scores):
            stage = run.stages[after]
            for before in dict.fromkeys((stage.parent, _source(run, stage))):
                if before is None or before not in group.scores:
                    continue
                new, old = group.scores[after], group.scores[before]
                changed = difference(new, old, found.of(new, after, group.task), found.of(old, before, group.task))
                if changed is not None:
                    yield Change(before, after, group, changed)


def _source(run: Run, stage: Stage) -> str | None:
    """The model of the same line whose samples a stage was trained on."""
    if stage.kind not in ("sft", "distill"):
        return None
    for name in stage.inputs:
        source = run.stages.get(name)
        if source and source.kind == "rejection_sample" and source.parent in run.stages and name != stage.parent:
            origin = source.parent or ""
            if origin != stage.parent and run.root(origin) == run.root(stage.name):
                return origin
    return None


def _gain(run: Run, table: Table, changes: list[Change], found: Outcomes) -> Iterator[Finding]:
    """The largest gain of the main line on the main task, and what guessing would score."""
    group, root = table.main(), main_root(run)
    if group is None:
        return
    chance = _chance(found.chance(group.task))
    here = [change for change in changes if change.group is group and run.root(change.after) == root]
    best = max(here, key=lambda change: change.difference.value, default=None)
    if best is None:
        return
    task = clean(group.task)
    if best.difference.value > 0 and best.difference.clear(len(here)):
        score, points = group.scores[best.after].values["pass@1"], percent(best.difference.value)
        text = f"`{clean(best.after)}` solves {percent(score)} % of {task}, {points} points more than"
        text += f" `{clean(best.before)}` {best.interval()}"
        yield Finding(Concern.GAIN, f"{text}{chance}.", best.difference.value)
    else:
        text = f"No stage is clearly better on {task} than the model that it was made from"
        yield Finding(Concern.NO_GAIN, f"{text}{chance}: train longer, or look whether the reward rises.")


def _chance(share: float | None) -> str:
    if share is None:
        return ""
    scored = "under 1" if share < 0.01 else percent(share)
    return f"; always giving the commonest right answer would score {scored} %"


def _regressions(run: Run, changes: list[Change]) -> Iterator[Finding]:
    for change in changes:
        if change.difference.value < 0 and change.difference.clear(len(changes)):
            before, after = (change.group.scores[name].values["pass@1"] for name in (change.before, change.after))
            yield Finding(
                Concern.REGRESSION,
                f"`{clean(change.after)}` falls to {percent(after)} % of {clean(change.group.task)} from the"
                f" {percent(before)} % of `{clean(change.before)}`, a loss of"
                f" {percent(-change.difference.value)} points {change.interval()}"
                f"{_remedy(run.stages[change.after], run, change.group.task)}.",
                -change.difference.value,
            )


def _remedy(stage: Stage, run: Run, task: str) -> str:
    """What to change where a stage was trained without the task that it lost."""
    name, field = clean(stage.name), "tasks" if stage.kind == "grpo" else "data"
    known = _tasks(stage) | {task for name in stage.inputs if name in run.stages for task in _tasks(run.stages[name])}
    if not known or task_name(task) in known:
        return ""
    return f"; it was trained without that task: add some of it to `stages.{name}.{field}`"


def _tasks(stage: Stage) -> set[str]:
    specs = stage.config.get("tasks")
    if not isinstance(specs, list):
        return set()
    return {task_name(str(mapping(spec).get("use") if isinstance(spec, Mapping) else spec)) for spec in specs}


def _cut_off(run: Run, table: Table) -> Iterator[Finding]:
    """Answers that end at the limit: in evaluations (a base model's own last), and in reinforcement learning."""
    for group in table.groups:
        limit = _limit(group.sampling.get("max_tokens"))
        for model, score in group.scores.items():
            trained = model in run.stages and run.root(model) != model
            if (share := score.values.get("truncated", 0.0)) >= CUT_OFF:
                yield _cut(f"`{clean(model)}`'s answers to {clean(group.task)}", share, score.stage, limit, trained)
    for stage in run.stages.values():
        if stage.kind == "grpo" and (share := _ends(stage, "completions/clipped_ratio")[1] or 0.0) >= CUT_OFF:
            limit = _limit(mapping(stage.config.get("rollout")).get("max_tokens"))
            yield _cut(f"the answers at the end of `{clean(stage.name)}`", share, stage.name, limit, trained=True)


def _limit(tokens: object) -> str:
    return "" if (most := finite(tokens)) is None else f" at {most:,.0f} tokens"


def _cut(what: str, share: float, stage: str, limit: str, trained: bool) -> Finding:
    text = f"{percent(share, 0)} % of {what} are cut off{limit}: raise `stages.{clean(stage)}.rollout.max_tokens`."
    return Finding(Concern.CUT_OFF, text, share + trained)


def _failures(run: Run) -> Iterator[Finding]:
    """Stages that are not finished and whose log ends with an error."""
    for stage in run.stages.values():
        lines = log_tail(stage).splitlines() if stage.state is State.UNFINISHED else []
        said = next((line for line in reversed(lines) if FAILURE.fullmatch(line)), None)
        if said is not None and said in lines[-3:]:
            shown = clean(said).replace("`", "'")
            shown = shown if len(shown) <= LONGEST_FAILURE else shown[: LONGEST_FAILURE - 1] + "…"
            yield Finding(Concern.FAILED, f"`{clean(stage.name)}` failed with `{shown}`.")


def _alarms(run: Run) -> Iterator[Finding]:
    """The first alarm of each stage; the more there were, the worse. What other rules find is left to them."""
    for stage in run.stages.values():
        raised = [row for row in rows(stage, "events.jsonl") if row.get("alarm") and row["alarm"] not in TOLD_OTHERWISE]
        if not raised or stage.state is not State.FINISHED:  # one that was stopped has failed with it
            continue
        first, times = raised[0], len({row.get("step") for row in raised})
        at = f"after step {number(finite(first.get('step')) or 0.0)}"
        raised_it = f"an alarm {at}" if times == 1 else f"{times} alarms, the first {at}"
        text = f"`{clean(stage.name)}` raised {raised_it}"
        text += f": {clean(str(first.get('reason', first['alarm']))).replace('`', chr(39))}"
        if any("rollback_to" in row for row in raised):
            text += "; it went back to an earlier checkpoint"
        if any(row.get("kept") for row in raised):
            text += f"; `zero2r1 why runs/{clean(run.path.name)}@{clean(stage.name)}` says what makes it go away"
        yield Finding(Concern.ALARM, f"{text}.", times)


def _flat(run: Run) -> Iterator[Finding]:
    """Reinforcement learning whose reward did not rise by more than its own scatter, with room left above."""
    for stage in run.stages.values():
        if stage.kind != "grpo" or stage.state is not State.FINISHED:
            continue
        values = _logged(stage, "reward")
        accuracy = _ends(stage, "rewards/accuracy/score")[1] or _ends(stage, "rewards/accuracy/mean")[1] or 0.0
        if len(values) < FEWEST_LOGGED or accuracy >= SOLVED:
            continue
        first, last = values[: len(values) // LAST], values[-(len(values) // LAST) :]
        scatter = math.sqrt(variance(first) / len(first) + variance(last) / len(last))
        if fmean(last) - fmean(first) <= 2 * scatter:
            yield Finding(
                Concern.FLAT,
                f"The reward of `{clean(stage.name)}` did not rise: {number(fmean(first))} at its beginning,"
                f" {number(fmean(last))} at its end. Look at its samples for what is rewarded.",
            )


def _few_kept(run: Run) -> Iterator[Finding]:
    for stage in run.stages.values():
        sampled, kept = finite(stage.metrics.get("sampled")), finite(stage.metrics.get("kept"))
        if stage.kind == "rejection_sample" and sampled and kept is not None and kept / sampled < FEW_KEPT:
            dropped = {why: finite(n) or 0.0 for why, n in mapping(stage.metrics.get("dropped")).items()}
            why = max(dropped, key=lambda reason: dropped[reason], default="")
            mostly = f", mostly dropped as {clean(str(why)).replace('_', ' ')}" if why else ""
            share = kept / sampled
            text = f"`{clean(stage.name)}` kept {percent(share)} % of {sampled:,.0f} samples{mostly}."
            yield Finding(Concern.FEW_KEPT, text, 1 - share)


def _dead_groups(run: Run) -> Iterator[Finding]:
    """Stages in whose last fourth nearly all groups have equal rewards, by the threshold of the stage's alarms."""
    for stage in run.stages.values():
        failed, equal = (_ends(stage, name)[1] for name in (FAILED, EQUAL))
        groups = Shares(failed or 0.0, equal or 0.0)
        if stage.kind == "grpo" and groups.dead >= health_of(stage).dead_groups:
            share, why = percent(groups.dead, 0), BECAUSE[groups.cause]
            text = f"{share} % of the groups at the end of `{clean(stage.name)}` teach nothing, because {why}."
            yield Finding(Concern.DEAD_GROUPS, text, groups.dead)


def _logged(stage: Stage, metric: str) -> list[float]:
    return [value for event in events(stage) if (value := finite(event.get(metric))) is not None]


def _ends(stage: Stage, metric: str) -> tuple[float | None, float | None]:
    """The mean over the first and over the last fourth of the logged steps."""
    values = _logged(stage, metric)
    size = max(1, len(values) // LAST)
    return (fmean(values[:size]), fmean(values[-size:])) if values else (None, None)
