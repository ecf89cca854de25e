"""GRPO with vLLM inside the trainer, against TRL's own way to ask an engine and against the policy itself."""

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

from trl import GRPOConfig  # noqa: E402  # imports vLLM

from model import V3Config, V3ForCausalLM  # noqa: E402
from pipeline.data.vocabulary import VocabularySpec, build  # noqa: E402
from pipeline.rollout.base import Sampling  # noqa: E402
from pipeline.schema.pieces import RolloutSpec  # noqa: E402
from pipeline.stages.registry import run_function  # noqa: E402
from pipeline.training import adapters  # noqa: E402
from pipeline.training.grpo.judging import Samples  # noqa: E402
from pipeline.training.grpo.sampling import VllmSampler  # noqa: E402
from pipeline.training.grpo.trainer import GrpoTrainer  # noqa: E402
from pipeline.training.held_out import live  # noqa: E402
from tests.stages.driving import context_of  # noqa: E402
from tests.training.replay import prepared  # noqa: E402

STEPS, GROUP = 3, 4
ROUNDING = 1e-4
"""Largest difference of log-probabilities that fp32 on two implementations makes, with room."""
OPTIONS = {"enforce_eager": True, "max_model_len": 64, "max_num_batched_tokens": 512}


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
    made: list[GrpoTrainer] = []

    def make(folder: Path, adapter: dict[str, Any] | None = None, **changes: Any) -> GrpoTrainer:
        arguments = {
            "output_dir": str(tmp_path / "out"),
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
            "save_steps": 1,
            "disable_tqdm": True,
            "beta": 0.0,
        }
        spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options=OPTIONS)
        args = GRPOConfig(**{**arguments, **changes})
        made.append(
            adapters.carry(
                GrpoTrainer,
                prepared(folder, adapter),
                sampler=lambda trainer: VllmSampler(trainer, spec, str(folder)),
                samples=Samples(tmp_path / "samples.jsonl", 1, 0),
                model=model(folder),
                args=args,
                reward_funcs=lambda completions, **_: [float(len(text) % 7) for text in completions],
                train_dataset=Dataset.from_list([{"prompt": f"{i % 5} + {i % 3} ="} for i in range(40)]),
                processing_class=AutoTokenizer.from_pretrained(folder, padding_side="left"),
                callbacks=[Shake()],
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.sampler.close()


@pytest.fixture(autouse=True)
def parallel_groups() -> Iterator[None]:
    """vLLM makes its process groups once a process, and the next engine may want others."""
    yield
    from vllm.distributed.parallel_state import destroy_model_parallel

    destroy_model_parallel()


def model(folder: Path) -> Any:
    """What the stage gives to the trainer."""
    return V3ForCausalLM.from_pretrained(folder, dtype=torch.float32) if "v3" in folder.name else str(folder)


def differences(trained: GrpoTrainer) -> list[float]:
    """Largest difference of log-probabilities between engine and trainer, step by step, as it is logged."""
    name = "sampling/sampling_logp_difference/max"
    return [entry[name] for entry in trained.state.log_history if name in entry]


def engine_config(trained: GrpoTrainer) -> Any:
    return trained.sampler.engine.llm.llm_engine.vllm_config


def engine_settings(trained: GrpoTrainer) -> dict[str, Any]:
    config = engine_config(trained)
    return {
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_model_len": config.model_config.max_model_len,
        "dtype": config.model_config.dtype,
        "enforce_eager": config.model_config.enforce_eager,
        "logprobs_mode": config.model_config.logprobs_mode,
    }


def test_held_out_problems_between_steps_change_no_weight(tiny_v3: Path, trainer: Callable[..., GrpoTrainer]) -> None:
    """Nor do the prefixes of their prompts, which the engine has cached and forgets."""
    answers: list[Any] = []

    class Asks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with live.untouched():
                prompts = asking.sampler.prompts([{"prompt": f"{n} + 2 ="} for n in range(5)])
                asked = Sampling(n=2, max_tokens=9, temperature=0.7, seed=state.global_step)
                answers.append(asking.sampler.held_out(prompts, asked, 64))

    plain = trainer(tiny_v3)
    plain.train()
    asking = trainer(tiny_v3)
    asking.add_callback(Asks())
    asking.train()
    assert [[len(group) for group in groups] for groups in answers] == [[2] * 5] * STEPS
    other = plain.model.state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in asking.model.state_dict().items())


def test_a_v3_policy_and_its_engine_agree_at_every_step(tiny_v3: Path, trainer: Callable[..., GrpoTrainer]) -> None:
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


def test_an_adapter_and_its_engine_agree_at_every_step(tiny_v3: Path, trainer: Callable[..., GrpoTrainer]) -> None:
    """Latent attention's kv_b_proj and stacks of experts included, which vLLM would ignore or refuse as adapters."""
    trained = trainer(tiny_v3, adapter={"rank": 4}, beta=0.1)
    before = {name: tensor.clone() for name, tensor in trained.model.named_parameters()}
    trained.train()
    assert len(differences(trained)) == STEPS
    assert max(differences(trained)) < ROUNDING
    after = dict(trained.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name].cpu(), after[name].cpu())}
    assert all(".lora_" in name for name in moved), "the base was written"
    assert {name.partition("layers.1.")[2] for name in moved} >= {
        "mlp.experts.base_layer.lora_B.default.weight",
        "self_attn.kv_b_proj.lora_B.default.weight",
        "mlp.shared_experts.up_proj.lora_B.default.weight",
    }


