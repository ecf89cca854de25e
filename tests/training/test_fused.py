"""Liger's fused kernels: refused where they would do nothing or something else, and right where they are on.

The kernels themselves need a GPU and liger-kernel. What is around them is tested with a stand-in for that package.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from model.config import V2Config, V3Config
from pipeline.recipe import RecipeError, load
from pipeline.schema.efficiency import OUR_CLASSES, Efficiency
from pipeline.stages.registry import run_function
from pipeline.training import fused
from pipeline.training.grpo import logprobs
from tests.stages.driving import context_of
from tests.training.replay import History, distance, history_of, trainer_of

PROMPTS = ["what is 2", "you are kind what is 2 + two", "hello", "what four you are you are you are"] * 2
PACKED = Efficiency(tokens_per_pass=60, drop_dead_groups=False, reuse_logprobs=False)
FUSED = PACKED.model_copy(update={"fused_kernels": True})
KL = {"beta": 0.1, "num_iterations": 2, "learning_rate": 0.1, "epsilon": 10.0}
"""With a reference model, with ratios other than 1 in the second of two updates, and without a clip, at whose edge the
smallest rounding decides about a token's whole gradient."""
GRPO = {"kind": "grpo", "model": "policy", "tasks": ["arithmetic"], "efficiency": {"fused_kernels": True}}
RECIPE = """\
name: fused
stages:
  zero:
    kind: grpo
    model: policy
    tasks: [arithmetic]
    efficiency: {fused_kernels: true}
"""


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, bool]]]:
    """A GPU that seems to be there, and a liger-kernel that knows Llama and writes down what it is asked for."""
    asked: list[tuple[Any, dict[str, bool]]] = []
    patches, package = ModuleType("liger_kernel.transformers.monkey_patch"), ModuleType("liger_kernel.transformers")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None, "deepseek_v3": None}  # type: ignore[attr-defined]

    def norm(self: Any, states: torch.Tensor) -> torch.Tensor:
        return type(self).forward(self, states)

    def patch(model: Any, **kernels: bool) -> None:
        asked.append((model, kernels))
        norm.__module__ = "liger_kernel.transformers.rms_norm"
        model.model.norm.forward = MethodType(norm, model.model.norm)

    package._apply_liger_kernel_to_instance = patch  # type: ignore[attr-defined]
    for module in (ModuleType("liger_kernel"), package, patches):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for where in (fused, sys.modules["transformers.integrations.liger"]):
        monkeypatch.setattr(where, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


def written(recipe: str, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return path


@pytest.mark.parametrize("kind", OUR_CLASSES)
def test_a_recipe_with_a_deepseek_policy_is_refused_before_it_runs(kind: str, tmp_path: Path) -> None:
    config = V2Config if kind == V2Config.model_type else V3Config
    config().save_pretrained(tmp_path / "policy")
    with pytest.raises(RecipeError, match=rf"recipe.yaml:7: .*fused_kernels.*{kind}.*set it to false"):
        load(written(RECIPE, tmp_path))


@pytest.mark.parametrize("text", [None, "{}", '{"model_type": "llama"}'])
def test_a_policy_that_tells_nothing_yet_is_left_to_the_stage(text: str | None, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    if text is not None:
        (tmp_path / "policy" / "config.json").write_text(text)
    assert list(load(written(RECIPE, tmp_path)).stages) == ["zero"]


@pytest.mark.parametrize("text", ["[]", "no JSON"])
def test_a_policy_whose_config_is_broken_is_refused_with_the_recipe(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text(text)
    with pytest.raises(RecipeError, match=r"stages.zero.model: .*config.json"):
        load(written(RECIPE, tmp_path))


@pytest.mark.parametrize("field", ["use_liger_kernel: true", "liger_kernel_config: {rope: true}"])
def test_the_trainers_own_switch_points_to_ours(field: str, tmp_path: Path) -> None:
    recipe = RECIPE.replace("efficiency: {fused_kernels: true}", f"trainer: {{{field}}}")
    with pytest.raises(RecipeError, match=r"recipe.yaml:7: .*cannot be set here: set `efficiency.fused_kernels`"):
        load(written(recipe, tmp_path))


def test_the_stage_refuses_before_it_does_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the task, which does not exist, nor the model's weights, which do not either, are looked for."""
    LlamaConfig().save_pretrained(tmp_path / "policy")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    context = context_of(tmp_path, "zero", {**GRPO, "tasks": ["nowhere.py:Nothing"]}, {})
    with pytest.raises(RuntimeError, match="fused_kernels: Liger's kernels need a GPU"):
        run_function("grpo")(context)


def test_a_missing_package_is_named(liger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "is_liger_kernel_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"pip install 'liger-kernel>="):
        fused.check(LlamaConfig())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (Qwen2Config(), "no kernels for qwen2 models"),
        (V3Config(), "deepseek_v3 models are trained as a class that Liger does not know"),
        (LlamaConfig(hidden_act="gelu"), "computes silu, and this one has gelu"),
    ],
    ids=["an unknown architecture", "our own class, though Liger lists its type", "another activation"],
)
def test_models_that_liger_would_leave_alone_or_compute_wrongly(liger: Any, config: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fused.check(config)


def test_a_model_in_which_nothing_changes_is_refused(liger: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "apply_liger_kernel", lambda model, kernels: None)
    with pytest.raises(ValueError, match="changed nothing in this llama model"):
        fused.fuse(AutoModelForCausalLM.from_pretrained(models / "dense"))


def test_policy_and_reference_get_the_layers_and_none_of_the_losses(liger: Any, models: Path, tmp_path: Path) -> None:
    trainer_of(models / "dense", tmp_path, PACKED, PROMPTS, beta=0.1)
    assert liger == []
    trainer = trainer_of(models / "dense", tmp_path, FUSED, PROMPTS, beta=0.1)
    assert [model for model, _ in liger] == [trainer.model, trainer.ref_model]
    assert all(kernels == {"cross_entropy": False, "fused_linear_cross_entropy": False} for _, kernels in liger)


def computed(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, History]:
    """The log-probabilities of the first training pass, and what the run did."""
    found: list[torch.Tensor] = []
    packed = logprobs.packed

    def kept(*arguments: Any) -> logprobs.Logprobs:
        scores = packed(*arguments)
        if torch.is_grad_enabled():
            found.append(scores.logprobs_BC.detach().float())
        return scores

    with monkeypatch.context() as patch:
        patch.setattr(logprobs, "packed", kept)
        history = history_of(trainer)
    return found[0], history


ROUNDINGS = 2.0
"""How much further than transformers' own layers the kernels may be from float32.

Under bf16 both round each activation to 8 bits, at different places, so their errors are independent and of one size:
a mistake in a kernel, or a token that sees another sequence, is tens of times that.
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_kernels_compute_what_the_layers_compute(
    kind: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run on a GPU: `pytest -m gpu tests/training/test_fused.py`. Packed rows, two updates, a reference model."""
    pytest.importorskip("liger_kernel")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # with more, transformers would spread the batch
    tokenizer = AutoTokenizer.from_pretrained(models / "dense")
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **shape, **heads, **ends)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config)
    module = sys.modules[type(plain).__module__]
    for name in vars(module).keys() & {"apply_rotary_pos_emb", *(type(part).__name__ for part in plain.modules())}:
        monkeypatch.setattr(module, name, getattr(module, name))  # Liger puts its own there; this puts them back
    plain.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    runs = []
    for efficiency, bf16 in ((PACKED, False), (PACKED, True), (FUSED, True)):
        trainer = trainer_of(tmp_path / "policy", tmp_path, efficiency, PROMPTS, use_cpu=False, bf16=bf16, **KL)
        runs.append(computed(trainer, monkeypatch))
    assert all(
        part.model.norm.forward.__module__.startswith("liger_kernel") for part in (trainer.model, trainer.ref_model)
    )
    (exact, exact_run), (rounded, rounded_run), (ours, our_run) = runs
    assert 0 < distance(exact, ours) <= ROUNDINGS * distance(exact, rounded)
    for true, theirs, found in zip(*(run.gradients for run in (exact_run, rounded_run, our_run)), strict=True):
        assert distance(true, found) <= ROUNDINGS * distance(true, theirs)
    # Advantages are at most 1.5 in groups of four, so a loss is off by no more than a few errors of a log-probability.
    error = float((exact - rounded).abs().max())
    assert our_run.losses == pytest.approx(exact_run.losses, abs=ROUNDINGS * error)
