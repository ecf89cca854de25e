"""The model in a trainer's checkpoint, as an ordinary Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.files.adapter_folders import is_adapter

SHARDED = "pytorch_model_fsdp_0"
"""Folder of a checkpoint that holds weights in the format of torch.distributed.checkpoint (accelerate's name)."""
OF_THE_TRAINER = (
    *("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin"),
    *("reference*", "dynamic-sampling-*.pt", "rollouts.json", "pool*.json", "*.jsonl", "global_step*", "latest"),
    *("pytorch_model_fsdp.bin", "README.md", "zero_to_fp32.py"),
)
"""Files of a checkpoint that are no part of its model, as patterns."""


class CheckpointError(ValueError):
    """A checkpoint from which no model can be made; the message says why."""


def to_model(checkpoint: Path, target: Path) -> Path:
    """The folder of a checkpoint's model.

    Args:
        checkpoint: a copy of it that belongs to the caller, without the files of `OF_THE_TRAINER`.
        target: a folder to make, if the checkpoint is no model already.

    Returns:
        The checkpoint itself, or `target`: base and adapter merged, or shards put together.

    Raises:
        CheckpointError: it has neither weights, nor an adapter, nor shards.
        AdapterFolderError: the adapter's base is not there any more.
    """
    if is_adapter(checkpoint):
        from pipeline.rollout.merging import merge_folder

        merge_folder(checkpoint, target)
        return target
    if any(checkpoint.glob("*.safetensors")) and (checkpoint / "config.json").is_file():
        return checkpoint
    if (checkpoint / SHARDED).is_dir():
        _put_together(checkpoint, target)
        return target
    raise CheckpointError("it holds no weights that are read here (safetensors, an adapter, shards of FSDP)")


def _put_together(checkpoint: Path, target: Path) -> None:
    """Write the weights of a sharded checkpoint under their official names."""
    from torch import device, empty_like
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load
    from transformers import AutoTokenizer

    with device("meta"):
        model = _skeleton(checkpoint)
    reader = FileSystemReader(checkpoint / SHARDED)
    stored = reader.read_metadata().state_dict_metadata
    wanted = model.state_dict()
    here = {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    state = {
        name: empty_like(tensor, device="cpu", dtype=here[f"model.{name}"].properties.dtype)
        for name, tensor in wanted.items()
        if f"model.{name}" in here
    }
    load({"model": state}, storage_reader=reader, no_dist=True)
    report = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if left := [name for name, tensor in model.state_dict().items() if tensor.is_meta] or report.unexpected_keys:
        raise CheckpointError(f"{len(left)} weights of the model are not among its shards, such as {left[0]}")
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False).save_pretrained(target)


def _skeleton(checkpoint: Path) -> Any:
    """The model of a checkpoint's config, without weights."""
    import transformers

    from model.modeling import is_ours, model_class

    config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if is_ours(str(checkpoint)):
        ours = model_class(config.model_type)
        return ours(ours.config_class.from_pretrained(checkpoint))
    name = next(iter(config.architectures or ()), "")
    found = getattr(transformers, name.removeprefix("FSDP"), None)
    if found is None:
        raise CheckpointError(f"its config names the architecture {name!r}, which transformers does not know")
    return found(config)
