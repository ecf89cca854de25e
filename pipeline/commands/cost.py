"""`zero2r1 cost` and `plan --cost`: words in, words out. The arithmetic is in `pipeline.cost` and `.planner`."""

from __future__ import annotations

import json as json_module
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.generate import fail

if TYPE_CHECKING:
    from pipeline.cost.bill import Assumption, Bill
    from pipeline.cost.hardware import Cluster
    from pipeline.cost.shape import Shape
    from pipeline.cost.speed import Speed
    from pipeline.planner.earlier import Earlier
    from pipeline.planner.estimate import Estimate
    from pipeline.recipe import Recipe

GpusOption = Annotated[
    str | None, typer.Option(help="GPUs to plan for, such as 8xH100; those of this machine if not given.")
]
ProbeOption = Annotated[bool, typer.Option("--probe", help="Measure this machine first, which takes a minute.")]
PromptOption = Annotated[
    float | None, typer.Option(min=0.0, max=1e8, help="Tokens of a prompt, on average; 128 if not given.")
]
CompletionOption = Annotated[
    float | None,
    typer.Option(min=1.0, max=1e8, help="Tokens of a completion, on average; half of the limit if not given."),
]
PassRateOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Share of samples that rejection sampling keeps; all of them if not given."),
]
LikeOption = Annotated[
    Path | None,
    typer.Option(
        help="A run, whose finished stages say how long answers of stages with their names get, and how many are kept."
    ),
]
PriceOption = Annotated[float | None, typer.Option(min=0.0, max=1e6, help="US dollars a GPU-hour.")]
NOTHING = "the recipe has no stage that computes anything"
WITHOUT_GPU = "H100"
"""What is planned for where there is no GPU and none is named."""


def cost(
    model: Annotated[str, typer.Argument(help="A preset (v3-671b), a model on the hub, or a folder with config.json.")],
    tokens: Annotated[str, typer.Option(help="Tokens to train on: 14.8T, 300B, 20M.")],
    gpus: Annotated[str, typer.Option(help="GPUs: 2048xH800, 8xH100.")],
    length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 4096,
    precision: Annotated[
        str | None, typer.Option(help="bf16 or fp8; fp8 for experts where the GPU has it, if not given.")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0.0, max=1e6, help="US dollars a GPU-hour; the middle of the GPU's range if not given."),
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Of a preset whose vocabulary is not published.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on standard output, for machines.")] = False,
) -> None:
    """What a pre-training costs: GPU-hours, money, days and memory, each assumption with its source."""
    from pipeline.cost import hardware, programme
    from pipeline.cost.bill import CostError
    from pipeline.planner import sizes, tables

    if precision not in (None, "bf16", "fp8"):
        fail(f"--precision: {precision!r} is neither bf16 nor fp8", code=2)
    try:
        shape = sizes.named(model, vocabulary=vocabulary)
        cluster, amount = hardware.cluster(gpus), programme.tokens_of(tokens)
        bill = programme.bill(shape, cluster, amount, length, precision, price, name=model)
    except (sizes.UnknownModelError, hardware.HardwareError, CostError) as error:
        fail(str(error), code=2)
    if json:
        typer.echo(json_module.dumps(as_json(model, shape, bill), indent=1, ensure_ascii=False))
    else:
        tables.show(tables.bill(model, shape, bill, length))


