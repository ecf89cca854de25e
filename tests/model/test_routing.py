"""Gates against the papers' formulas, token by token, and against transformers' gates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from model import V3Config, V3ForCausalLM
from model.config import V2Config
from model.routing import V3MoE, V3Router

HIDDEN, EXPERTS, CHOSEN, TOKENS = 6, 12, 3, 200
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "routed_scaling_factor": 2.5,
}
V3_GATES = [
    {"n_group": 4, "topk_group": 2, "norm_topk_prob": True},
    {"n_group": 1, "topk_group": 1, "norm_topk_prob": True},
    {"n_group": 3, "topk_group": 1, "norm_topk_prob": False},
    {"n_group": 4, "topk_group": 4, "norm_topk_prob": True},
]
V2_GATES = [
    {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
    {"n_group": 6, "topk_group": 3, "topk_method": "group_limited_greedy"},
    {"n_group": 1, "topk_group": 1, "topk_method": "greedy"},
]


def gate(config: Any) -> tuple[V3Router, torch.Tensor]:
    """A gate with random weights and a random bias, and tokens."""
    torch.manual_seed(0)
    router = V3Router(config)
    router.weight.data.normal_()
    if router.e_score_correction_bias is not None:
        router.e_score_correction_bias.normal_(std=0.3)
    return router, torch.randn(TOKENS, HIDDEN)


def as_rows(weights_TK: torch.Tensor, experts_TK: torch.Tensor) -> list[dict[int, float]]:
    """Expert -> weight for every token: the order of the chosen experts means nothing."""
    pairs = zip(experts_TK.tolist(), weights_TK.tolist(), strict=True)
    return [dict(zip(experts, weights, strict=True)) for experts, weights in pairs]


def by_hand(config: Any, router: V3Router, token: torch.Tensor) -> dict[int, float]:
    """DeepSeek-V3, equations 12 to 16, and DeepSeek-V2, section 2.2, for one token in plain Python."""
    logits = [float(row @ token) for row in router.weight.detach()]
    if config.scoring_func == "sigmoid":
        affinity = [1 / (1 + math.exp(-logit)) for logit in logits]
        choice = [a + float(b) for a, b in zip(affinity, router.e_score_correction_bias, strict=True)]
        best = 2
    else:
        whole = sum(math.exp(logit) for logit in logits)
        affinity = [math.exp(logit) / whole for logit in logits]
        choice, best = affinity, 1
    size = EXPERTS // config.n_group
    groups = [range(start, start + size) for start in range(0, EXPERTS, size)]
    groups.sort(key=lambda group: -sum(sorted(choice[i] for i in group)[-best:]))
    allowed = [i for group in groups[: config.topk_group] for i in group]
    chosen = sorted(allowed, key=lambda i: -choice[i])[:CHOSEN]
    norm = sum(affinity[i] for i in chosen) if config.norm_topk_prob else 1.0
    return {i: config.routed_scaling_factor * affinity[i] / norm for i in chosen}


@pytest.mark.parametrize("groups", [*V3_GATES, *V2_GATES], ids=str)
def test_gates_are_the_papers_formulas(groups: dict[str, Any]) -> None:
    config = (V2Config if "topk_method" in groups else V3Config)(**SIZES, **groups)
    router, tokens_TD = gate(config)
    _, weights_TK, experts_TK = router(tokens_TD)
    expected = [by_hand(config, router, token) for token in tokens_TD]
    for found, wanted in zip(as_rows(weights_TK.detach(), experts_TK), expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("groups", V3_GATES, ids=str)
def test_the_v3_gate_is_that_of_transformers(groups: dict[str, Any]) -> None:
    router, tokens_TD = gate(V3Config(**SIZES, **groups))
    theirs = DeepseekV3TopkRouter(DeepseekV3Config(**SIZES, **groups))
    theirs.load_state_dict(router.state_dict())
    compare(router, theirs, tokens_TD)


@pytest.mark.parametrize("groups", V2_GATES, ids=str)
def test_v2_gates_are_those_of_transformers(groups: dict[str, Any]) -> None:
    router, tokens_TD = gate(V2Config(**SIZES, **groups))
    theirs = DeepseekV2TopkRouter(DeepseekV2Config(**SIZES, **groups, num_attention_heads=1))
    theirs.load_state_dict(router.state_dict())
    compare(router, theirs, tokens_TD)


def compare(ours: Any, theirs: Any, tokens_TD: torch.Tensor) -> None:
    """Same choices, weights and gradients."""
    gradients = []
    rows = []
    pull_E = torch.randn(EXPERTS)
    for router in (ours, theirs):
        tokens = tokens_TD.clone().requires_grad_()
        _, weights_TK, experts_TK = router(tokens)
        (weights_TK * pull_E[experts_TK]).sum().backward()
        gradients.append((tokens.grad, router.weight.grad))
        rows.append(as_rows(weights_TK.detach(), experts_TK))
    for found, wanted in zip(*rows, strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_bias_chooses_and_does_not_weigh() -> None:
    config = V3Config(**SIZES, n_group=1, topk_group=1, norm_topk_prob=True)
    router, tokens_TD = gate(config)
    router.e_score_correction_bias.zero_()
    router.e_score_correction_bias[7] = 100.0
    _, weights_TK, experts_TK = router(tokens_TD)
    assert (experts_TK == 7).any(-1).all()
    assert float(weights_TK.detach().max()) < config.routed_scaling_factor
    torch.testing.assert_close(weights_TK.sum(-1), torch.full((TOKENS,), config.routed_scaling_factor))


def test_gates_route_in_float32_also_under_autocast() -> None:
    router, tokens_TD = gate(V3Config(**SIZES, n_group=1, topk_group=1))
    with torch.autocast("cpu", torch.bfloat16):
        logits_TE, weights_TK, _ = router(tokens_TD)
    assert logits_TE.equal(router(tokens_TD)[0])
    assert weights_TK.dtype == torch.float32


def test_no_token_is_dropped_when_all_want_one_expert() -> None:
    """With a capacity, tokens beyond it would get nothing of an expert that all of them chose."""
    config = V3Config(**{**SIZES, "num_experts_per_tok": 1}, n_group=1, topk_group=1, moe_intermediate_size=8)
    torch.manual_seed(0)
    layer = V3MoE(config)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    layer.gate.e_score_correction_bias[3] = 100.0
    tokens_TD = torch.randn(1, TOKENS, HIDDEN)
    gate_up, down = layer.experts.gate_up_proj[3], layer.experts.down_proj[3]
    left, right = (tokens_TD @ gate_up.T).chunk(2, dim=-1)
    expected = 2.5 * (torch.nn.functional.silu(left) * right) @ down.T
    torch.testing.assert_close(layer(tokens_TD) - layer.shared_experts(tokens_TD), expected, rtol=1e-4, atol=1e-4)


def test_a_preset_with_a_v2_gate_is_a_v2_model() -> None:
    config = V3Config.preset("v2-lite", vocab_size=8)
    assert (config.model_type, config.topk_method, config.norm_topk_prob) == ("deepseek_v2", "greedy", False)
    assert V3Config.preset("nano", vocab_size=8).model_type == V3ForCausalLM.config_class.model_type == "deepseek_v3"
