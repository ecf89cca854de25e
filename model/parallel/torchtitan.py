"""torchtitan's checkpoint layout of DeepSeek-V3: its names, and torch's distributed checkpoint format (DCP).

torchtitan (0.3) trains the architecture on clusters, with expert parallelism by all-to-all, pipelines and FP8. What it
calls a tensor differs from the official names, and it keeps a layer's experts in one tensor; the numbers are the same,
since both rotate neighbouring channels (`rope_interleave`).
"""

from __future__ import annotations

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
}

LAYER = {
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.q_a_proj.weight": "attention.wq_a.weight",
    "self_attn.q_a_layernorm.weight": "attention.q_norm.weight",
    "self_attn.q_b_proj.weight": "attention.wq_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attention.wkv_a.weight",
    "self_attn.kv_a_layernorm.weight": "attention.kv_norm.weight",
    "self_attn.kv_b_proj.weight": "attention.wkv_b.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.gate.weight": "moe.router.gate.weight",
    "mlp.gate.e_score_correction_bias": "moe.expert_bias_E",
    "mlp.shared_experts.gate_proj.weight": "moe.shared_experts.w1.weight",
    "mlp.shared_experts.up_proj.weight": "moe.shared_experts.w3.weight",
    "mlp.shared_experts.down_proj.weight": "moe.shared_experts.w2.weight",
    "enorm.weight": "enorm.weight",
    "hnorm.weight": "hnorm.weight",
    "eh_proj.weight": "eh_proj.weight",
    "shared_head.norm.weight": "mtp_norm.weight",
}
"""Official name -> torchtitan's, both after the layer's number."""

EXPERTS = {
    "gate_proj.weight": "moe.routed_experts.inner_experts.w1_EFD",
    "up_proj.weight": "moe.routed_experts.inner_experts.w3_EFD",
    "down_proj.weight": "moe.routed_experts.inner_experts.w2_EDF",
}
"""Official name after `mlp.experts.N.` -> the tensor that holds all experts of a layer, one after another."""

BIAS = "e_score_correction_bias"
"""FP32 in every precision: BF16 would swallow its steps of 0.001."""

OTHER = ("optimizer", "lr_scheduler", "dataloader", "train_state")
"""What a training checkpoint of torchtitan holds beside the model."""

METADATA = ".metadata"
"""The index of a distributed checkpoint, in its folder."""

_INDEX: Mapping[tuple[str, str], Any] = {
    **{
        (kind.__module__, kind.__name__): kind
        for kind in (
            Metadata,
            TensorStorageMetadata,
            BytesStorageMetadata,
            TensorProperties,
            ChunkStorageMetadata,
            MetadataIndex,
            StorageMeta,
            _MEM_FORMAT_ENCODING,
            _StorageInfo,
        )
    },
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: _layout(name),
    ("pathlib", "PosixPath"): lambda *parts: "/".join(map(str, parts)),
    ("pathlib", "PurePosixPath"): lambda *parts: "/".join(map(str, parts)),
    ("collections", "OrderedDict"): OrderedDict,
}
"""What an index may name -> what stands for it."""

_BROKEN = (
    OSError,
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)
"""What a broken pickle brings, as the documentation of `pickle` has it."""

_OFFICIAL = re.compile(r"model\.layers\.(\d+)\.(?:mlp\.experts\.(\d+)\.)?(.+)")
_TITAN = re.compile(r"(mtp_)?layers\.(\d+)\.(.+)")
_BLOCK = re.compile(r"model\.layers\.(\d+)\.enorm\.weight")
"""What only prediction blocks have: torchtitan counts these from 0, behind `mtp_layers.`, and not with the layers."""
_COPIES = re.compile(r"model\.layers\.\d+\.(?:embed_tokens|shared_head\.head)\.weight")
"""Copies of embedding and head, which official checkpoints have in prediction blocks, and torchtitan has not."""


