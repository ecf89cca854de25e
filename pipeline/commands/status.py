"""How far a run is: every stage with its state, time and main numbers, read from disk alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.cluster import attempt
from pipeline.cluster import hosts as cluster
from pipeline.commands.display import headline, metrics_text
from pipeline.files import lease
from pipeline.files.lease_folder import Folder
from pipeline.report.timeline import work_share
from pipeline.runner.observer import NOTE
from pipeline.runner.starting import PLACED

SPEED = "tokens_per_second"


def status(run: Path) -> list[dict[str, Any]]:
    """One entry a stage: name, kind, state (`finished`, `unfinished`, `waiting`), seconds, metrics, last event, GPUs.

    An unfinished one has what `runner` says, if the run was not given back. The GPUs are those that the stage has or
    had, and how many it needs where it has not begun; the hosts of a cluster are those that it runs or ran on.
    """
    rows, works = [], runner(run)
    for stage in artifacts.record(run)["stages"]:
        row: dict[str, Any] = {"stage": stage["name"], "kind": stage["kind"], "state": "waiting"}
        artifact = artifacts.find(run, stage["name"], stage["fingerprint"])
        scratch = artifacts.scratch(run, stage["name"], stage["fingerprint"])
        if artifact is not None:
            row |= {"state": "finished", "seconds": artifact.manifest["seconds"], "path": str(artifact.path)}
            if (work := artifact.manifest.get("work_seconds")) is not None:
                row["work_seconds"] = work
            row |= {"metrics": artifact.manifest["metrics"], "summary": headline(artifact)}
        elif scratch.exists():
            events = _events(scratch / "events.jsonl")
            event = events[-1] if events else {}
            row |= {"state": "unfinished", "path": str(scratch), "last": event}
            row |= {"runner": works} if works is not None else {}
            row["summary"] = f"{event['step']}/{event.get('total') or '?'}  {metrics_text(event)}" if event else ""
            if (speed := next((old[SPEED] for old in reversed(events) if SPEED in old), None)) is not None:
                row[SPEED] = speed  # not every line has it, and a line with many numbers does not show it
                row["summary"] += "" if "tok/s" in row["summary"] else f"  tok/s {speed:,.0f}"
        ran_on = attempt.read(scratch).get("hosts", ()) if artifact is None else artifact.manifest.get("hosts", ())
        if ran_on:
            row["hosts"] = [host["name"] for host in ran_on]
        if gpus := _gpus(stage, artifact, scratch):
            row["gpus"] = gpus
        rows.append(row)
    return rows


def status_table(rows: list[dict[str, Any]]) -> Table:
    """The same as a table for a terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    placed, hosted = any("gpus" in row for row in rows), any("hosts" in row for row in rows)
    extra = [*(["hosts"] if hosted else []), *(["GPUs"] if placed else [])]
    for column in ("stage", "kind", *extra, "state", "seconds", ""):
        table.add_column(column, overflow="fold", justify="right" if column == "seconds" else "left")
    colours = {"finished": "green", "unfinished": "yellow", "waiting": "dim"}
    for row in rows:
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        state = Text(row["state"], colours[row["state"]])
        gpus = row.get("gpus", "")
        where = [Text(", ".join(dict.fromkeys(row.get("hosts", ()))))] if hosted else []
        where += [Text(gpus if isinstance(gpus, str) else ", ".join(gpus))] if placed else []
        table.add_row(Text(row["stage"]), Text(row["kind"]), *where, state, seconds, Text(row.get("summary", "")))
    if (share := work_share(rows)) is not None:
        table.caption = f"{share:.0%} of the time of finished stages in training steps and sampling"
        table.caption_justify = "left"
    return table


def runner(run: Path) -> dict[str, Any] | None:
    """The process of `zero2r1 run` that works on a run, or did and was lost: pid, host, since when, seconds silent.

    The seconds are by this host's clock and that of the file system.
    """
    place = Folder(run)
    if (seen := lease.newest(place)) is None or seen.over:
        return None
    try:
        silent = max(0.0, time.time() - place.path(seen.number).stat().st_mtime)
    except FileNotFoundError:  # given to another one just now
        return None
    return {"pid": seen.pid, "host": seen.host.name, "since": seen.since, "silent_seconds": round(silent, 1)}


def runner_line(works: Mapping[str, Any]) -> str:
    """What `runner` says, in words."""
    whom, silent = f"process {works['pid']} on host {works['host']}", works["silent_seconds"]
    if silent <= lease.SILENT_SECONDS:
        since = f" since {works['since']}" if works["since"] else ""
        return f"{whom} works on this run{since}; its last sign of life is {silent:.0f} s old"
    return (
        f"{whom} has given no sign of life for {silent:.0f} s: if it is gone, the same `zero2r1 run` goes on from the"
        " last checkpoints, here or on another host"
    )


def cluster_table(run: Path, rows: list[dict[str, Any]]) -> Table | None:
    """The hosts of a run's cluster, as a stage last found them, with the unfinished stages on each."""
    if not (hosts := cluster.recorded(run)):
        return None
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("host", "address", "cores", "GPUs", "unfinished stages"):
        table.add_column(column, overflow="fold", justify="right" if column in ("cores", "GPUs") else "left")
    for host in hosts:
        here = [row["stage"] for row in rows if row["state"] == "unfinished" and host.name in row.get("hosts", ())]
        told = (host.name, host.address, str(host.cpus), str(host.gpus), ", ".join(here))
        table.add_row(*map(Text, told))
    return table


def _gpus(stage: Mapping[str, Any], artifact: Artifact | None, scratch: Path) -> list[str] | str:
    """The names of a stage's GPUs, or in words how many it needs; nothing where there were none."""
    if artifact is not None:
        return list(artifact.manifest.get("gpus", ()))
    if (scratch / PLACED).is_file():
        return list(json.loads((scratch / PLACED).read_text(encoding="utf-8")))
    wanted = str(stage.get("gpus", "0"))
    return "" if wanted == "0" else f"needs {wanted}"


def _events(path: Path) -> list[dict[str, Any]]:
    """What a stage has logged, without notes and lines that are broken."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        if NOTE not in event:
            events.append(event)
    return events
