"""What two processes do for `test_parallel.py`: each compares what it got with what one process gets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

RANKS = 2
PATIENCE_SECONDS = 120
"""How long a rank waits for the other: less than a test may take."""
ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 5,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "dtype": "float32",
}
ROWS, LENGTH = 4, 16


@dataclass(frozen=True)
class Stage:
    """What a scene is given.

    Attributes:
        folder: a saved model.
        scratch: where the ranks may leave files.
        device: this rank's.
    """

    folder: Path
    scratch: Path
    device: torch.device


def model_of(stage: Stage, **options: Any) -> Any:
    """The saved model in training, with a sequence-wise balance loss large enough to be seen in the gradients.

    Its blocks of multi-token prediction are left behind unless `num_nextn_predict_layers` asks for them.
    """
    options = {"num_nextn_predict_layers": 0, **options}
    from model import V3ForCausalLM, balance
    from model.balance_loss import Balance, BalanceLoss

    model = V3ForCausalLM.from_pretrained(stage.folder, **options).to(stage.device).train()
    balance.configure(model, Balance(BalanceLoss.SEQUENCE, alpha=0.1))
    return model


def batch(stage: Stage, padded: bool) -> dict[str, Tensor]:
    """Rows of random tokens, of which two are shorter than the others if `padded`."""
    torch.manual_seed(1)
    ids_BT = torch.randint(2, 32, (ROWS, LENGTH))
    mask_BT = torch.ones_like(ids_BT)
    if padded:
        mask_BT[1, 9:] = mask_BT[3, 12:] = 0
    data = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": ids_BT.masked_fill(mask_BT == 0, -100)}
    return {name: tensor.to(stage.device) for name, tensor in data.items()}


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may lie on several ranks."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradients(model: Any) -> dict[str, Tensor]:
    """The gradients of a model in one process."""
    return {name: whole(weight.grad) for name, weight in model.named_parameters()}


def furthest(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    """The largest difference of any number, as a share of the largest number of its tensor."""
    return max(float((got[name] - want[name]).abs().max() / want[name].abs().max().clamp(min=1e-6)) for name in got)


def fsdp(stage: Stage, depth: int = 0) -> Iterator[tuple[str, float]]:
    """Two steps with weights sharded as `fsdp2-1node.yaml` says, each rank on half of the batch.

    accelerate itself shards on GPUs alone, so its policy says what is sharded here and torch does it.
    With blocks of multi-token prediction, they are trained along.
    """
    from contextlib import nullcontext

    import yaml
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from torch.distributed.fsdp import FSDPModule, fully_shard

    from model import balance
    from model.mtp import Objective

    alone, sharded = (model_of(stage, num_nextn_predict_layers=depth) for _ in range(2))
    mtp = [Objective(model) if depth else None for model in (alone, sharded)]
    recipe = yaml.safe_load((ROOT / "configs/accelerate/fsdp2-1node.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=recipe["fsdp_version"],
        auto_wrap_policy=recipe["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=recipe["fsdp_reshard_after_forward"],
    )
    policy: Any = fsdp2_prepare_auto_wrap_policy(plugin, sharded)
    for module in list(sharded.modules()):
        if policy(module):
            fully_shard(module, reshard_after_forward=plugin.reshard_after_forward)
    fully_shard(sharded)
    yield "layers not sharded", sum(not isinstance(layer, FSDPModule) for layer in sharded.model.layers)
    data, half = batch(stage, padded=False), ROWS // RANKS
    mine = {name: value[dist.get_rank() * half :][:half] for name, value in data.items()}
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4) for model in (alone, sharded)]
    for _ in range(2):
        steps = zip((alone, sharded), (data, mine), optimizers, mtp, strict=True)
        for model, given, optimizer, objective in steps:
            optimizer.zero_grad()
            with objective.weighed(0.3, given["labels"].numel()) if objective else nullcontext():
                loss = model(**given).loss
            loss.backward()
            optimizer.step()
    yield "gradients", furthest(gradients(sharded), gradients(alone))
    weights = {name: whole(weight) for name, weight in sharded.named_parameters()}
    yield "weights", furthest(weights, dict(alone.named_parameters()))
    loads = balance.update_bias(sharded)
    for gate in balance.routers(alone).values():
        gate.load_E = gate.load_E / RANKS  # update_bias adds up the ranks, which all have computed the whole batch here
    yield "loads", furthest(loads, balance.update_bias(alone))


def experts(stage: Stage) -> Iterator[tuple[str, float]]:
    """Half of the experts on each rank, the batch on both."""
    from transformers.distributed import DistributedConfig

    from model import V3ForCausalLM, balance

    alone = model_of(stage)
    spread = model_of(stage, distributed_config=DistributedConfig(tp_size=RANKS, enable_expert_parallel=True))
    held = spread.model.layers[1].mlp.experts.gate_up_proj.to_local().shape[0]
    yield "experts too many", held - SHAPE["n_routed_experts"] // RANKS
    data = batch(stage, padded=True)
    losses = [model(**data).loss for model in (alone, spread)]
    for loss in losses:
        loss.backward()
    yield "loss", float((losses[0] - losses[1]).detach().abs())
    yield "gradients", furthest(gradients(spread), gradients(alone))
    loads = [balance.update_bias(model) for model in (alone, spread)]
    yield "loads", furthest(loads[1], loads[0])
    yield (
        "biases",
        max(
            float((gate.e_score_correction_bias - other.e_score_correction_bias).abs().max())
            for gate, other in zip(balance.routers(alone).values(), balance.routers(spread).values(), strict=True)
        ),
    )
    spread.save_pretrained(stage.scratch / "spread")
    dist.barrier()
    restored = V3ForCausalLM.from_pretrained(stage.scratch / "spread").to(stage.device)
    yield "saved", furthest(dict(restored.named_parameters()), dict(alone.named_parameters()))


def pipeline(schedule: str) -> Callable[[Stage], Iterator[tuple[str, float]]]:
    """A step of a pipeline, of as many micro-batches as rows, against one process on the whole batch."""

    def compare(stage: Stage) -> Iterator[tuple[str, float]]:
        import torch.distributed.checkpoint as dcp

        from model import balance
        from model.parallel.pipeline import Pipeline, Schedule

        alone, cut = model_of(stage), model_of(stage)
        stages = Pipeline(cut, Schedule(schedule), microbatches=ROWS, rows=1, length=LENGTH)
        for step in range(2):
            data = batch(stage, padded=True)
            for model in (alone, cut):
                model.zero_grad()
            loss = alone(**data).loss
            loss.backward()
            ours = stages.step(data["input_ids"], data["labels"], attention_mask=data["attention_mask"])
            got = {name: weight.grad for name, weight in stages.named_parameters()}
            yield f"loss {step}", float((ours - loss.detach()).abs())
            yield f"gradients {step}", furthest(got, gradients(alone))
            loads = stages.update_bias()
            alone_loads = {layer: gate.load_E for layer, gate in balance.routers(alone).items()}
            yield f"loads {step}", furthest(loads, alone_loads)
            for gate in balance.routers(alone).values():  # as on one rank: update_bias would add up both
                load_E, gate.load_E = gate.load_E, None
                gate.e_score_correction_bias += balance.BIAS_UPDATE_SPEED * (load_E.mean() - load_E).sign()
        names: list[Any] = [None] * RANKS
        dist.all_gather_object(names, set(stages.state_dict()))
        wrong = (set(alone.state_dict()) ^ set.union(*names)) | set.intersection(*names)
        yield "names missing or twice", len(wrong)
        dcp.save(dict(stages.state_dict()), checkpoint_id=stage.scratch / schedule)
        joined = model_of(stage)
        for weight in joined.parameters():
            weight.data.zero_()
        dcp.load(joined.state_dict(), checkpoint_id=stage.scratch / schedule)
        yield "saved", furthest(dict(joined.state_dict()), dict(alone.state_dict()))

    return compare


def refusals(stage: Stage) -> Iterator[tuple[str, float]]:
    """Models that a pipeline cannot train, and a batch that it was not made for, are refused."""
    from model.parallel.pipeline import Pipeline, Schedule

    for field, value in (("tie_word_embeddings", True), ("num_nextn_predict_layers", 1), ("num_hidden_layers", 3)):
        model = model_of(stage)
        setattr(model.config, field, value)
        yield f"{field} not refused", _accepts(lambda model=model: Pipeline(model, Schedule.ZBV, ROWS, 1, LENGTH))
    stages = Pipeline(model_of(stage), Schedule.ONE_F_ONE_B, ROWS, 1, LENGTH)
    ids_BT = batch(stage, padded=False)["input_ids"][:, 1:]
    yield "length not refused", _accepts(lambda: stages.step(ids_BT, ids_BT))


def _accepts(call: Callable[[], Any]) -> bool:
    try:
        call()
    except ValueError:
        return False
    return True


SCENES: dict[str, Callable[[Stage], Iterator[tuple[str, float]]]] = {
    "fsdp": fsdp,
    "fsdp and multi-token prediction": partial(fsdp, depth=2),
    "experts": experts,
    **{schedule: pipeline(schedule) for schedule in ("1F1B", "ZBVZeroBubble", "DualPipeV")},
    "refusals": refusals,
}


def play(rank: int, folder: Path, scratch: Path, kind: str) -> None:
    """One rank: play every scene and write down what differed, or what went wrong."""
    import json
    import traceback

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS))
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    stage = Stage(folder, scratch, device)
    backend = {"cpu": "gloo", "cuda": "nccl"}[kind]
    meeting, patience = f"file://{scratch / 'meeting'}", timedelta(seconds=PATIENCE_SECONDS)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=RANKS, timeout=patience)
    for name, scene in SCENES.items():
        try:
            found: dict[str, float] | str = dict(scene(stage))
        except Exception:  # noqa: BLE001 - the test that asks for this scene is to fail with it, the others are not
            found = traceback.format_exc()
        (scratch / f"{name}-{rank}.json").write_text(json.dumps(found))
        dist.barrier()
    dist.destroy_process_group()
