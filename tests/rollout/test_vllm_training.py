"""GRPO with vLLM inside the trainer: TRL's trainer with our engine, against TRL's own ways and the policy itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from pipeline.training.colocated import Colocated, Groups  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402  # imports vLLM

from model import V3Config, V3ForCausalLM  # noqa: E402
from pipeline.data.vocabulary import VocabularySpec, build  # noqa: E402
from pipeline.schema.efficiency import STOCK, Efficiency  # noqa: E402
from pipeline.stages.registry import run_function  # noqa: E402
from tests.stages.driving import context_of  # noqa: E402

STEPS, GROUP = 3, 4
ROUNDING = 1e-4
"""Largest difference of log-probabilities that fp32 on two implementations makes, with room."""
OPTIONS = {"enforce_eager": True, "max_model_len": 64, "max_num_batched_tokens": 512}


class Trainer(Colocated, GRPOTrainer):  # type: ignore[misc]
    def __init__(self, *args: Any, efficiency: Efficiency, **kwargs: Any) -> None:
        self.efficiency = efficiency
        super().__init__(*args, **kwargs)


class Shake(TrainerCallback):  # type: ignore[misc]
    """Moves the routing bias, as balancing without a loss does."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for name, buffer in model.named_buffers():
            if "e_score_correction_bias" in name:
                buffer.add_(torch.randn_like(buffer) * 0.3)


@pytest.fixture(scope="module")
def tiny_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V3 of two layers that answers sums at random."""
    tokenizer = build(VocabularySpec(kind="words"), [f"{a} + {b} =" for a in range(5) for b in range(5)])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    shape = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32}
    dims = {"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "mscale_all_dim": 1.0}
    rest = {"rope_scaling": {**yarn, "mscale": 1.0}, "max_position_embeddings": 128, "initializer_range": 0.2}
    torch.manual_seed(0)
    model = V3ForCausalLM(V3Config(vocab_size=len(tokenizer), **shape, **heads, **dims, **experts, **rest, **ends))
    folder = tmp_path_factory.mktemp("tiny-v3-for-vllm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Makes trainers; their engines are shut down in the end."""
    made: list[Trainer] = []

    def make(folder: Path, efficiency: Efficiency = Efficiency(), **changes: Any) -> Trainer:
        arguments = {
            "output_dir": str(tmp_path / "out"),
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.1,
            "vllm_importance_sampling_mode": "token_truncate",
            "per_device_train_batch_size": 2 * GROUP,
            "gradient_accumulation_steps": 1,
            "num_generations": GROUP,
            "max_steps": STEPS,
            "learning_rate": 1e-2,
            "max_completion_length": 12,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "beta": 0.0,
        }
        made.append(
            Trainer(
                model=model(folder),
                args=GRPOConfig(**{**arguments, **changes}),
                reward_funcs=lambda completions, **_: [float(len(text) % 7) for text in completions],
                train_dataset=Dataset.from_list([{"prompt": f"{i % 5} + {i % 3} ="} for i in range(40)]),
                processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
                callbacks=[Shake()],
                efficiency=efficiency,
                engine_options=OPTIONS,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.vllm_generation.llm.llm_engine.engine_core.shutdown()


@pytest.fixture(autouse=True)
def parallel_groups() -> Iterator[None]:
    """vLLM makes its process groups once a process, and the next engine may want others."""
    yield
    from vllm.distributed.parallel_state import destroy_model_parallel

    destroy_model_parallel()


def model(folder: Path) -> Any:
    """What the stage gives to the trainer."""
    return V3ForCausalLM.from_pretrained(folder, dtype=torch.float32) if "v3" in folder.name else str(folder)


def differences(trained: Trainer) -> list[float]:
    """Largest difference of log-probabilities between engine and trainer, step by step, as TRL logs it."""
    name = "sampling/sampling_logp_difference/max"
    return [entry[name] for entry in trained.state.log_history if name in entry]


def engine_settings(trained: Trainer) -> dict[str, Any]:
    config = trained.vllm_generation.llm.llm_engine.vllm_config
    return {
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_model_len": config.model_config.max_model_len,
        "dtype": config.model_config.dtype,
        "enforce_eager": config.model_config.enforce_eager,
        "logprobs_mode": config.model_config.logprobs_mode,
    }


def test_a_v3_policy_and_its_engine_agree_at_every_step(tiny_v3: Path, trainer: Callable[..., Trainer]) -> None:
    trained = trainer(tiny_v3)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    trained.train()
    assert len(differences(trained)) == STEPS
    assert max(differences(trained)) < ROUNDING
    after = trained.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name].cpu(), after[name].cpu())}
    assert {name.partition("layers.1.")[2] for name in moved} >= {
        "mlp.gate.e_score_correction_bias",
        "mlp.experts.gate_up_proj",
        "self_attn.kv_b_proj.weight",
    }
    assert engine_settings(trained) == {**OPTIONS, "dtype": torch.float32, "logprobs_mode": "processed_logprobs"}


