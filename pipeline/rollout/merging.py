"""A base and its adapter as an ordinary model's folder, which every tool loads."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from model.modeling import is_ours, load
from pipeline.files.adapter_folders import CONFIG, WEIGHTS, AdapterFolderError, base_of
from pipeline.rollout import adapted
from pipeline.rollout.weights import official_weights

SHARD = "5GB"
"""Largest file of weights: what the hub's clients download well."""


@contextmanager
def as_given() -> Iterator[None]:
    """While adapters are made or loaded, PEFT takes targets and weights by the names that the model has.

    Left alone, it takes some architectures' targets for those of transformers 4: of a DeepSeek-V3, `all-linear` and
    every list or pattern that names an MLP lose the dense and the shared experts, gain the router, and double the rank
    of a stack of experts.
    """
    from peft.utils import transformers_weight_conversion as conversion

    names = ("convert_peft_config_for_transformers", "convert_peft_adapter_state_dict_for_transformers")
    kept = {name: getattr(conversion, name) for name in names}
    conversion.convert_peft_config_for_transformers = lambda *args, **kwargs: None
    conversion.convert_peft_adapter_state_dict_for_transformers = (
        lambda model, peft_config, adapter_state_dict, adapter_name="default": adapter_state_dict
    )
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(conversion, name, function)


def write(policy: Any, target: Path, dtype: torch.dtype | None, tokenizer: Any, here: bool = True) -> None:
    """Write base and adapter merged; collective where weights are sharded.

    Args:
        policy: PEFT's model, without wrappers.
        target: the folder to make.
        dtype: what merged weights are rounded to, once; the base's own type if not given.
        tokenizer: goes with them.
        here: whether this process is the one that writes.
    """
    from huggingface_hub import save_torch_state_dict

    # Copies: what is given may be a part of something larger, or of the model.
    weights = {name: tensor.cpu().clone() for name, tensor in official_weights(policy, dtype) if here}
    if not here:
        return
    base = adapted.base_of(policy)
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(base).__name__.removeprefix("FSDP")]
    config.dtype = dtype or base.dtype
    target.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(weights, target, max_shard_size=SHARD)
    config.save_pretrained(target)
    if base.can_generate():
        base.generation_config.save_pretrained(target)
    tokenizer.save_pretrained(target)


def merge_folder(folder: Path, target: Path) -> None:
    """Make the model of an adapter's folder and its base; what is there already stays.

    Args:
        folder: holds an adapter in PEFT's format, and perhaps a tokenizer.
        target: the folder to make; it appears complete.

    Raises:
        AdapterFolderError: base and adapter do not go together.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open
    from transformers import AutoTokenizer

    if target.exists():
        return
    base = base_of(folder)
    model = load(base, dtype="auto")
    try:
        with as_given() if is_ours(base) else nullcontext():
            policy = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError) as error:
        raise AdapterFolderError(f"the adapter {folder} does not fit its base {base}: {error}") from error
    taken = get_peft_model_state_dict(policy).keys()
    with safe_open(folder / WEIGHTS, "pt") as file:
        left = sorted(set(file.keys()) ^ set(taken))
    if left:
        raise AdapterFolderError(
            f"{len(left)} weights of the adapter {folder} have no place in {base}, or none in the file, such as"
            f" {left[0]}: see {CONFIG}"
        )
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder if own else base, trust_remote_code=False)
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    write(policy, partial, None, tokenizer)
    partial.rename(target)
