"""Showing a run to people: a live table on a terminal, plain lines in a log, JSON lines for machines."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from pipeline.artifacts import Artifact
from pipeline.commands.in_order import InOrder
from pipeline.commands.pace import Course, clock
from pipeline.runner.graph import Node, State, Step
from pipeline.runner.observer import NOTE, Failure, Observer

PLAIN_INTERVAL_SECONDS = 5.0
"""Between two lines of one stage where output is no terminal."""
_QUIET = frozenset({"step", "total", "time", "epoch"})
_PREFERRED = {
    "reward": "reward",
    "rewards/accuracy/score": "acc",
    "completions/mean_length": "len",
    "loss": "loss",
    "frac_reward_zero_std": "dead",
    "kl": "kl",
    "pass@1": "pass@1",
    "kept": "kept",
    "tokens_per_second": "tok/s",
}
"""Metrics shown first, and what they are called in a line of 80 characters."""
_SHOWN = 3
"""Metrics of a step that are shown; `events.jsonl` has all of them."""
_WIDE = 110
"""Columns from which on a terminal has room for wide bars and the time that has passed."""
_LONGEST_NAME = 10
"""Characters of a stage's name beside its bar."""
_COLOUR = {
    State.FRESH: "green",
    State.INTERRUPTED: "yellow",
    State.STALE: "yellow",
    State.NEW: "cyan",
    State.DAMAGED: "red",
}


def plan_table(steps: Sequence[Step], gpus: Mapping[str, object] | None = None) -> Table:
    """The plan as a table: stage, kind, GPUs (by the stage's name) if any are wanted, what will happen, why."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "kind", *(["GPUs"] if gpus else []), "", "why"):
        table.add_column(column, overflow="fold")
    for step in steps:
        verb = {State.FRESH: "fresh", State.INTERRUPTED: "resume", State.DAMAGED: "damaged"}.get(step.state, "run")
        placed = [Text(str(gpus[step.node.name]))] if gpus else []
        what = Text(verb, _COLOUR[step.state]), Text(step.reason)
        table.add_row(Text(step.node.name), Text(step.node.config.kind), *placed, *what)
    return table


@contextlib.contextmanager
def observer(
    console: Console, as_json: bool, expected: Mapping[str, float] = MappingProxyType({})
) -> Iterator[Observer]:
    """The observer that suits where the output goes: JSON lines, a live terminal, or a log.

    Args:
        console: where it goes.
        as_json: whether as JSON lines.
        expected: seconds of a step of stages of which that is known beforehand.
    """
    if as_json:
        yield InOrder(JsonObserver(console))
    elif console.is_terminal:
        with TerminalObserver(console, expected) as live:
            yield InOrder(live)
    else:
        yield InOrder(PlainObserver(console, expected))


class TerminalObserver:
    """Progress bars with the latest metrics, for a terminal."""

    def __init__(self, console: Console, expected: Mapping[str, float] = MappingProxyType({})) -> None:
        self.console, self.course, self.expected = console, Course(), expected
        wide = console.width >= _WIDE
        name = Column(no_wrap=True, overflow="ellipsis", max_width=None if wide else _LONGEST_NAME)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", style="bold", markup=False, table_column=name),
            BarColumn(bar_width=24 if wide else 8),
            MofNCompleteColumn(),
            *([TimeElapsedColumn()] if wide else []),
            TextColumn("{task.fields[left]}", style="progress.remaining", markup=False),
            TextColumn("{task.fields[metrics]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
        )
        self.rows: dict[str, TaskID] = {}
        self.whole: TaskID | None = None

    def __enter__(self) -> TerminalObserver:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def planned(self, steps: Sequence[Step]) -> None:
        """Say how much there is to do."""
        self.console.print(self.course.planned(steps))
        if self.course.stages > self.course.done:
            self.whole = self.progress.add_task("the run", total=self.course.stages, left="", metrics="")
            self._show_course()

    def started(self, node: Node, state: State) -> None:
        """Add a row."""
        self.rows[node.name] = self.progress.add_task(node.name, total=None, left="", metrics="starting")
        self.course.started(node.name)
        self._show_course()
        if text := _outlook(node, self.expected):
            self._tell("·", "cyan", f"{node.name}  {text}")

    def _show_course(self) -> None:
        if self.whole is not None:
            self.progress.update(self.whole, completed=self.course.done, metrics=str(self.course))

    def event(self, node: Node, event: Mapping[str, Any]) -> None:
        """Update a row."""
        if (note := event.get(NOTE)) is not None:
            self._tell("!", "yellow", f"{node.name}  {note}")
            return
        step, total = event["step"], event.get("total")
        left = self.course.see(node.name, event)
        soon = "" if left is None else f"-{clock(left)}"
        row, text = self.rows[node.name], metrics_text(event)
        self.progress.update(row, completed=step, total=total, left=soon, metrics=text)
        self._show_course()

    def said(self, text: str) -> None:
        """A line that stays."""
        self._tell("!", "yellow", text)

    def finished(self, node: Node, artifact: Artifact) -> None:
        """Replace the row by a line that stays."""
        self.progress.remove_task(self.rows.pop(node.name))
        self.course.ended(node.name, artifact.manifest["seconds"])
        self._show_course()
        self._tell("✓", "green", f"{node.name}  {artifact.manifest['seconds']:.1f} s  {headline(artifact)}")

    def restarted(self, node: Node, message: Failure) -> None:
        """Say why, and begin the row anew."""
        self._tell("↻", "yellow", f"{node.name}  {message.again}")
        self.progress.update(self.rows[node.name], metrics="starting again")

    def failed(self, node: Node, message: str) -> None:
        """Replace the row, if the stage has begun at all, by what went wrong."""
        if (row := self.rows.pop(node.name, None)) is not None:
            self.progress.remove_task(row)
        self.course.ended(node.name)
        self._tell("✗", "red", node.name)

    def _tell(self, mark: str, colour: str, text: str) -> None:
        """A line that stays. What recipes and models say is text, also where it looks like rich's markup."""
        self.console.print(Text.assemble((mark, colour), f" {text}"))