def to_torchtitan(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state under official names (one tensor an expert) in torchtitan's names and shapes.

    Raises:
        ValueError: a name that torchtitan has no place for, or experts that do not count up from 0.
    """
    renamed: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    blocks = sorted(int(found[1]) for found in map(_BLOCK.fullmatch, state) if found)
    homes = {str(number): f"mtp_layers.{place}" for place, number in enumerate(blocks)}
    for name, tensor in state.items():
        found = _OFFICIAL.fullmatch(name)
        if name in TOP:
            renamed[TOP[name]] = tensor
        elif found and found[2] is None and found[3] in LAYER:
            renamed[f"{homes.get(found[1], f'layers.{found[1]}')}.{LAYER[found[3]]}"] = tensor
        elif found and found[2] is not None and found[3] in EXPERTS:
            whole = f"{homes.get(found[1], f'layers.{found[1]}')}.{EXPERTS[found[3]]}"
            experts.setdefault(whole, {})[int(found[2])] = tensor
        elif not _COPIES.fullmatch(name):
            raise ValueError(f"torchtitan's DeepSeek-V3 has no place for {name}")
    for name, by_number in experts.items():
        if by_number.keys() != set(range(len(by_number))):
            raise ValueError(f"{name}: experts are missing; there are {sorted(by_number)}")
        renamed[name] = torch.stack([by_number[number] for number in range(len(by_number))])
    return renamed


def from_torchtitan(state: Mapping[str, torch.Tensor], layers: int | None = None) -> dict[str, torch.Tensor]:
    """A state of torchtitan's under official names, one tensor an expert.

    Args:
        state: all of it, or some layers.
        layers: how many the model has, prediction blocks not counted; as many as the state has, if not given.

    Raises:
        ValueError: a name that is not of torchtitan's DeepSeek-V3.
    """
    top, layer, experts = ({theirs: ours for ours, theirs in table.items()} for table in (TOP, LAYER, EXPERTS))
    behind = layers_of(state) if layers is None else layers
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        found = _TITAN.fullmatch(name)
        home = "" if found is None else f"model.layers.{_number(found, behind)}"
        if name in top:
            renamed[top[name]] = tensor
        elif found and found[3] in layer:
            renamed[f"{home}.{layer[found[3]]}"] = tensor
        elif found and found[3] in experts:
            for number, expert in enumerate(tensor.unbind()):
                renamed[f"{home}.mlp.experts.{number}.{experts[found[3]]}"] = expert.contiguous()
        else:
            raise ValueError(f"{name} is no tensor of torchtitan's DeepSeek-V3 (0.3)")
    return renamed


def layers_of(names: Iterable[str]) -> int:
    """How many layers a state of torchtitan's has, prediction blocks not counted."""
    found = (_TITAN.fullmatch(name) for name in names)
    return max((int(one[2]) + 1 for one in found if one and not one[1]), default=0)


def _number(found: re.Match[str], layers: int) -> int:
    """The official number of a layer, or of a prediction block, which stands behind them."""
    return int(found[2]) + (layers if found[1] else 0)


def write(source: Path, target: Path) -> None:
    """Turn a Hugging Face folder into a checkpoint for torchtitan's `checkpoint.initial_load_path`.

    The whole model passes through memory.

    Args:
        source: folder with safetensors files under official names, not in FP8.
        target: folder for the checkpoint; it may hold other files.
    """
    state: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    save(to_torchtitan(state), checkpoint_id=target, no_dist=True)


class DataReader(FileSystemReader):
    """torch's reader of a distributed checkpoint, for one that somebody else made: it runs nothing that is in it.

    The index is a pickle, which torch would read in whole, whatever it calls; here it may name the classes of an index
    alone. A file of tensors lies in the folder itself, and torch reads it as tensors only.

    Raises:
        ValueError: the index is broken, or names anything else; or a file lies elsewhere.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index; see `FileSystemReader.read_metadata`."""
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                found = _IndexOnly(file).load()
        except _BROKEN as error:
            raise ValueError(f"{path} is not an index of a distributed checkpoint: {error}") from error
        if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
            raise ValueError(f"{path} is not an index of a distributed checkpoint: it holds {type(found).__name__}")
        for place in found.storage_data.values():
            self._check(str(place.relative_path))
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found

    def _check(self, name: str) -> None:
        home = Path(self.path).resolve()
        if Path(name).name != name or not (home / name).resolve().is_relative_to(home):
            raise ValueError(f"{home / METADATA} names {name!r}, which is not a file of this folder")


class _IndexOnly(pickle.Unpickler):
    """Unpickles what torch writes into an index: its own records of names, shapes and types."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _INDEX:
            return _INDEX[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which is not run")


def _layout(name: str) -> torch.layout:
    if name != str(torch.strided):
        raise pickle.UnpicklingError(f"a tensor's layout is {name}")
    return torch.strided


def read(source: Path, target: Path, dtype: str | None = None) -> None:
    """Write the weights of a torchtitan checkpoint as safetensors under official names, one file a layer.

    Args:
        source: folder of a distributed checkpoint; what is no tensor of the model (optimizer, data, step) is left out.
        target: folder that weights and index are written to; it may hold other files.
        dtype: precision of all weights but the gates' bias, such as `bfloat16`; theirs if not given.

    Raises:
        ValueError: it holds a tensor that torchtitan's DeepSeek-V3 has not, or none at all; or is broken, or more than
            data (see `DataReader`).
    """
    entries = DataReader(source).read_metadata().state_dict_metadata
    homes: dict[str, str] = {}
    total = 0
    layers = layers_of(entries)
    tensors_only = {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    groups = _by_layer(tensors_only, layers)
    for number, (_, group) in enumerate(groups, start=1):
        state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in group.items()}
        try:
            load(state, storage_reader=DataReader(source), no_dist=True)
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise ValueError(f"{source}: a file of tensors is broken, or holds other things: {_line(first)}") from error
        tensors = from_torchtitan(state, layers)
        if dtype is not None:
            wanted = getattr(torch, dtype)
            tensors |= {ours: tensor.to(wanted) for ours, tensor in tensors.items() if not ours.endswith(BIAS)}
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(tensors, target / name, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if not homes:
        raise ValueError(f"{source} holds no tensors of torchtitan's DeepSeek-V3")
    index = {"metadata": {"total_size": total}, "weight_map": homes}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _line(error: BaseException) -> str:
    """The first sentence of an error: torch goes on with advice to read whatever it is."""
    return str(error).partition(". ")[0]


def _by_layer(
    entries: Mapping[str, TensorStorageMetadata], layers: int
) -> list[tuple[int, dict[str, TensorStorageMetadata]]]:
    """The model's entries: those outside of the layers first, then layer by layer."""
    groups: dict[int, dict[str, TensorStorageMetadata]] = {}
    for name, entry in entries.items():
        if name.startswith(OTHER):
            continue
        found = _TITAN.fullmatch(name)
        groups.setdefault(_number(found, layers) if found else -1, {})[name] = entry
    return sorted(groups.items())
