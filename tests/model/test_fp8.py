"""FP8: arithmetic against hand computation and transformers, training against FP32, checkpoints both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import V3Config, V3ForCausalLM, fp8
from model.fp8.linear import FP8Linear, reference
from model.fp8.quantise import COLUMN, E4M3, ROW, SQUARE, dequantise, quantise, rounded
from model.fp8.training import tune_quickly

HALF_STEP = 2.0**-4
"""Half a step of E4M3's three bits of mantissa, relative to the number."""

SMALLEST_HALF_STEP = 2.0**-10
"""Half of E4M3's smallest number, which steps below 2**-6 are as wide as."""

ALIGNED = {
    "vocab_size": 32,
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 96,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.08,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "dtype": "float32",
}
"""The smallest shape whose experts and latents come in whole blocks; the dense layer does not."""


def tiny(**changes: Any) -> Any:
    torch.manual_seed(0)
    model = V3ForCausalLM(V3Config(**{**ALIGNED, **changes}))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(-0.01, 0.01, buffer.numel()))
    return model


def test_a_tile_by_hand() -> None:
    x = torch.zeros(2, 256)
    x[0, :3] = torch.tensor([448.0, -19.0, 17.0])
    x[0, 128:131] = torch.tensor([4.48, 0.0, 0.33])
    numbers, scales = quantise(x, ROW)
    assert scales.shape == (2, 2)
    torch.testing.assert_close(scales[0], torch.tensor([1.0, 0.01]))
    # between 16 and 32 E4M3 steps by 2, and halves go to the even mantissa
    assert numbers[0, :3].float().tolist() == [448.0, -20.0, 16.0]
    # 0.33 / 0.01 = 33, between 32 and 36
    assert numbers[0, 128:131].float().tolist() == [448.0, 0.0, 32.0]
    assert dequantise(numbers, scales, ROW)[1].abs().max() == 0


@pytest.mark.parametrize("tile", [ROW, COLUMN, SQUARE])
@pytest.mark.parametrize("shape", [(256, 128), (70, 300), (3, 130, 200), (0, 128)])
def test_the_error_is_half_a_step_of_each_tile(tile: tuple[int, int], shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[-1])
    numbers, scales = quantise(x, tile)
    assert numbers.dtype == E4M3
    assert numbers.shape == x.shape
    wide = scales.repeat_interleave(tile[0], -2).repeat_interleave(tile[1], -1)[..., : shape[-2], : shape[-1]]
    bound = torch.maximum(x.abs() * HALF_STEP, wide * SMALLEST_HALF_STEP) * (1 + 1e-5)
    assert ((dequantise(numbers, scales, tile) - x).abs() <= bound).all()


def test_an_outlier_spoils_its_own_tile_alone() -> None:
    torch.manual_seed(2)
    x = torch.randn(4, 512)
    spoilt = x.clone()
    spoilt[2, 200] = 1e6
    clean, dirty = rounded(x, ROW), rounded(spoilt, ROW)
    changed = (clean != dirty).reshape(4, 4, 128).any(-1)
    assert changed.nonzero().tolist() == [[2, 1]]


def test_weights_agree_with_transformers_quantiser_and_dequantiser() -> None:
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    torch.manual_seed(3)
    weight = torch.randn(256, 384) * torch.logspace(-2, 1, 384)
    quantizer = FineGrainedFP8HfQuantizer(FineGrainedFP8Config(weight_block_size=(128, 128)))
    theirs = Fp8Quantize(quantizer).convert({"x.weight": weight})
    numbers, scales = quantise(weight, SQUARE)
    torch.testing.assert_close(scales, theirs["x.weight_scale_inv"])
    same = (numbers.float() == theirs["x.weight"].float()).float().mean()
    assert same > 0.999  # they multiply with the reciprocal, which sends a few numbers over the middle of a step
    restored = Fp8Dequantize(quantizer)._dequantize_one(numbers, scales, torch.float32)
    assert restored.equal(dequantise(numbers, scales, SQUARE))