class PlainObserver:
    """One line a stage every few seconds, for logs."""

    def __init__(self, console: Console, expected: Mapping[str, float] = MappingProxyType({})) -> None:
        self.console, self.course, self.expected = console, Course(), expected
        self.shown: dict[str, float] = {}

    def planned(self, steps: Sequence[Step]) -> None:
        """Say how much there is to do."""
        self._print(self.course.planned(steps))

    def started(self, node: Node, state: State) -> None:
        """Say so, and how far the run is."""
        self.course.started(node.name)
        self._print(f"{node.name}: {'resumed' if state is State.INTERRUPTED else 'started'}  {self.course}")
        if text := _outlook(node, self.expected):
            self._print(f"{node.name}: {text}")

    def event(self, node: Node, event: Mapping[str, Any]) -> None:
        """Print the main metrics in a short line, unless one of this stage was printed just now."""
        if (note := event.get(NOTE)) is not None:
            self._print(f"{node.name}: {note}")
            return
        left = self.course.see(node.name, event)
        now, last = time.monotonic(), event["step"] == event.get("total") or bool(held_out(event))
        if last or now - self.shown.get(node.name, 0.0) >= PLAIN_INTERVAL_SECONDS:
            self.shown[node.name] = now
            soon = "" if not left else f"  {clock(left)} left"
            self._print(f"{node.name}: {event['step']}/{event.get('total') or '?'}  {metrics_text(event)}{soon}")

    def said(self, text: str) -> None:
        """Print it."""
        self._print(text)

    def finished(self, node: Node, artifact: Artifact) -> None:
        """Say how long it took and what came out."""
        self.course.ended(node.name, artifact.manifest["seconds"])
        self._print(f"{node.name}: finished in {artifact.manifest['seconds']:.1f} s  {headline(artifact)}")

    def restarted(self, node: Node, message: Failure) -> None:
        """Say why."""
        self._print(f"{node.name}: {message.again}")

    def failed(self, node: Node, message: str) -> None:
        """Say so; the error itself is printed at the end."""
        self.course.ended(node.name)
        self._print(f"{node.name}: failed")

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class JsonObserver:
    """One JSON object a line on standard output."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def planned(self, steps: Sequence[Step]) -> None:
        """`{"event": "planned", "stages": {name: state}}`."""
        self._emit("planned", stages={step.node.name: step.state.value for step in steps})

    def started(self, node: Node, state: State) -> None:
        """`{"event": "started", "stage": …, "resumed": …}`."""
        self._emit("started", stage=node.name, resumed=state is State.INTERRUPTED)

    def event(self, node: Node, event: Mapping[str, Any]) -> None:
        """`{"event": "progress", "stage": …, "step": …, …}`."""
        self._emit("progress", stage=node.name, **event)

    def said(self, text: str) -> None:
        """`{"event": "said", "message": …}`."""
        self._emit("said", message=text)

    def finished(self, node: Node, artifact: Artifact) -> None:
        """`{"event": "finished", "stage": …, "path": …, "seconds": …, "metrics": …}`."""
        manifest = artifact.manifest
        self._emit(
            "finished",
            stage=node.name,
            path=str(artifact.path),
            seconds=manifest["seconds"],
            metrics=manifest["metrics"],
        )

    def restarted(self, node: Node, message: Failure) -> None:
        """`{"event": "restarted", "stage": …, "message": …}`."""
        self._emit("restarted", stage=node.name, message=message)

    def failed(self, node: Node, message: str) -> None:
        """`{"event": "failed", "stage": …, "message": …}`."""
        self._emit("failed", stage=node.name, message=message)

    def _emit(self, event: str, **values: Any) -> None:
        self.console.file.write(json.dumps({"event": event, **values}, ensure_ascii=False) + "\n")
        self.console.file.flush()


def _outlook(node: Node, expected: Mapping[str, float]) -> str:
    """What a stage is about to do, and how long a step of it should take."""
    launch = node.config.launch
    processes = launch.gpus if launch.accelerate and isinstance(launch.gpus, int) and launch.gpus else 1
    text = node.config.outlook(processes)
    if text and launch.accelerate and processes == 1:
        text = f"each process: {text}"
    seconds = expected.get(node.name)
    return f"{text}. A step should take about {seconds:.3g} s" if text and seconds else text


def metrics_text(event: Mapping[str, Any]) -> str:
    """The main numbers of an event as text: preferred ones, or else those that come first."""
    if told := held_out(event):
        return "  ".join(told)
    known = [name for name in _PREFERRED if name in event]
    others = [
        name for name in event if name not in _PREFERRED and name not in _QUIET and isinstance(event[name], int | float)
    ]
    shown = (known or others)[:_SHOWN]
    return "  ".join(f"{_PREFERRED.get(name, name.rpartition('/')[2])} {_short(event[name])}" for name in shown)


def held_out(event: Mapping[str, Any]) -> list[str]:
    """Held-out scores of an event as text, each with its interval and the number of problems."""
    names = [name.removesuffix("/pass@1") for name in event if name.startswith("watch/") and name.endswith("/pass@1")]
    return [
        f"{name.removeprefix('watch/')} {event[f'{name}/pass@1']:.1%}"
        f" [{event[f'{name}/low']:.1%}, {event[f'{name}/high']:.1%}] (n={event[f'{name}/n']})"
        for name in names
    ]


def _short(value: Any) -> str:
    """A number in a few characters."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def headline(artifact: Artifact) -> str:
    """The few numbers of a finished stage that fit on a line."""
    metrics = artifact.manifest["metrics"]
    scores = metrics.get("scores")
    if isinstance(scores, Mapping):
        return "  ".join(
            f"{model} {task} {entry['pass@1']:.1%} (n={entry['n']})"
            for model, by_task in scores.items()
            for task, entry in by_task.items()
        )
    return "  ".join(f"{name} {_number(value)}" for name, value in metrics.items() if isinstance(value, int | float))


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