def test_two_runs_that_start_at_once_listen_at_different_ports(
    tiny_v3: Path, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is free when TRL looks may be taken when vLLM listens there."""
    monkeypatch.setattr("trl.trainer.utils._is_port_free", lambda *_: True)
    found = set()
    for _ in range(2):
        for name in ("MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):  # what a run before has left
            monkeypatch.delenv(name, raising=False)
        trainer(tiny_v3)
        found.add(os.environ["MASTER_PORT"])
    assert len(found) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's memory can be given back")
def test_an_engine_that_sleeps_wakes_with_the_policys_weights(
    calculator: Path, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)  # vLLM refuses growing segments beside sleeping
    trained = trainer(calculator, vllm_enable_sleep_mode=True, use_cpu=False)
    trained.train()
    assert len(differences(trained)) == STEPS
    assert max(differences(trained)) < 1e-2, "float32 on two implementations, with TF32 in one of them"


def test_a_dense_policy_is_sampled_in_groups_as_trl_samples_it_one_by_one(
    calculator: Path, trainer: Callable[..., Trainer]
) -> None:
    """One engine, asked in TRL's way and in ours, gives TRL the very same answer."""
    trained = trainer(calculator, temperature=0.7)
    trained.train()
    assert max(differences(trained)) < ROUNDING
    generation, groups = trained.vllm_generation, trained.vllm_generation.llm
    assert isinstance(groups, Groups)
    encoded = trained.processing_class([f"User: {a} + 1 =\nAssistant:\n" for a in range(3)])["input_ids"]
    prompts = [ids for ids in encoded for _ in range(GROUP)]

    torch.manual_seed(1)
    ours, ours_logprobs = trained._generate_single_turn(prompts, None, {}, GROUP)
    generation.llm = groups.llm
    torch.manual_seed(1)
    theirs, theirs_logprobs = trained._generate_single_turn(prompts, None, {}, GROUP)
    generation.llm = groups
    assert len({tuple(ids) for ids in ours}) > len(encoded), "sampled, not greedy"
    assert ours == theirs
    for one, other in zip(ours_logprobs, theirs_logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-5)

    trained.vllm_generation.logprobs = None
    assert trained._generate_single_turn(prompts, None, {}, GROUP)[1] is None


def test_without_an_importance_correction_no_log_probabilities_are_asked_for(
    calculator: Path, trainer: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    trained = trainer(calculator, vllm_importance_sampling_correction=False, max_steps=1, seed=3)
    assert trained.vllm_generation.logprobs is None
    with caplog.at_level(logging.WARNING):
        trained.train()
    assert differences(trained) == []
    assert not [record for record in caplog.records if "log-probabilities" in record.message]
    assert trained.vllm_generation.llm.llm_engine.vllm_config.model_config.seed not in (0, 3)


def test_stock_is_trls_own(calculator: Path, trainer: Callable[..., Trainer]) -> None:
    """All switches off: TRL's engine as it is, which asks for log-probabilities whether they are used or not."""
    trained = trainer(calculator, efficiency=STOCK, vllm_importance_sampling_correction=False)
    llm = trained.vllm_generation.llm
    assert not isinstance(llm, Groups)
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    assert scheduler.update_from_output.__self__ is scheduler
    assert scheduler.kv_cache_manager.allocate_slots.__self__ is scheduler.kv_cache_manager
    assert trained.vllm_generation.logprobs == 0


def test_a_recipes_engine_options_reach_the_engine_of_a_grpo_stage(calculator: Path, tmp_path: Path) -> None:
    """The whole stage, with everything that makes it fast switched on."""
    (tmp_path / "sums.jsonl").write_text(
        "".join(f'{{"question": "{a} + {b} =", "answer": "{a + b}"}}\n' for a in range(5) for b in range(5))
    )
    config = {
        "kind": "grpo",
        "model": str(calculator),
        "tasks": [{"use": "jsonl", "options": {"path": "sums.jsonl"}, "template": "plain"}],
        "rollout": {"engine": "vllm", "max_tokens": 12, "gpu_memory": 0.1, "engine_options": OPTIONS},
        "trainer": {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_steps": 2,
            "learning_rate": 1e-4,
        },
    }
    context = context_of(tmp_path, "zero", config, {})
    run_function("grpo")(context)
    lines = [json.loads(line) for line in context.events.read_text().splitlines()]
    found = [line["sampling/sampling_logp_difference/max"] for line in lines if "loss" in line]
    assert len(found) == 2
    assert max(found) < ROUNDING
    assert (context.output / "model" / "model.safetensors").is_file()
