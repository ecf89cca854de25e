"""MLA against the published inference formulas, written down anew here, and against transformers' expanded form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, DynamicCache, StaticCache
from transformers import DeepseekV3ForCausalLM as Official
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from model import V3Config, V3ForCausalLM
from model.norm import KernelRMSNorm, V3RMSNorm

ORIGINAL = 16
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 40.0,
    "original_max_position_embeddings": ORIGINAL,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 48,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_mtp_layers": 0,
    "q_lora_rank": 20,
    "kv_lora_rank": 28,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "max_position_embeddings": int(ORIGINAL * YARN["factor"]),  # type: ignore[call-overload]
    "initializer_range": 0.15,  # so that attention is anything but uniform
    "bos_token_id": None,
    "eos_token_id": 59,
    "pad_token_id": 0,
}
ROPES = pytest.mark.parametrize("rope", [DEFAULT, YARN], ids=["plain", "yarn"])
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def pair(implementation: str = "sdpa", **changes: Any) -> tuple[Any, Any]:
    """Our model and transformers' with the same weights, in float32."""
    fields = {**SHAPE, "rope_parameters": dict(DEFAULT), **changes}
    torch.manual_seed(0)
    ours = V3ForCausalLM._from_config(V3Config(**fields), attn_implementation=implementation).eval()
    theirs = Official._from_config(DeepseekV3Config(**fields), attn_implementation=implementation).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def prompt(batch: int = 3, tokens: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 59, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@contextmanager
def expansions(model: nn.Module) -> Iterator[list[int]]:
    """How many tokens' keys and values are expanded, one number for each time."""
    seen: list[int] = []
    hooks = [
        layer.self_attn.kv_b_proj.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-2]))
        for layer in model.model.layers
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def frequencies(config: Any) -> torch.Tensor:
    """Rotary frequencies as the published inference code makes them, YaRN's ramp included."""
    rope, dim = config.rope_parameters, config.qk_rope_head_dim
    freqs = 1.0 / rope["rope_theta"] ** (torch.arange(0, dim, 2).double() / dim)
    if rope["rope_type"] == "default":
        return freqs

    def dimension(turns: float) -> float:
        return dim * math.log(ORIGINAL / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), dim - 1)
    smooth = 1 - ((torch.arange(dim // 2).double() - low) / (high - low)).clamp(0, 1)
    return freqs / rope["factor"] * (1 - smooth) + freqs * smooth


def rotated(x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, heads, dim] with neighbouring dimensions as complex numbers, turned by their position."""
    turns = torch.polar(torch.ones(()).double(), torch.arange(x.shape[1]).double()[:, None] * freqs)
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns[None, :, None]).flatten(-2)


def published(attention: Any, hidden: torch.Tensor, absorbed: bool) -> torch.Tensor:
    """The two forms of the published inference code's attention, for a whole sequence, in float64."""
    config = attention.config
    weights = {name: weight.detach().double() for name, weight in attention.named_parameters()}
    hidden = hidden.double()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T

    batch, tokens, _ = hidden.shape
    heads, nope, rope, value = (
        config.num_attention_heads,
        *(getattr(config, name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")),
    )
    if config.q_lora_rank is None:
        query = linear(hidden, "q_proj")
    else:
        query = linear(norm(linear(hidden, "q_a_proj"), "q_a_layernorm"), "q_b_proj")
    q_nope, q_pe = query.view(batch, tokens, heads, nope + rope).split([nope, rope], dim=-1)
    freqs = frequencies(config)
    q_pe = rotated(q_pe, freqs)
    latent, k_pe = linear(hidden, "kv_a_proj_with_mqa").split([config.kv_lora_rank, rope], dim=-1)
    k_pe, latent = rotated(k_pe.unsqueeze(2), freqs), norm(latent, "kv_a_layernorm")
    scale = (nope + rope) ** -0.5
    if config.rope_parameters["rope_type"] == "yarn":
        scale *= (0.1 * math.log(config.rope_parameters["factor"]) + 1) ** 2
    up = weights["kv_b_proj.weight"].view(heads, nope + value, config.kv_lora_rank)
    causal = torch.full((tokens, tokens), -torch.inf).double().triu(1)
    if absorbed:
        q_nope = torch.einsum("bshd,hdc->bshc", q_nope, up[:, :nope])
        scores = torch.einsum("bshc,btc->bsht", q_nope, latent) + torch.einsum("bshr,btr->bsht", q_pe, k_pe.squeeze(2))
    else:
        k, v = torch.einsum("btc,hdc->bthd", latent, up).split([nope, value], dim=-1)
        k, query = torch.cat([k, k_pe.expand(-1, -1, heads, -1)], dim=-1), torch.cat([q_nope, q_pe], dim=-1)
        scores = torch.einsum("bshd,bthd->bsht", query, k)
    scores = (scores * scale + causal[None, :, None]).softmax(-1)
    if absorbed:
        out = torch.einsum("bshc,hdc->bshd", torch.einsum("bsht,btc->bshc", scores, latent), up[:, nope:])
    else:
        out = torch.einsum("bsht,bthd->bshd", scores, v)
    return linear(out.flatten(2), "o_proj")


@ROPES
@pytest.mark.parametrize("q_lora_rank", [20, None])
def test_both_forms_are_the_published_formulas(rope: dict[str, Any], q_lora_rank: int | None) -> None:
    model, _ = pair(rope_parameters=dict(rope), q_lora_rank=q_lora_rank)
    attention, cache = model.model.layers[0].self_attn, DynamicCache()
    hidden = torch.randn(2, 40, 48, generator=torch.Generator().manual_seed(2))
    position_embeddings = model.model.rotary_emb(hidden, torch.arange(40)[None])
    with torch.no_grad(), expansions(model) as seen:
        whole = attention(hidden, position_embeddings, None)[0]
        steps = [attention(hidden[:, :30], [part[:, :30] for part in position_embeddings], None, cache)[0]]
        steps += [
            attention(hidden[:, t : t + 1], [part[:, t : t + 1] for part in position_embeddings], None, cache)[0]
            for t in range(30, 40)
        ]
    assert seen == [40, 30], "decoding must read the cache as it lies"
    torch.testing.assert_close(published(attention, hidden, True), published(attention, hidden, False))
    torch.testing.assert_close(whole.double(), published(attention, hidden, absorbed=False), **EXACT)
    torch.testing.assert_close(torch.cat(steps, dim=1).double(), published(attention, hidden, absorbed=True), **EXACT)


@ROPES
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=["greedy", "beams", "static cache"]
)
def test_generation_is_transformers_own(rope: dict[str, Any], implementation: str, how: dict[str, Any]) -> None:
    """A batch of different lengths, padded on the left, one of them beyond the original context."""
    ours, theirs = pair(implementation, rope_parameters=dict(rope), q_lora_rank=None if how else 20)
    ids = prompt(tokens=20)
    mask = torch.ones_like(ids)
    mask[0, :15] = mask[1, :3] = 0
    ids[mask == 0] = 0
    asked = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True, **how}
    with expansions(ours) as seen:
        mine = ours.generate(ids, attention_mask=mask, **asked)
    other = theirs.generate(ids, attention_mask=mask, **asked)
    assert mine.sequences.equal(other.sequences)
    for step, (a, b) in enumerate(zip(mine.logits, other.logits, strict=True)):
        torch.testing.assert_close(a, b, **EXACT, msg=lambda text, step=step: f"step {step}: {text}")
    assert len(seen) == 2, "only the prefill expands, once a layer"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_several_tokens_are_verified_and_some_are_taken_back(implementation: str) -> None:
    """What speculative decoding does: a few tokens at once behind a long cache, then a crop, then others."""
    ours, theirs = pair(implementation)
    ids, wrong = prompt(tokens=40), prompt(tokens=4, seed=5)
    cache = DynamicCache()
    with torch.no_grad(), expansions(ours) as seen:
        whole = theirs(ids).logits
        ours(ids[:, :30], past_key_values=cache)
        ours(wrong, past_key_values=cache)
        cache.crop(-4)
        got = ours(ids[:, 30:34], past_key_values=cache).logits
        rest = ours(ids[:, 34:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat([got, rest], dim=1), whole[:, 30:], **EXACT)
    assert set(seen) == {30}


def test_the_cache_holds_one_latent_and_one_key_a_token() -> None:
    ours, theirs = pair()
    ids = prompt()
    caches = [DynamicCache(), StaticCache(config=ours.config, max_cache_len=32), DynamicCache()]
    with torch.no_grad():
        for model, cache in zip((ours, ours, theirs), caches, strict=True):
            model(ids[:, :-1], past_key_values=cache)
            model(ids[:, -1:], past_key_values=cache)
    dynamic, static, reference = (cache.layers[1] for cache in caches)
    assert dynamic.keys.shape == (3, 1, 12, 28)
    assert dynamic.values.shape == (3, 1, 12, 8)
    for name in ("keys", "values"):
        torch.testing.assert_close(getattr(dynamic, name), getattr(reference, name), **EXACT)
        torch.testing.assert_close(getattr(static, name)[:, :, :12], getattr(reference, name), **EXACT)


def test_gradients_through_a_cached_step_are_those_of_the_whole_sequence() -> None:
    ours, theirs = pair("eager")
    ids = prompt(tokens=24)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits[:, -4:-1].flatten(0, 1), ids[:, -3:].flatten())

    ours.train()
    cache = DynamicCache()
    with expansions(ours) as seen:
        ours(ids[:, :20], past_key_values=cache)
        loss(ours(ids[:, 20:], past_key_values=cache).logits).backward()
    loss(theirs(ids).logits).backward()
    assert set(seen) == {20}
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


class Adapted(nn.Linear):
    """A projection that does more than its weight says, as adapters and quantised layers do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(x)


def test_a_projection_that_is_more_than_its_weight_is_called() -> None:
    ours, _ = pair()
    for layer in ours.model.layers:
        plain = layer.self_attn.kv_b_proj
        layer.self_attn.kv_b_proj = Adapted(plain.in_features, plain.out_features, bias=False)
        layer.self_attn.kv_b_proj.weight = plain.weight
    ids, cache = prompt(), DynamicCache()
    with torch.no_grad():
        whole = ours(ids).logits[:, -1]
        ours(ids[:, :-1], past_key_values=cache)
        torch.testing.assert_close(ours(ids[:, -1:], past_key_values=cache).logits[:, -1], whole, **EXACT)


def test_attention_weights_can_be_asked_for_while_decoding() -> None:
    ours, theirs = pair("eager")
    weights = []
    for model in (ours, theirs):
        cache = DynamicCache()
        with torch.no_grad():
            model(prompt(tokens=11), past_key_values=cache)
            weights.append(model(prompt(tokens=1, seed=3), past_key_values=cache, output_attentions=True).attentions)
    for mine, other in zip(*weights, strict=True):
        torch.testing.assert_close(mine, other, **EXACT)


def test_bfloat16_is_no_further_from_float32_than_transformers_is() -> None:
    """Over many positions, so that no single rounding decides."""
    models = pair()
    ids = prompt(batch=8, tokens=60)
    with torch.no_grad():
        exact = models[1](ids).logits[:, 40:]
        errors = []
        for model in models:
            cache, half = DynamicCache(), model.to(torch.bfloat16)
            half(ids[:, :40], past_key_values=cache)
            steps = [half(ids[:, t : t + 1], past_key_values=cache).logits for t in range(40, 60)]
            errors.append((torch.cat(steps, dim=1).float() - exact).pow(2).mean().sqrt().item())
    mine, other = errors
    assert mine < 1.25 * other


@pytest.mark.parametrize("context", [4, 64, 512])
@pytest.mark.parametrize("queries", [1, 4, 16, 64])
def test_never_more_multiplications_than_expanding(context: int, queries: int) -> None:
    """Counted by torch, for one layer behind a context; a tie may go either way."""
    counts = []
    for model in pair("eager", kv_lora_rank=128, qk_nope_head_dim=32, v_head_dim=32):
        hidden, cache = torch.randn(1, context + queries, 48), DynamicCache()
        cos, sin = model.model.rotary_emb(hidden, torch.arange(context + queries)[None])
        mask = torch.zeros(1, 1, queries, context + queries)
        attention, before = model.model.layers[0].self_attn, slice(0, context)
        with torch.no_grad():
            attention(hidden[:, before], (cos[:, before], sin[:, before]), None, cache)
            with FlopCounterMode(display=False) as counter:
                attention(hidden[:, context:], (cos[:, context:], sin[:, context:]), mask, cache)
        counts.append(counter.get_total_flops())
    assert counts[0] <= counts[1]
    if queries == 1 and context == 512:
        assert counts[0] < 0.25 * counts[1]


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention", "flash_attention_2"])
def test_kernels_of_the_gpu_train_and_decode_the_published_heads(implementation: str) -> None:
    """Gradients of a row, and steps behind a cache, in bfloat16; against eager attention in float32."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if implementation == "flash_attention_2":
        pytest.importorskip("flash_attn")
    heads = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}
    _, exact = pair("eager", **heads, initializer_range=0.02)
    fast, _ = pair(implementation, **heads, initializer_range=0.02)
    exact, fast = exact.cuda(), fast.to("cuda", torch.bfloat16)
    ids, cache = prompt(tokens=128).cuda(), DynamicCache()
    grads = []
    for model in (exact, fast):
        model(ids, labels=ids).loss.backward()
        grads.append(model.model.layers[0].self_attn.kv_b_proj.weight.grad.float())
    assert (grads[1] - grads[0]).norm() < 0.05 * grads[0].norm()
    with torch.no_grad():
        whole = exact(ids).logits[:, 120:]
        fast(ids[:, :120], past_key_values=cache)
        steps = [fast(ids[:, t : t + 1], past_key_values=cache).logits for t in range(120, 128)]
    assert (torch.cat(steps, dim=1).float() - whole).norm() < 0.05 * whole.norm()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [KernelRMSNorm, V3RMSNorm])
def test_norms_are_transformers(kind: type, dtype: torch.dtype, device: str) -> None:
    """Output and both gradients, also of rows that are views; in bfloat16 to a rounding of it."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    torch.manual_seed(0)
    weight, data, towards = torch.randn(48), torch.randn(2, 3, 96), torch.randn(2, 3, 48)
    found = []
    for norm in (kind(48, 1e-5), DeepseekV3RMSNorm(48, 1e-5)):
        norm.weight.data = weight.clone()
        norm.to(device, dtype)
        x = data.to(device, dtype).requires_grad_()
        y = norm(x[..., ::2])
        y.backward(towards.to(device, dtype))
        found.append([y, x.grad, norm.weight.grad])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= (1e-6 if dtype == torch.float32 else 5e-3) * theirs.norm()
