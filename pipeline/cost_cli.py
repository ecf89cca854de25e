"""`zero2r1 cost`: words in, words out. The arithmetic is in `pipeline.cost`."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.chat_cli import fail

if TYPE_CHECKING:
    from pipeline.cost.bill import Bill
    from pipeline.cost.shape import Shape


def cost(
    model: Annotated[str, typer.Argument(help="A preset (v3-671b), a model on the hub, or a folder with config.json.")],
    tokens: Annotated[str, typer.Option(help="Tokens to train on: 14.8T, 300B, 20M.")],
    gpus: Annotated[str, typer.Option(help="GPUs: 2048xH800, 8xH100.")],
    length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 4096,
    precision: Annotated[
        str | None, typer.Option(help="bf16 or fp8; fp8 for experts where the GPU has it, if not given.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="US dollars a GPU-hour; the middle of the GPU's range if not given.")
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