def by_blocks(a_MK: torch.Tensor, b_NK: torch.Tensor, b_rows: int) -> torch.Tensor:
    """a · bᵀ as a kernel computes it: sums over 128 products of E4M3 numbers, scaled and added up in FP64."""
    (a8, a_scale), (b8, b_scale) = quantise(a_MK, ROW), quantise(b_NK, (b_rows, 128))
    total = torch.zeros(len(a_MK), len(b_NK), dtype=torch.float64)
    for block, start in enumerate(range(0, a_MK.shape[1], 128)):
        part = a8[:, start : start + 128].double() @ b8[:, start : start + 128].double().T
        scale = b_scale[:, block].repeat_interleave(b_rows)[: len(b_NK)]
        total += part * a_scale[:, block, None].double() * scale.double()
    return total


@pytest.mark.parametrize(("tokens", "out", "width"), [(256, 128, 384), (70, 192, 130)])
def test_the_three_products_are_those_of_block_wise_kernels(tokens: int, out: int, width: int) -> None:
    torch.manual_seed(4)
    x, weight, grad = torch.randn(tokens, width), torch.randn(out, width), torch.randn(tokens, out)
    x.requires_grad_(), weight.requires_grad_()
    y = reference(x, weight)
    y.backward(grad)
    with torch.no_grad():
        expected = {
            "forward": (y, by_blocks(x, weight, 128)),
            "dgrad": (x.grad, by_blocks(grad, weight.T, 128)),
            "wgrad": (weight.grad, by_blocks(grad.T.contiguous(), x.T.contiguous(), 1)),
        }
    for name, (got, want) in expected.items():
        assert got is not None
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: name + text)
    exact = x.detach() @ weight.detach().T
    error = (y - exact).norm() / exact.norm()
    assert 0.005 < error < 0.05  # it is FP8, and no worse than FP8


def test_what_stays_in_its_precision() -> None:
    model = tiny(num_hidden_layers=2)
    names = {name for name, _ in model.named_parameters()}
    kept = {name for name in names if not fp8.in_fp8(name)}
    norms = ["input_layernorm", "post_attention_layernorm", "self_attn.kv_a_layernorm"]
    assert kept == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        *(f"model.layers.{n}.{norm}.weight" for n in (0, 1) for norm in norms),
    }
    published = ["eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight", "shared_head.head.weight"]
    assert not any(fp8.in_fp8(f"model.layers.61.{name}") for name in [*published, "embed_tokens.weight"])
    assert fp8.in_fp8("model.layers.61.self_attn.kv_a_proj_with_mqa.weight")
    assert fp8.in_fp8("model.layers.61.mlp.experts.7.gate_proj.weight")


