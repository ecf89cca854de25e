"""New weights in a vLLM engine: what it samples is scored as the policy itself scores it, after every sync."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from model import V3Config, V3ForCausalLM
from pipeline.rollout.base import RolloutError
from pipeline.rollout.vllm.patches.cpu_weights import keep_weights_loadable
from pipeline.rollout.weights import load_weights, official_weights

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

VOCABULARY, END = 64, 1
PROMPTS = [[5, 6, 7, 8], [9, 10], [3, 4, 5, 6, 7, 8, 9, 20, 21]]
ROUNDING = 1e-4
"""Largest difference of log-probabilities that fp32 on two implementations makes, with room."""


def llama(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": tied}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, **common()))


def v3(depth: int, latent: int = 32, rotary: int = 16, head: int = 16) -> Any:
    """A tiny DeepSeek-V3. Its expert width is none that the CPU kernel takes: the engine pads and packs experts."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": latent}
    dims = {"qk_rope_head_dim": rotary, "qk_nope_head_dim": head, "v_head_dim": head, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "mscale_all_dim": 1.0}
    ahead = {"num_nextn_predict_layers": depth, "rope_scaling": {**yarn, "mscale": 1.0}}
    return V3ForCausalLM(V3Config(**shape, **heads, **dims, **experts, **ahead, **common()))


def common() -> dict[str, Any]:
    ends = {"eos_token_id": END, "pad_token_id": 0, "bos_token_id": None}
    return {"vocab_size": VOCABULARY, "max_position_embeddings": 128, "initializer_range": 0.2, **ends}


MODELS = {"tied": lambda: llama(True), "untied": lambda: llama(False), "v3": lambda: v3(0), "v3-mtp": lambda: v3(1)}
SAME = 0.02
"""Largest difference of log-probabilities that the same kernels make in bf16, should they add in another order."""
PUBLISHED = {"latent": 512, "rotary": 64, "head": 128}
"""Widths that vLLM's kernels for latent attention are made for."""


def engine(folder: Path, **options: Any) -> Any:
    """An engine with the weights of a folder, which takes others."""
    from vllm import LLM

    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64, "gpu_memory_utilization": 0.1}
    keep_weights_loadable()
    return LLM(model=str(folder), skip_tokenizer_init=True, **{**settings, **options})


class Pair:
    """A policy, and an engine that was made from it."""

    def __init__(self, policy: Any, folder: Path, drafts: bool = False, **options: Any) -> None:
        self.policy, self.drafts = policy.eval(), drafts
        self.policy.save_pretrained(folder)
        speculation = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}} if drafts else {}
        self.llm = engine(folder, **speculation, **options)

    def close(self) -> None:
        from vllm.distributed.parallel_state import destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        destroy_model_parallel()

    def train(self, seed: int) -> None:
        """Change every weight, and the routing bias by so much that other experts are chosen."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
            for name, buffer in self.policy.named_buffers():
                if "e_score_correction_bias" in name:
                    buffer.add_(torch.randn_like(buffer) * 0.3)

    def difference(self) -> float:
        """Largest difference between the engine's and the policy's log-probability of a sampled token."""
        from vllm import SamplingParams

        how = SamplingParams(
            n=4, max_tokens=12, logprobs=0, flat_logprobs=True, detokenize=False, ignore_eos=True, temperature=1.0
        )
        outputs = self.llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], how, use_tqdm=False)
        worst = 0.0
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            for sample in output.outputs:
                ids = torch.tensor([[*prompt, *sample.token_ids]])
                with torch.no_grad():
                    logits_TV = self.policy(ids).logits[0, len(prompt) - 1 : -1].float()
                expected_T = logits_TV.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
                worst = max(worst, (expected_T - torch.tensor(sample.logprobs.logprobs)).abs().max().item())
        return worst

    def drafter_is_the_policys(self) -> bool:
        """Whether the block that drafts is the one that was trained; wrong drafts would only be slow."""
        (held,) = self.llm.collective_rpc(lambda worker: worker.model_runner.get_draft_model().model.layers["2"])
        block = self.policy.model.layers[2]
        return torch.equal(held.eh_proj.weight, block.eh_proj.weight) and torch.equal(
            held.mtp_block.self_attn.o_proj.weight, block.self_attn.o_proj.weight
        )


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are handed over as they are, which an engine in another process cannot take."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(params=list(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    torch.manual_seed(0)
    made = Pair(MODELS[request.param](), tmp_path, drafts=request.param == "v3-mtp")
    yield made
    made.close()


def test_engine_and_policy_agree_after_every_sync(pair: Pair) -> None:
    assert pair.difference() < ROUNDING
    for step in range(3):
        pair.train(step)
        assert pair.difference() > 0.5, "weights that were not synchronised must show"
        load_weights(pair.llm, official_weights(pair.policy))
        assert pair.difference() < ROUNDING
        assert not pair.drafts or pair.drafter_is_the_policys()
    incomplete = (item for item in official_weights(pair.policy) if "layers.1.self_attn.o_proj" not in item[0])
    with pytest.raises(RolloutError, match=r"1 weights .* such as model\.layers\.1\.self_attn\.o_proj\.weight"):
        load_weights(pair.llm, incomplete)


ON_A_GPU = {
    "graphs": (lambda: llama(True), {"enforce_eager": False}),
    "fp8": (lambda: llama(False), {"quantization": "fp8"}),
    "latent-attention": (lambda: v3(0, **PUBLISHED), {"enforce_eager": False}),
}


Scores = list[tuple[list[int], list[float]]]


def scores(llm: Any) -> Scores:
    """What an engine answers to the prompts without chance: tokens, and their log-probabilities."""
    from vllm import SamplingParams

    how = SamplingParams(
        max_tokens=24, logprobs=0, flat_logprobs=True, detokenize=False, ignore_eos=True, temperature=0.0
    )
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], how, use_tqdm=False)
    return [(list(output.outputs[0].token_ids), list(output.outputs[0].logprobs.logprobs)) for output in outputs]


def of_a_synced_engine(kind: str, folder: Path) -> list[Scores]:
    """Of an engine that is given weights after each of three trainings: at the start, and after each."""
    make, options = ON_A_GPU[kind]
    torch.manual_seed(0)
    pair = Pair(make(), folder / "start", dtype="bfloat16", **options)
    found = [scores(pair.llm)]
    for step in range(3):
        pair.train(step)
        load_weights(pair.llm, official_weights(pair.policy))
        found.append(scores(pair.llm))
    pair.policy.save_pretrained(folder / "trained")
    return found


def of_a_new_engine(kind: str, folder: Path) -> Scores:
    """Of an engine that was made from the weights in the end."""
    return scores(engine(folder / "trained", dtype="bfloat16", **ON_A_GPU[kind][1]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ON_A_GPU)
def test_what_a_gpu_derives_from_weights_is_made_anew(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured graphs, quantised copies and absorbed projections are those that the weights make in a new engine.

    Each engine is in a process of its own: vLLM captures graphs once in a process.
    """
    monkeypatch.delenv("VLLM_MLA_DISABLE", raising=False)
    found = []
    for make in (of_a_synced_engine, of_a_new_engine):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found.append(pool.submit(make, kind, tmp_path).result())
    (*stale, synced), new = found
    assert all(synced != before for before in stale)
    assert [tokens for tokens, _ in synced] == [tokens for tokens, _ in new]
    for (_, ours), (_, theirs) in zip(synced, new, strict=True):
        assert ours == pytest.approx(theirs, abs=SAME)
