"""Adapters: against PEFT under stock TRL, merged, saved, resumed; the base that is never written; what is refused."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from model.modeling import load
from pipeline.rollout.adapted import base_of
from pipeline.rollout.weights import official_weights
from pipeline.schema.efficiency import STOCK, Efficiency
from pipeline.training import adapters
from pipeline.training.lora_linear import lighten
from pipeline.training.trainers import sft
from tests.training.replay import distance, half_dead, history_of, lora, prepared, trainer_of

PROMPTS = ["what is 2", "you are kind what is 2 + two", "hello", "what four you are you are you are"] * 2
ADAPTER = {"rank": 4, "alpha": 32}


def perturbed(model: Any, scale: float = 0.05) -> None:
    """Give adapters, whose updates start at zero, something to say."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


@pytest.mark.parametrize(
    ("switches", "beta"),
    [(STOCK, 0.1), (Efficiency(tokens_per_pass=60), 0.1), (Efficiency(tokens_per_pass=60, drop_dead_groups=True), 0.0)],
    ids=["stock", "packed", "dropped"],
)
def test_losses_and_gradients_are_those_of_peft_under_stock_trl(
    models: Path, tmp_path: Path, switches: Efficiency, beta: float
) -> None:
    fields: dict[str, Any] = {"beta": beta, "max_steps": 3, "learning_rate": 0.5, "vllm": True, "adapter": ADAPTER}
    fields |= {"reward": half_dead, "gradient_checkpointing": switches.packing}
    stock = trainer_of(models / "dense", tmp_path, None, PROMPTS, **fields)
    ours = trainer_of(models / "dense", tmp_path, switches, PROMPTS, **fields)
    before = {name: weight.clone() for name, weight in base_of(ours.model).named_parameters() if "lora" not in name}
    theirs, mine = history_of(stock), history_of(ours)
    assert all(distance(a, b) < 1e-6 for a, b in zip(theirs.gradients, mine.gradients, strict=True))
    assert mine.losses == pytest.approx(theirs.losses, rel=1e-6, abs=1e-7)
    moved = [entry["kl"] for entry in mine.logs if "kl" in entry]
    assert not beta or moved[-1] > 0, "the adapter moved away from its base"
    after = dict(base_of(ours.model).named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in before.items()), "the base was written"


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"lora_bias": True}, {"use_dora": True}, {"lora_dropout": 0.5}]
)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_layers_compute_what_peft_computes(more: dict[str, Any], autocast: bool) -> None:
    """Outputs and gradients; those that are more than two matrices are computed by PEFT itself."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 8))
    theirs = get_peft_model(layers, LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], **more))
    perturbed(theirs, 0.5)
    ours, asked = deepcopy(theirs), torch.randn(3, 5, 16)
    lighten(ours)

    def run(model: Any) -> list[torch.Tensor]:
        x = asked.clone().requires_grad_()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.float().square().mean().backward()
        return [y.float(), x.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]

    for expected, found in zip(run(theirs), run(ours), strict=True):
        assert distance(expected, found) < (0.02 if autocast else 1e-6)
    with theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(theirs(asked), ours(asked))


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"q_proj": 2}}])
@pytest.mark.parametrize("name", ["dense", "v3"])
def test_merged_weights_are_those_of_an_ordinary_model_with_the_adapters_logits(
    models: Path, tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    adapter = {**ADAPTER, **more, **({"targets": ["q_proj", "o_proj"]} if "use_dora" in more else {})}
    trainer = trainer_of(models / name, tmp_path, STOCK, PROMPTS, adapter=adapter)
    perturbed(trainer.model)
    plain = load(str(models / name), dtype=torch.float32)
    official = {name: weight.clone() for name, weight in official_weights(trainer.model)}
    plain, report = type(plain).from_pretrained(
        None, config=plain.config, state_dict=official, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        adapted, merged = (model.eval()(ids).logits for model in (trainer.model, plain))
        with trainer.model.disable_adapter():
            base = trainer.model(ids).logits
    assert (adapted - base).abs().max() > 0.05
    assert distance(adapted, merged) < 1e-5


def test_every_linear_layer_and_expert_of_a_deepseek_v3_carries_an_adapter(models: Path, tmp_path: Path) -> None:
    trainer = trainer_of(models / "v3", tmp_path, STOCK, PROMPTS, adapter=ADAPTER)
    carrying = {name for name, module in trainer.model.named_modules() if isinstance(module, LoraLayer)}
    lasts = {name.replace(".base_layer", "").rpartition(".")[2] for name in carrying}
    attention = {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    assert lasts == attention | {"gate_proj", "up_proj", "down_proj", "experts"}
    assert any(".shared_experts." in name for name in carrying)
    assert not any(name.endswith(".gate") for name in carrying), "the router stays as it is"
    ranks = {module.r["default"] for module in trainer.model.modules() if isinstance(module, LoraLayer)}
    assert ranks == {ADAPTER["rank"]}, "PEFT left alone doubles that of stacks"


def test_fields_that_choose_layers_choose_stacks_of_experts_too(models: Path, tmp_path: Path) -> None:
    chosen = {"layers_to_transform": [1], "exclude_modules": ["o_proj", "experts.down_proj"]}
    trainer = trainer_of(models / "v3", tmp_path, STOCK, PROMPTS, adapter={**ADAPTER, **chosen})
    carrying = {name: layer for name, layer in trainer.model.named_modules() if isinstance(layer, LoraLayer)}
    assert carrying and all(".layers.1." in name for name in carrying)
    assert not any(name.endswith("o_proj") for name in carrying)
    stacks = {layer.parameter_name for name, layer in carrying.items() if ".experts" in name and "shared" not in name}
    assert stacks == {"gate_up_proj"}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_porj"], "'q_porj' matches no layer of the model (did you mean 'q_proj'?)"),
        (["q_proj", "attention"], "'attention' matches no layer"),
        (r".*\.attn\..*", "matches no layer"),
        (r"(", "is not a regular expression"),
        (["lm_head"], "the head, carries no adapter"),
    ],
)
def test_targets_that_match_nothing_are_refused(models: Path, targets: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"adapter\.targets") as error:
        prepared(models / "dense", {"targets": targets})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_stacks_of_experts_refuse_what_they_cannot_have(models: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter\.dropout: stacks of experts cannot .* targets: \[down_proj, gate"):
        prepared(models / "v3", {"dropout": 0.1}, "sft")


def test_a_quantised_base_is_merged_through_the_values_that_it_computes_with(models: Path, tmp_path: Path) -> None:
    """What that loses is the rounding of the published type; merged into the unquantised weights, much more is lost."""
    pytest.importorskip("bitsandbytes")
    adapter = {**ADAPTER, "quantize": "4bit"}
    trainer = trainer_of(models / "dense", tmp_path, STOCK, PROMPTS, adapter=adapter)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}, "TRL makes them bfloat16"
    assert any(type(weight).__name__ == "Params4bit" for weight in trainer.model.parameters())
    perturbed(trainer.model)
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        adapted = trainer.model.train()(ids).logits

    def loss_of(weights: dict[str, torch.Tensor]) -> float:
        plain = load(str(models / "dense"), dtype=torch.float32)
        kind, config = type(plain), plain.config
        state = {name: weight.float() for name, weight in weights.items()}
        with torch.no_grad():
            return distance(adapted, kind.from_pretrained(None, config=config, state_dict=state)(ids).logits)

    exact, rounded = (
        {name: weight.clone() for name, weight in official_weights(trainer.model, dtype)}
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert loss_of(exact) < 1e-5
    assert 1e-4 < loss_of(rounded) < 1e-2
    base = dict(load(str(models / "dense"), dtype=torch.float32).state_dict())
    bare = trainer_of(models / "dense", tmp_path, STOCK, PROMPTS, adapter={"rank": 4, "quantize": "4bit"})
    quantised = dict(official_weights(bare.model, torch.float32))  # its adapter changes nothing yet
    into_whole = {name: base[name] + weight - quantised[name] for name, weight in exact.items()}
    assert loss_of(into_whole) > 10 * loss_of(rounded)


def test_a_deepseek_v3_is_not_quantised(models: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter\.quantize: .* experts are stacks .* set it to none"):
        prepared(models / "v3", {"quantize": "4bit"})


def test_what_fine_tuning_trains_is_what_stock_trl_trains(models: Path, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, 9, 10]}] * 8)
    settings = {"learning_rate": 0.5, "max_steps": 3, "logging_steps": 1, "bf16": False, "use_cpu": True, "seed": 3}
    settings |= {"report_to": "none", "save_strategy": "no", "optim": "sgd", "gradient_checkpointing": False}
    settings |= {"per_device_train_batch_size": 4, "disable_tqdm": True, "lr_scheduler_type": "constant"}

    def arguments() -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(models / "dense")
        args = SFTConfig(output_dir=str(tmp_path), **settings)
        return {"model": str(models / "dense"), "args": args, "train_dataset": rows, "processing_class": tokenizer}

    stock = SFTTrainer(**arguments(), peft_config=lora(ADAPTER))
    config = SimpleNamespace(precision="trainer", routing=None)
    ours = sft.build(config, prepared(models / "dense", ADAPTER, "sft"), **arguments())
    theirs, mine = history_of(stock), history_of(ours)
    assert all(distance(a, b) < 1e-6 for a, b in zip(theirs.gradients, mine.gradients, strict=True))
    assert mine.losses == pytest.approx(theirs.losses, rel=1e-6)
    assert theirs.losses[0] > theirs.losses[-1]


@pytest.mark.parametrize(("sharded", "device", "told"), [(True, "cuda", 1), (True, "cpu", 0), (False, "cuda", 0)])
def test_what_was_seen_of_adapters_under_fsdp2_on_gpus_is_said(
    caplog: pytest.LogCaptureFixture, sharded: bool, device: str, told: int
) -> None:
    adapters.warn_of_shards(SimpleNamespace(is_fsdp2=sharded, device=torch.device(device)))
    assert len(caplog.messages) == told
    assert all("9 % off" in line and "launch: {accelerate: ddp}" in line for line in caplog.messages)
