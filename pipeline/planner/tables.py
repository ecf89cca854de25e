"""What `zero2r1 cost` and `zero2r1 plan --cost` print; everything fits 80 columns."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.cost import memory, programme
from pipeline.cost.bill import Assumption, Bill
from pipeline.cost.hardware import Cluster
from pipeline.cost.shape import Shape
from pipeline.planner.estimate import Estimate

TOO_LARGE = "!"
NARROW = 80
"""Columns where the output is no terminal."""


def show(parts: Iterable[RenderableType]) -> None:
    """Print tables and lines."""
    console = Console(width=None if sys.stdout.isatty() else NARROW, highlight=False, markup=False)
    for part in parts:
        console.print(part)


def count(value: float) -> str:
    """A number with three digits and its letter: 671B, 14.8T, 494M."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}" if value < 999.5 * size else f"{value / size:.0f}{letter}"
    return f"{value:.3g}"


def gigabytes(size: float) -> str:
    """Bytes in GB, of 10^9."""
    return f"{size / 1e9:.1f}"


def hours(value: float) -> str:
    """GPU-hours: in thousands and millions where they are many."""
    return f"{value:.3g}" if value < 1000 else f"{value / 1e3:,.1f}K" if value < 1e6 else f"{value / 1e6:.3f}M"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    if seconds < 0.1:
        return f"{seconds * 1e3:.2g} ms"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def money(usd: float) -> str:
    """US dollars; nothing where no price is known."""
    if not usd:
        return "-"
    return f"${usd:,.2f}" if usd < 100 else f"${usd:,.0f}" if usd < 1e6 else f"${usd / 1e6:.3f}M"


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A plain table; columns whose head ends with `>` are numbers."""
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    table.title_style = "bold"
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.removesuffix(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def bill(name: str, shape: Shape, found: Bill, length: int) -> Iterator[RenderableType]:
    """The bill of a pre-training."""
    parameters = shape.parameters
    yield Text(
        f"{name}: {count(parameters.total)} parameters, {count(parameters.active)} active; {count(found.tokens)} tokens"
        f" on {found.cluster}"
    )
    total = sum(part.low for part in found.parts.values()), sum(part.high for part in found.parts.values())
    rows = [
        (
            part_name.replace("_", " "),
            hours(part.hours),
            f"{hours(part.low)}-{hours(part.high)}",
            money(part.hours * found.price),
            f"{part.hours / found.cluster.count / 24:.1f}",
            "" if part.published is None else hours(part.published.value),
        )
        for part_name, part in found.parts.items()
    ]
    rows.append(
        (
            "in all",
            hours(found.hours),
            f"{hours(total[0])}-{hours(total[1])}",
            money(found.usd),
            f"{found.days:.1f}",
            "",
        )
    )
    yield grid(["", "GPU-hours>", "range>", "cost>", "days>", "published>"], rows)
    yield Text("")
    yield grid(["routes to pre-training's hours", "GPU-hours>"], [(k, hours(v)) for k, v in found.routes.items()])
    yield Text("")
    each = found.a_token
    parts = [(part.name.replace("_", " "), getattr(each, part.name)) for part in fields(each)]
    yield grid(
        ["forward pass of a token", "GFLOP>", "share>"],
        [(part, f"{value / 1e9:.3g}", f"{value / each.total:.1%}") for part, value in parts if value],
    )
    yield Text("")
    yield from _held(shape, found, length)
    yield Text("")
    yield grid(["assumption", "value", "source"], [(line.what, line.value, line.source) for line in found.assumptions])
    if found.claims:
        yield Text("")
        yield grid(["published", "figure", "here", ""], [(c.what, c.published, c.ours, c.status) for c in found.claims])
        yield Text("")
        yield Text("Sources: " + "; ".join(dict.fromkeys(claim.source for claim in found.claims)))


def _held(shape: Shape, found: Bill, length: int) -> Iterator[RenderableType]:
    total, room = memory.total(found.memory), found.cluster.gpu.bytes
    rows = [(part, gigabytes(size)) for part, size in found.memory.items()]
    yield grid(["memory of a GPU", "GB>"], [*rows, (f"in all, of {gigabytes(room)}", gigabytes(total))])
    if total > room:
        fewest = programme.fewest_gpus(shape, found.cluster, length)
        yield Text(
            f"It does not fit: {fewest} GPUs of this kind are the fewest that hold it, divided by FSDP."
            if fewest is not None
            else "It does not fit by FSDP alone, however many GPUs: pipeline or expert parallelism is needed."
        )


def operations(value: float) -> str:
    """Floating-point operations: 1.2 EFLOP."""
    for letter, size in (("Y", 1e24), ("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {letter}F"
    return f"{value / 1e9:.3g} GF"


def plan(
    found: Sequence[Estimate],
    cluster: Cluster,
    price: float,
    notes: Sequence[Assumption],
    jobs: int = 1,
    at_once: float | None = None,
) -> Iterator[RenderableType]:
    """What the stages of a recipe take: all of them in a table, then each by part.

    Args:
        found: the stages.
        cluster: the GPUs.
        price: US dollars a GPU-hour.
        notes: what was assumed.
        jobs: how many stages may run at once.
        at_once: seconds of all of them so; `None` if they run one after the other.
    """
    planned = [each for each in found if not each.work.unknown]
    at = f"at ${price:g} a GPU-hour" if price else "whose price is not known here: --price"
    yield Text(f"On {cluster}, {gigabytes(cluster.gpu.bytes)} GB each, {at}")
    columns = ["stage", "model>", "tokens>", "FLOP>", "GB a GPU>", "time>", "GPU-h>", "cost>"]
    yield grid(columns, [_row(each, price) for each in planned])
    if any(not each.fits for each in planned):
        yield Text(f"{TOO_LARGE} does not fit: see the stage below", style="bold red")
    whole = sum(each.whole for each in planned)
    if at_once is not None and at_once < whole - 1:  # on one GPU they wait for each other
        yield _held_so_long(f"Up to {jobs} at once, as `jobs` says", at_once, cluster, price)
    yield _held_so_long("One after the other", whole, cluster, price)
    yield Text("Times are good to 30 % or so, memory to 15 %.")
    for each in planned:
        yield Text("")
        yield from _stage(each, cluster)
    if told := [(each.work.stage, each.work.unknown) for each in found if each.work.unknown]:
        yield Text("")
        yield grid(["not planned", ""], told)
    yield Text("")
    yield grid(["assumption", "value", "source"], [(line.what, line.value, line.source) for line in notes])


def _held_so_long(how: str, whole: float, cluster: Cluster, price: float) -> Text:
    held = whole * cluster.count / 3600
    paid = f", {money(held * price)}" if price else ""
    return Text(f"{how}: {duration(whole)}. The {cluster} held so long: {hours(held)} GPU-hours{paid}.")


def _row(each: Estimate, price: float) -> tuple[str, ...]:
    number = len(each.work.models)
    total = sum(shape.parameters.total for shape in each.work.models) / number
    return (
        each.work.stage,
        count(total) if number == 1 else f"{number} x {count(total)}",
        count(each.tokens),
        operations(sum(each.operations.values())),
        gigabytes(each.peak) + ("" if each.fits else f" {TOO_LARGE}"),
        duration(each.whole),
        hours(each.gpu_hours),
        money(each.gpu_hours * price),
    )


def _stage(each: Estimate, cluster: Cluster) -> Iterator[RenderableType]:
    work, lines = each.work, Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    gpus = f"{work.gpus} GPU{'s' if work.gpus != 1 else ''}"
    sizes = dict.fromkeys(f"{count(m.parameters.total)} ({count(m.parameters.active)} active)" for m in work.models)
    yield Text(f"{work.stage}: {work.kind} on {gpus}, {', '.join(sizes)}", style="bold")
    for role, parts in each.memory.items():
        told = ", ".join(f"{part} {gigabytes(size)}" for part, size in parts.items())
        whole = f"{gigabytes(memory.total(parts))} of {gigabytes(cluster.gpu.bytes)} GB"
        lines.add_row(Text(f"  {role}"), Text(f"{whole}: {told}"))
    steps = f"{work.steps:,} of {duration(each.seconds['step'])}" if work.training is not None else "sampling alone"
    told = ", ".join(f"{part} {duration(value)}" for part, value in each.seconds.items() if part != "step")
    lines.add_row(Text("  steps"), Text(f"{steps}: {told}"))
    if (watching := work.watching) is not None:
        told = f"{watching.looks:,} looks of {duration(each.watching)} at {watching.sampling.rollouts:,} completions"
        lines.add_row(Text("  watching"), Text(told))
    if work.saves:
        lines.add_row(Text("  checkpoints"), Text(f"{work.saves:,} of {duration(each.writing)}"))
    phases = ", ".join(f"{phase} {operations(value)}" for phase, value in each.operations.items())
    lines.add_row(Text("  FLOP"), Text(phases))
    for line in work.assumptions:
        lines.add_row(Text(f"  {line.what}", style="dim"), Text(f"{line.value} ({line.source})", style="dim"))
    if not each.fits:
        lines.add_row(Text(f"  {TOO_LARGE} too large", style="bold red"), Text(fitting(each), style="bold red"))
    yield lines


def fitting(each: Estimate) -> str:
    """What would make a stage fit, in a sentence."""
    if not each.remedy and (weights := max(parts.get("engine weights", 0.0) for parts in each.memory.values())):
        where = "a server elsewhere (rollout.server) or engine_options.tensor_parallel_size would hold them"
        return f"Nothing here makes it fit. The engine's weights take {gigabytes(weights)} GB: {where}."
    if not each.remedy:
        return "No setting that is known here makes it fit, nor more GPUs of this kind."
    return f"The smallest change that fits: {' '.join(each.remedy)}"
