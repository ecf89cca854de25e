"""FP8 checkpoints in the official format, file by file: no model is built, and one file's tensors are in memory.

Beside `x.weight` (E4M3) stands `x.weight_scale_inv`, FP32, one number for every 128 x 128 block, which the block is
multiplied with; the last block of a row or column may be incomplete. `config.json` says so under `quantization_config`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.fp8.quantise import BLOCK, E4M3, SQUARE, dequantise, in_fp8, quantise

QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [BLOCK, BLOCK],
    "activation_scheme": "dynamic",
}
"""What the published `config.json` says."""

SCALE = "_scale_inv"
INDEX = "model.safetensors.index.json"
FULL_PRECISION = "e_score_correction_bias"
"""The bias of the V3 gate is FP32 in every checkpoint: BF16 would swallow its steps of 0.001."""

Tensors = Iterator[tuple[str, torch.Tensor]]


def is_fp8(folder: Path) -> bool:
    """Whether a model's folder is a block-wise FP8 checkpoint."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said = config.get("quantization_config") or {}
    return said.get("quant_method") == "fp8" and said.get("weight_block_size") == QUANTIZATION["weight_block_size"]


def read(source: Path, target: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Turn an FP8 checkpoint into an ordinary one of another precision.

    Args:
        source: folder with `config.json` and safetensors files in FP8.
        target: folder that the weights, their index and the config are written to; it may hold other files.
        dtype: precision of all weights but the gates' bias.

    Raises:
        ValueError: an FP8 weight has no scale.
    """
    homes = {name: path for path in _files(source) for name in _names(path)}

    def converted(path: Path) -> Tensors:
        for name, tensor in _tensors(path):
            if name.endswith(SCALE):
                continue
            if tensor.dtype == E4M3:
                if name + SCALE not in homes:
                    raise ValueError(f"{path.name}: {name} is FP8, but no file holds {name}{SCALE}")
                tensor = dequantise(tensor, _tensor(homes[name + SCALE], name + SCALE), SQUARE)
            yield name, tensor if name.endswith(FULL_PRECISION) else tensor.to(dtype)

    _rewrite(source, target, converted, {"dtype": str(dtype).removeprefix("torch.")})


def write(source: Path, target: Path) -> list[str]:
    """Turn an ordinary checkpoint into an FP8 one: matrices that `in_fp8` names in FP8, the others in BF16.

    Args:
        source: folder with `config.json` and safetensors files, under official names.
        target: folder that the weights, their index and the config are written to; it may hold other files.

    Returns:
        Names of matrices of several blocks whose last one is incomplete. The published checkpoint has them too, and
        GPU kernels read them rightly, but transformers' dequantiser takes the size of a block from the number of
        scales, and refuses or misreads them.
    """
    incomplete: list[str] = []

    def converted(path: Path) -> Tensors:
        for name, tensor in _tensors(path):
            if tensor.ndim == len(SQUARE) and in_fp8(name):
                numbers, scales = quantise(tensor, SQUARE)
                if any(size > BLOCK and size % BLOCK for size in tensor.shape):
                    incomplete.append(name)
                yield name, numbers
                yield name + SCALE, scales
            else:
                yield name, tensor if name.endswith(FULL_PRECISION) else tensor.to(torch.bfloat16)

    _rewrite(source, target, converted, {"quantization_config": QUANTIZATION, "dtype": "bfloat16"})
    return incomplete


def _rewrite(source: Path, target: Path, converted: Callable[[Path], Tensors], config: dict[str, Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    homes: dict[str, str] = {}
    total = 0
    for path in _files(source):
        tensors = dict(converted(path))
        save_file(tensors, target / path.name, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, path.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if (source / INDEX).exists():
        _save(target / INDEX, {"metadata": {"total_size": total}, "weight_map": homes})
    old = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("quantization_config", "torch_dtype"):  # the second is what `dtype` was called
        old.pop(key, None)
    _save(target / "config.json", {**old, **config})


def _save(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _tensors(path: Path) -> Tensors:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            yield name, file.get_tensor(name)