def as_json(model: str, shape: Shape, bill: Bill) -> dict[str, Any]:
    """A bill for machines."""
    parameters, operations = shape.parameters, bill.a_token
    held = {part: round(size) for part, size in bill.memory.items()}
    return {
        "model": model,
        "tokens": bill.tokens,
        "gpus": {"count": bill.cluster.count, "name": bill.cluster.gpu.name},
        "gpu_hours": round(bill.hours, 1),
        "usd": round(bill.usd, 2),
        "days": round(bill.days, 2),
        "low": round(sum(part.low for part in bill.parts.values()), 1),
        "high": round(sum(part.high for part in bill.parts.values()), 1),
        "parts": {
            name: {
                "gpu_hours": round(part.hours, 1),
                "usd": round(part.hours * bill.price, 2),
                "days": round(part.hours / bill.cluster.count / 24, 2),
                "low": round(part.low, 1),
                "high": round(part.high, 1),
                "published": None if part.published is None else part.published.value,
                "rests_on": part.how,
            }
            for name, part in bill.parts.items()
        },
        "routes": {name: round(hours, 1) for name, hours in bill.routes.items()},
        "parameters": {"total": parameters.total, "active": parameters.active, "mtp": parameters.mtp},
        "flops_a_token": {"forward": asdict(operations), "training": 3 * operations.total},
        "memory": {"bytes_a_gpu": held, "total": sum(held.values()), "gpu": bill.cluster.gpu.bytes},
        "assumptions": [asdict(line) for line in bill.assumptions],
        "published": [asdict(claim) for claim in bill.claims],
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """The options that go with `plan --cost`."""

    gpus: str | None
    probe: bool
    prompt: float | None
    completion: float | None
    pass_rate: float | None
    like: Path | None
    price: float | None


def plan_options(cost: bool, asked: Asked) -> Asked | None:
    """The options of `plan --cost`; `None` without `--cost`, beside which the others would have no effect."""
    told = {"--gpus": asked.gpus, "--probe": asked.probe or None, "--prompt-tokens": asked.prompt}
    told |= {"--price": asked.price, "--completion-tokens": asked.completion}
    told |= {"--pass-rate": asked.pass_rate, "--like": str(asked.like) if asked.like is not None else None}
    given = [name for name, value in told.items() if value is not None]
    if given and not cost:
        fail(f"{given[0]} has an effect only with --cost", code=2)
    if asked.pass_rate == 0:
        fail("--pass-rate 0 keeps no sample, and a stage of rejection sampling fails then", code=2)
    if asked.gpus is not None and asked.probe:
        fail("--probe measures this machine, and --gpus names another: leave one out", code=2)
    return asked if cost else None


def plan_cost(recipe: Recipe, folder: Path, asked: Asked, json: bool) -> None:
    """Print what the stages of a recipe take."""
    from pipeline.cost import hardware
    from pipeline.planner import earlier, left_out, side_by_side, stages, tables
    from pipeline.planner.estimate import estimate
    from pipeline.planner.work import Given

    try:
        cluster, rates, notes = _machine(asked)
    except hardware.HardwareError as error:
        fail(str(error), code=2)
    price = cluster.gpu.usd if asked.price is None else asked.price
    here = stages.finished(recipe, folder)
    before = {**_like(recipe, asked.like), **earlier.of(recipe, here, folder)}
    given = Given(
        cluster.count,
        cluster.gpu.bytes,
        Given().prompt if asked.prompt is None else asked.prompt,
        asked.completion,
        asked.prompt is not None,
        {name: artifact.path for name, artifact in here.items()},
        cluster.gpu.name == hardware.CPU,
        asked.pass_rate,
        before,
    )
    found = [estimate(work, cluster, rates) for work in stages.works(recipe, given)]
    if all(each.work.unknown for each in found):
        fail("; ".join(dict.fromkeys(each.work.unknown for each in found if each.work.gpus)) or NOTHING, code=2)
    notes = [*notes, _price(cluster, asked.price), *left_out.NOTES]
    notes += left_out.unsaid(found)
    at_once = side_by_side.seconds(found, recipe, cluster.count) if recipe.jobs > 1 else None
    if json:
        told = plan_json(found, cluster, price, notes)
        if at_once is not None:
            held = at_once * cluster.count / 3600
            of_all = {
                "seconds": round(at_once, 1),
                "gpu_hours": round(held, 4),
                "usd": round(held * price, 4),
            }
            told["side_by_side"] = {"jobs": recipe.jobs, **of_all}
        typer.echo(json_module.dumps(told, indent=1, ensure_ascii=False))
    else:
        tables.show(tables.plan(found, cluster, price, notes, recipe.jobs, at_once))


def _like(recipe: Recipe, run: Path | None) -> dict[str, Earlier]:
    """What the finished stages of a run say of a recipe's."""
    from pipeline import artifacts
    from pipeline.planner import earlier

    if run is None:
        return {}
    try:
        found = earlier.of(recipe, artifacts.current(run), run)
    except FileNotFoundError:
        fail(f"--like: {artifacts.no_run(str(run))}", code=2)
    except artifacts.RecordError as error:
        fail(f"--like: {error}", code=2)
    if not found:
        fail(f"--like: no finished stage of {run} samples, and has the name and kind of one of this recipe", code=2)
    return found


def _machine(asked: Asked) -> tuple[Cluster, Speed, list[Assumption]]:
    """What is planned for: the GPUs that are named, those that are here, or one of a usual kind."""
    from pipeline.cost import hardware, speed
    from pipeline.cost.bill import Assumption
    from pipeline.planner import found

    peaks = Assumption("peaks, memory", "dense, BF16", hardware.SOURCE)
    rates = Assumption("efficiencies", f"{speed.MEASURED.products:.0%} of the peak in training", speed.SOURCE)
    if asked.probe:
        from pipeline.planner import probe

        return probe.measured(found.gpus(), lambda line: typer.echo(line, err=True))
    if asked.gpus is not None:
        return hardware.cluster(asked.gpus), speed.MEASURED, [peaks, rates]
    if (here := found.gpus()) is not None:
        return here.cluster(), speed.MEASURED, [Assumption("GPUs", here.name, "those of this machine"), peaks, rates]
    usual = hardware.cluster(WITHOUT_GPU)
    return usual, speed.MEASURED, [Assumption("GPUs", str(usual), "no GPU is here: --gpus names others"), peaks, rates]


def _price(cluster: Cluster, given: float | None) -> Assumption:
    from pipeline.cost.bill import Assumption

    if given is not None:
        return Assumption("price", f"${given:g} a GPU-hour", "--price")
    low, high = cluster.gpu.price
    if not high:
        return Assumption("price", "not known", cluster.gpu.priced)
    span = f"${low:g}" if low == high else f"${cluster.gpu.usd:g}, the middle of ${low:g} to ${high:g}"
    return Assumption("price", span, cluster.gpu.priced)


def plan_json(
    found: Collection[Estimate], cluster: Cluster, price: float, notes: Collection[Assumption]
) -> dict[str, Any]:
    """What the stages of a recipe take, for machines."""
    whole = sum(each.whole for each in found)
    held = whole * cluster.count / 3600
    return {
        "gpus": {"count": cluster.count, "name": cluster.gpu.name, "bytes": cluster.gpu.bytes},
        "seconds": round(whole, 1),
        "gpu_hours": round(held, 4),
        "usd": round(held * price, 4),
        "fits": all(each.fits for each in found),
        "stages": [_stage_json(each, price) for each in found],
        "assumptions": [asdict(note) for note in notes],
    }


def _stage_json(each: Estimate, price: float) -> dict[str, Any]:
    work = each.work
    if work.unknown:
        return {"stage": work.stage, "kind": work.kind, "not_planned": work.unknown}
    sizes = [
        {"total": one.parameters.total, "active": one.parameters.active, "mtp": one.parameters.mtp}
        for one in work.models
    ]
    return {
        "stage": work.stage,
        "kind": work.kind,
        "gpus": work.gpus,
        "parameters": sizes,
        "steps": work.steps,
        "tokens": round(each.tokens),
        "flops": {phase: round(value) for phase, value in each.operations.items()},
        "memory": {role: {part: round(size) for part, size in parts.items()} for role, parts in each.memory.items()},
        "fits": each.fits,
        "smallest_change": list(each.remedy),
        "checkpoints": {"count": work.saves, "seconds": round(each.writing, 2)},
        "seconds_a_step": {part: round(value, 4) for part, value in each.seconds.items()},
        **_watching_json(each),
        "seconds": round(each.whole, 1),
        "gpu_hours": round(each.gpu_hours, 4),
        "usd": round(each.gpu_hours * price, 4),
        "assumptions": [asdict(line) for line in work.assumptions],
    }


def _watching_json(each: Estimate) -> dict[str, Any]:
    if (watching := each.work.watching) is None:
        return {}
    told = {"looks": watching.looks, "completions": watching.sampling.rollouts, "seconds": round(each.watching, 2)}
    return {"watching": told}


def say_what_does_not_fit(recipe: Recipe, waiting: Collection[str]) -> None:
    """A line for every stage that is too large for the GPU of this machine, if it has one."""
    from pipeline.planner import fits

    for each, said in fits.on_this_machine(recipe, waiting):
        if not each.fits:
            typer.echo(f"zero2r1: stages.{each.work.stage} {said}", err=True)