def loss_and_grads(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    ids = torch.randint(2, 32, (4, 24))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


def test_a_model_in_fp8_has_nearly_the_gradients_of_one_without() -> None:
    loss, grads = loss_and_grads(tiny())
    model = tiny()
    names = set(model.state_dict())
    converted = fp8.fp8_training(model, "reference")
    assert set(model.state_dict()) == names
    assert "model.layers.1.mlp.experts" in converted
    assert type(model.lm_head) is torch.nn.Linear
    assert isinstance(model.model.layers[0].self_attn.q_proj, FP8Linear)
    simulated, rough = loss_and_grads(model)
    assert simulated != loss
    assert abs(simulated - loss) / loss < 0.02  # one batch of an untrained model
    for name, grad in grads.items():
        likeness = torch.cosine_similarity(grad.flatten(), rough[name].flatten(), dim=0)
        assert likeness > (0.8 if ".gate." in name else 0.9), name  # a token may be sent to another expert


def test_experts_equal_a_loop_over_tokens() -> None:
    model = tiny()
    fp8.fp8_training(model, "reference")
    experts = model.model.layers[1].mlp.experts
    torch.manual_seed(6)
    hidden, index, weights = torch.randn(9, 128), torch.randint(0, 3, (9, 2)), torch.rand(9, 2)
    index[4, 1] = experts.num_experts  # how expert parallelism marks what another rank computes
    expected = torch.zeros(9, 128)
    for token in range(9):
        for slot in range(2):
            expert = int(index[token, slot])
            if expert < experts.num_experts:
                gate, up = reference(hidden[token, None], experts.gate_up_proj[expert]).chunk(2, dim=-1)
                out = reference(torch.nn.functional.silu(gate) * up, experts.down_proj[expert])
                expected[token] += out[0] * weights[token, slot]
    torch.testing.assert_close(experts(hidden, index, weights), expected)


def test_experts_that_do_not_divide_into_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 128"):
        fp8.fp8_training(tiny(moe_intermediate_size=64), "reference")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder in FP32, its weights in several files."""
    folder = tmp_path_factory.mktemp("fp8-plain")
    tiny().save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def published(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in FP8."""
    folder = tmp_path_factory.mktemp("fp8-published")
    assert "model.layers.0.mlp.gate_proj.weight" in fp8.write(saved, folder)  # has an incomplete block
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_a_checkpoint_is_in_the_official_format(saved: Path, published: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
    }
    assert config["q_lora_rank"] is None
    assert fp8.is_fp8(published)
    assert not fp8.is_fp8(saved)
    tensors = state(published)
    index = json.loads((published / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    expert, scale = "model.layers.1.mlp.experts.3.down_proj.weight", "model.layers.1.mlp.experts.3.down_proj"
    assert tensors[expert].dtype == E4M3
    assert tensors[f"{scale}.weight_scale_inv"].dtype == torch.float32
    assert tensors["model.layers.0.mlp.gate_proj.weight_scale_inv"].shape == (2, 1)  # 192 rows: the last block is short
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.1.mlp.gate.weight"].dtype == torch.bfloat16
    assert tensors["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32


def test_a_checkpoint_comes_back_to_within_its_rounding(saved: Path, published: Path, tmp_path: Path) -> None:
    fp8.read(published, tmp_path, torch.float32)
    assert not fp8.is_fp8(tmp_path)
    before, after = state(saved), state(tmp_path)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.endswith("e_score_correction_bias"):
            assert tensor.equal(after[name])
        elif fp8.in_fp8(name):
            assert after[name].equal(rounded(tensor, SQUARE)), name
        else:
            assert after[name].equal(tensor.bfloat16().float()), name
    again = tmp_path / "again"
    fp8.write(tmp_path, again)  # what has been rounded once stays as it is
    assert all(tensor.float().equal(state(published)[name].float()) for name, tensor in state(again).items())


def test_transformers_loads_the_values_that_we_read(published: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = tmp_path / "whole"
    fp8.write(_aligned(tmp_path / "plain"), whole)
    theirs = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    ours = tmp_path / "ours"
    fp8.read(whole, ours, torch.float32)
    mine = V3ForCausalLM.from_pretrained(ours)
    for name, tensor in mine.state_dict().items():
        assert tensor.equal(theirs.state_dict()[name].to(tensor.dtype)), name


def _aligned(folder: Path) -> Path:
    """A model of whole blocks alone: transformers' dequantiser refuses or misreads others."""
    tiny(intermediate_size=256, v_head_dim=32).save_pretrained(folder)
    return folder


def test_a_weight_whose_scale_is_lost_is_an_error(published: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((published / "config.json").read_text())
    lost = {name: tensor for name, tensor in state(published).items() if "o_proj.weight_scale" not in name}
    save_file(lost, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"o_proj\.weight is FP8, but no file holds"):
        fp8.read(broken, tmp_path / "out")


def test_torchao_tries_few_ways_to_launch_a_kernel() -> None:
    """Its tuner reads `configs` at each new width; that those are still there is what this test is for."""
    kernels = pytest.importorskip("torchao.prototype.blockwise_fp8_training.kernels")
    assert tune_quickly() == 5
    assert tune_quickly() == 5, "again, it stays as it is"
    for name in ("act_quant_lhs", "act_quant_rhs", "act_quant_transposed_lhs", "weight_quant_rhs"):
        configs = getattr(kernels, f"triton_fp8_blockwise_{name}_kernel").configs
        assert 1 <= len(configs) <= 5
        assert all((config.num_warps, config.num_stages) == (4, 2) for config in configs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_torchao_computes_what_the_reference_computes() -> None:
    pytest.importorskip("torchao")
    from model.fp8.linear import torchao

    torch.manual_seed(7)
    results = []
    for product in (reference, torchao):
        torch.manual_seed(7)
        x = torch.randn(200, 576, device="cuda", requires_grad=True)
        weight = torch.randn(320, 576, device="cuda", requires_grad=True)
        y = product(x, weight)
        y.backward(torch.randn_like(y).bfloat16().float())  # torchao's product hands BF16 on, and so gets it back
        results.append((y, x.grad, weight.grad))
    for want, got in zip(*results, strict=True):
        assert (got - want).norm() / want.norm() < 5e-3  # the kernels' results are BF16
