"""What is wrong with how a stage's processes start, and with settings that mean another thing to several of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.files import source
from pipeline.schema.adapter import NO_DEEPSPEED
from pipeline.schema.pieces import SFT_CONFIG, Fault, StageConfig, TrainingConfig
from pipeline.schema.reserved import low_precision
from rewards.registry import located, nearest


def faults(config: StageConfig, base: Path) -> Iterator[Fault]:
    """Those of a stage; `base` is the recipe's folder."""
    yield from _check_launch(config, base)
    yield from _check_sharding(config, base)


def accelerate_config(name: str, base: Path) -> Path | None:
    """The file of an accelerate config: relative to the recipe, or shipped under `configs/accelerate/`."""
    candidates = (located(name, base), Path(str(files("configs"))) / "accelerate" / f"{name}.yaml")
    return next((path for path in candidates if path.is_file()), None)


def _check_launch(config: StageConfig, base: Path) -> Iterator[Fault]:
    if (name := config.launch.accelerate) is None:
        return
    if not config.distributed:
        yield ("launch", "accelerate"), f"the stage kind {config.kind} runs in one process"
    elif (file := accelerate_config(name, base)) is None:
        known = sorted(
            path.name.removesuffix(".yaml") for path in (Path(str(files("configs"))) / "accelerate").glob("*")
        )
        yield ("launch", "accelerate"), f"there is no accelerate config {name!r}{nearest(name, known)}"
    elif (missing := _deepspeed_file(file)) is not None:
        yield ("launch", "accelerate"), f"{file} names {missing}, and there is no such file"
    elif _divides_experts(file):
        if config.trainer_class != SFT_CONFIG:
            yield ("launch", "accelerate"), f"{name} divides experts among processes, which only SFTTrainer can train"
        elif getattr(config, "precision", "trainer") == "fp8":
            yield ("precision",), f"experts that {name} divides among processes are not multiplied in FP8"


def _check_sharding(config: StageConfig, base: Path) -> Iterator[Fault]:
    """Settings that mean another thing, or nothing, under whoever shards the model."""
    if not isinstance(config, TrainingConfig):
        return
    file = accelerate_config(config.launch.accelerate or "", base)
    kind = "" if file is None else str(settings(file).get("distributed_type"))
    if file is not None and kind != "DEEPSPEED":
        yield from _check_precision(config.trainer, settings(file).get("mixed_precision"))
    adapter = getattr(config, "adapter", None)
    if adapter is not None:
        yield from _check_adapter(adapter.quantize, kind, file)
    fault = None if adapter is not None else low_precision(config.trainer, masters=kind in ("FSDP", "DEEPSPEED"))
    if fault is not None and "model_init_kwargs" not in config.reserved:
        yield ("trainer", "model_init_kwargs"), fault
    if kind == "DEEPSPEED" and config.non_finite == "skip":
        yield ("non_finite",), "DeepSpeed takes its steps itself, so no step can be skipped: set `stop`"


def _check_precision(trainer: Mapping[str, Any], said: Any) -> Iterator[Fault]:
    """An accelerate config that wants another precision than the trainer, which decides."""
    chosen = "fp16" if trainer.get("fp16") else "bf16" if trainer.get("bf16", True) else "no"
    if said not in (None, False, "no", chosen):
        way = "set the stage's `precision: fp8`" if said == "fp8" else f"set trainer.{said}: true"
        yield (
            ("launch", "accelerate"),
            f"its mixed_precision is {said}, and the trainer's own setting ({chosen}) decides: {way}, or leave it out",
        )


def _check_adapter(quantize: str, kind: str, file: Path | None) -> Iterator[Fault]:
    """Ways to train on several devices that adapters do not go with."""
    where, instead = ("launch", "accelerate"), "use ddp or fsdp2-1node, or leave `adapter` out"
    if file is None:
        return
    if kind == "DEEPSPEED":
        yield where, f"{NO_DEEPSPEED}: {instead}"
    elif kind == "FSDP" and settings(file).get("fsdp_config", {}).get("fsdp_version", 1) != 2:
        yield where, f"what FSDP1 has sharded cannot be merged with an adapter: {instead}"
    elif kind == "FSDP" and quantize != "none":
        yield where, "shards of a quantised base cannot be merged with an adapter: use ddp, or adapter.quantize: none"
    elif _divides_experts(file):
        yield where, f"experts that are divided among processes carry no adapters: {instead}"


def _deepspeed_file(file: Path) -> str | None:
    """The DeepSpeed config that an accelerate config names, if it is not there; accelerate looks in this folder."""
    plugin = settings(file).get("deepspeed_config")
    named = plugin.get("deepspeed_config_file") if isinstance(plugin, dict) else None
    return named if isinstance(named, str) and not Path(named).expanduser().is_file() else None


def _divides_experts(file: Path) -> bool:
    sizes = settings(file).get("parallelism_config")
    return isinstance(sizes, dict) and sizes.get("parallelism_config_tp_size", 1) != 1


def settings(file: Path) -> Mapping[str, Any]:
    """What an accelerate config says."""
    text = source.read(file).data
    return text if isinstance(text, dict) else {}
