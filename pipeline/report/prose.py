"""One paragraph in plain words about what a run shows, computed from its numbers.

For example: "`zero` answers 81.3 % of chain/test (95 % CI 77.2–84.9) against 27.0 % of `base`, and writes 2.1× as many
tokens." Names of stages stand between backticks. Where two intervals overlap, it says so.
"""

from __future__ import annotations

from collections import Counter

from pipeline.report.run_data import Run, Stage, State, parameters
from pipeline.report.scores import Group, Score, Table
from pipeline.report.text import clean, duration, interval, percent
from pipeline.report.timeline import busy_seconds, work_share

SAME_LENGTH = 0.05  # a change of length below 5 % is called none
CHANCE = " (the two intervals overlap, so this may be chance)"
MODEL_KINDS = ("grpo", "sft", "distill")


def paragraph(run: Run, table: Table) -> str:
    """The paragraph; stage names between backticks."""
    sentences = [progress(run)]
    group = table.main()
    if group is None:
        sentences.append("No evaluation has finished, so there is no score to show.")
    else:
        sentences += _chain(run, group) + _students(run, group)
    first, mark, rest = " ".join(sentences).partition(CHANCE)  # the first time it is explained
    return first + mark + rest.replace(CHANCE, " (the intervals overlap)")


def progress(run: Run) -> str:
    """How far the run got, in one or two sentences."""
    stages = list(run.stages.values())
    done = [stage for stage in stages if stage.state is State.FINISHED]
    took = f" in {duration(busy_seconds(run))}" if done else ""
    if (share := work_share(stage.manifest for stage in done)) is not None:
        took += f", {percent(share, 0)} % of it in training steps and sampling"
    if len(done) == len(stages):
        return f"{'All' if len(stages) > 1 else 'The'} {_count(len(stages))} finished{took}."
    text = f"{len(done)} of {_count(len(stages))} finished{took}."
    for state, words in (
        (State.UNFINISHED, "began and did not finish yet"),
        (State.WAITING, "did not begin yet"),
    ):
        if names := [stage.name for stage in stages if stage.state is state]:
            text += f" {_names(names)} {words}."
    return text


def _chain(run: Run, group: Group) -> list[str]:
    """What reinforcement learning made of the base, and what the rest of the chain made of it."""
    shown = {model: score for model, score in group.scores.items() if _accuracy(score) is not None}
    line = [name for name in run.stages if name in shown and run.root(name) == main_root(run)]
    zero = next((name for name in line if run.stages[name].kind == "grpo" and run.stages[name].parent in shown), None)
    if zero is None:
        return _plainly(group, shown)
    base = run.stages[zero].parent or ""
    against = f"{_share(shown[base])} of {_names([base])}{_chance(shown[zero], shown[base])}"
    sentences = [f"{_answers(zero, group)} against {against}{_lengths(group, zero, base)}."]
    if line[-1] != zero:
        sentences.append(f"At the end of the chain, {_answers(line[-1], group)}: {_points(group, line[-1], zero)}.")
    return sentences


def _plainly(group: Group, shown: dict[str, Score]) -> list[str]:
    best = max(shown, key=lambda model: _accuracy(shown[model]) or 0.0)
    text = _answers(best, group)
    return [f"{text}, the best of {len(shown)} evaluated models." if len(shown) > 1 else f"{text}."]


def _students(run: Run, group: Group) -> list[str]:
    """What the teacher's samples made of a smaller model, and what reinforcement learning alone makes of it."""
    return [
        _student(run, group, name, teacher)
        for name, stage in run.stages.items()
        if _accuracy(group.scores.get(name)) is not None and (teacher := teacher_of(run, stage)) is not None
    ]


def _student(run: Run, group: Group, name: str, teacher: str) -> str:
    score = group.scores[name]
    text = f"The student, {_names([name])},{_smaller(run, name, teacher)} answers {_with_interval(score)}"
    reached = _accuracy(group.scores.get(teacher))
    if reached:
        text += f", {percent(score.values['pass@1'] / reached, 0)} % of what its teacher {_names([teacher])} reaches"
    parent = run.stages[name].parent
    for other in run.stages.values():
        if other.kind == "grpo" and other.parent == parent and _accuracy(group.scores.get(other.name)) is not None:
            alone = group.scores[other.name]
            text += f"; reinforcement learning alone brings the same student ({_names([other.name])}) to "
            text += _with_interval(alone) + _chance(score, alone)
    return text + "."


def main_root(run: Run) -> str:
    """The base model from which most models of the run come."""
    trained = [name for name, stage in run.stages.items() if stage.kind in MODEL_KINDS]
    return Counter(run.root(name) for name in trained).most_common(1)[0][0] if trained else ""


def teacher_of(run: Run, stage: Stage) -> str | None:
    """The model of another line whose samples a stage was trained on, if there is one."""
    if stage.kind not in ("sft", "distill"):
        return None
    for name in stage.inputs:
        source = run.stages.get(name)
        teacher = source.parent if source else None
        if (
            source
            and teacher in run.stages
            and name != stage.parent
            and run.root(teacher or "") != run.root(stage.name)
        ):
            return teacher
    return None


def _answers(model: str, group: Group) -> str:
    return f"{_names([model])} answers {_with_interval(group.scores[model])} of {clean(group.task)}"


def _with_interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return _share(score)
    return f"{_share(score)} (95 % CI {interval(score.low, score.high)})"


def _share(score: Score) -> str:
    return f"{percent(score.values['pass@1'])} %"


def _accuracy(score: Score | None) -> float | None:
    return score.values.get("pass@1") if score else None


def _lengths(group: Group, after: str, before: str) -> str:
    new, old = (group.scores[model].values.get("tokens") for model in (after, before))
    if not new or not old:
        return ""
    if abs(new / old - 1) < SAME_LENGTH:
        return ", and writes as many tokens"
    return f", and writes {new / old:.1f}× as many tokens"


def _points(group: Group, after: str, before: str) -> str:
    difference = 100 * (group.scores[after].values["pass@1"] - group.scores[before].values["pass@1"])
    if round(abs(difference), 1) == 0:
        return f"as many as {_names([before])}"
    where = "above" if difference > 0 else "below"
    return (
        f"{abs(difference):.1f} points {where} {_names([before])}{_chance(group.scores[after], group.scores[before])}"
    )


def _chance(one: Score, other: Score) -> str:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return ""
    overlap = one.low <= other.high and other.low <= one.high
    return CHANCE if overlap else ""


def _smaller(run: Run, student: str, teacher: str) -> str:
    small, large = (parameters(run.stages[m]) if m in run.stages else None for m in (student, teacher))
    return f" with {percent(small / large, 0)} % of the parameters of {_names([teacher])}," if small and large else ""


def _count(stages: int) -> str:
    return f"{stages} stages" if stages > 1 else "one stage"


def _names(names: list[str]) -> str:
    quoted = [f"`{clean(name).replace('`', '')}`" for name in names]
    return ", ".join(quoted[:-1]) + " and " + quoted[-1] if len(quoted) > 1 else quoted[0]