def test_the_trainers_process_becomes_no_rank(tiny_v3: Path, trainer: Callable[..., GrpoTrainer]) -> None:
    """An engine that listens at a port of its own lets two runs start at once on one host."""
    before = {name: os.environ.get(name) for name in ("MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")}
    trainer(tiny_v3)
    assert {name: os.environ.get(name) for name in before} == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's memory can be given back")
def test_an_engine_that_sleeps_wakes_with_the_policys_weights(
    calculator: Path, trainer: Callable[..., GrpoTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)  # vLLM refuses growing segments beside sleeping
    runs = []
    for sleeps in (False, True):
        trained = trainer(calculator, vllm_enable_sleep_mode=sleeps, use_cpu=False)
        trained.train()
        trained.sampler.close()
        runs.append(differences(trained))
    awake, slept = runs
    assert len(slept) == STEPS
    # TF32 in one of two implementations of float32 is what is left; an engine with weights of a step before has more.
    assert slept == pytest.approx(awake, rel=0.2)


def test_rollouts_depend_on_seed_number_and_weights_alone(
    calculator: Path, trainer: Callable[..., GrpoTrainer]
) -> None:
    """So a resumed run samples what an uninterrupted one would have, whatever was sampled before."""
    trained = trainer(calculator, temperature=2.0)
    trained.train()
    assert max(differences(trained)) < ROUNDING
    problems = [{"prompt": f"User: {a} + 1 =\nAssistant:\n"} for a in range(3) for _ in range(GROUP)]
    first = trained.sampler.batch(7, problems)
    torch.manual_seed(1234)
    extra, more = trained.sampler.extra(problems), trained.sampler.extra(problems)
    again = trained.sampler.batch(7, problems)
    assert first == again
    assert first.completion_ids != trained.sampler.batch(8, problems).completion_ids
    assert extra.completion_ids not in (first.completion_ids, more.completion_ids)
    assert extra == trained.sampler.extra(problems), "the first on top of a batch"
    assert len({tuple(ids) for ids in first.completion_ids}) > 3, "sampled, not greedy"
    assert [len(row) for row in first.logprobs or []] == [len(ids) for ids in first.completion_ids]


def test_a_group_that_lies_in_two_processes_is_sampled_row_by_row(
    calculator: Path, trainer: Callable[..., GrpoTrainer]
) -> None:
    trained = trainer(calculator)
    problems = [{"prompt": f"User: {a} + 1 =\nAssistant:\n"} for a in (0, 0, 1, 1, 1, 1)]
    sampled = trained.sampler.extra(problems)
    assert sampled.prompt_ids == trained.sampler.prompts(problems)
    assert len(sampled.completion_ids) == len(problems)


def test_without_an_importance_correction_no_log_probabilities_are_asked_for(
    calculator: Path, trainer: Callable[..., GrpoTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    trained = trainer(calculator, vllm_importance_sampling_correction=False, max_steps=1, seed=3)
    assert not trained.sampler.scored
    with caplog.at_level(logging.WARNING):
        trained.train()
    assert differences(trained) == []
    assert not [record for record in caplog.records if "log-probabilities" in record.message]
    assert engine_config(trained).model_config.seed not in (0, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generation_kwargs": {"stop": ["x"]}}, "generation_kwargs has no effect on an engine"),
        ({"repetition_penalty": 1.1}, "repetition_penalty has no effect"),
        ({"vllm_tensor_parallel_size": 2}, "on one GPU; set it to 1"),
    ],
)
def test_what_the_engine_does_not_do_is_refused(
    calculator: Path, trainer: Callable[..., GrpoTrainer], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(calculator, **fields)


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
