"""torchtitan's layout: its own table of names where it is installed, and the way there and back."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from model import V3Config, V3ForCausalLM
from model.parallel import torchtitan
from tests.model.ranks import SHAPE


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with query compression, a prediction block and a bias that is not zero."""
    torch.manual_seed(0)
    shape = {**SHAPE, "q_lora_rank": 24, "num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    model = V3ForCausalLM(V3Config(**shape))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.randn(8))
    folder = tmp_path_factory.mktemp("titan")
    model.save_pretrained(folder)
    return folder


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_there_and_back_through_a_distributed_checkpoint(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    torchtitan.write(saved, tmp_path / "titan")
    torchtitan.read(tmp_path / "titan", tmp_path / "back")
    before, after = state(saved), state(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert len(list((tmp_path / "back").glob("*.safetensors"))) == 4  # embedding and head; two layers; the block


def test_experts_lie_one_after_another(saved: Path) -> None:
    before = state(saved)
    renamed = torchtitan.to_torchtitan(before)
    stacked = renamed["layers.1.moe.routed_experts.inner_experts.w2_EDF"]
    assert stacked.shape == (8, SHAPE["hidden_size"], SHAPE["moe_intermediate_size"])
    assert stacked[5].equal(before["model.layers.1.mlp.experts.5.down_proj.weight"])
    assert renamed["layers.1.moe.expert_bias_E"].equal(before["model.layers.1.mlp.gate.e_score_correction_bias"])
    assert renamed["layers.0.feed_forward.w3.weight"].equal(before["model.layers.0.mlp.up_proj.weight"])


def test_prediction_blocks_are_counted_apart(saved: Path) -> None:
    """As torchtitan's model has them; the adapter's own table names them as layers, and then moves them."""
    renamed = torchtitan.to_torchtitan(state(saved))
    assert renamed["mtp_layers.0.enorm.weight"].equal(state(saved)["model.layers.2.enorm.weight"])
    assert renamed["mtp_layers.0.moe.routed_experts.inner_experts.w1_EFD"].shape[0] == 8
    assert not [name for name in renamed if name.startswith("layers.2.")]
    as_layers = {name.replace("mtp_layers.0.", "layers.2."): tensor for name, tensor in renamed.items()}
    for written in (renamed, as_layers):  # the latter by earlier versions
        back = torchtitan.from_torchtitan(written)
        assert back.keys() == state(saved).keys()
        assert all(tensor.equal(back[name]) for name, tensor in state(saved).items())


def test_what_a_training_checkpoint_holds_beside_the_model_is_left_out(saved: Path, tmp_path: Path) -> None:
    renamed: dict[str, Any] = dict(torchtitan.to_torchtitan(state(saved)))
    renamed |= {"optimizer.state.norm.weight.exp_avg": torch.zeros(3), "train_state": torch.zeros(1)}
    dcp.save(renamed, checkpoint_id=tmp_path / "step-10", no_dist=True)
    (tmp_path / "back").mkdir()
    torchtitan.read(tmp_path / "step-10", tmp_path / "back", "bfloat16")
    for name, tensor in state(saved).items():
        bias = name.endswith("e_score_correction_bias")
        assert state(tmp_path / "back")[name].equal(tensor if bias else tensor.bfloat16()), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_norm.weight", "has no place for model.layers.0.self_attn.q_norm.weight"),
        ("model.layers.1.mlp.experts.9.up_proj.weight", "experts are missing"),
    ],
)
def test_a_state_that_torchtitan_has_not_is_refused(saved: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchtitan.to_torchtitan({**state(saved), name: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"is no tensor of torchtitan"):
        torchtitan.from_torchtitan({name: torch.zeros(1)})


def test_copies_of_embedding_and_head_are_dropped(saved: Path) -> None:
    copies = ("model.layers.2.embed_tokens.weight", "model.layers.2.shared_head.head.weight")
    with_copies = {**state(saved), **dict.fromkeys(copies, torch.zeros(1))}
    assert torchtitan.to_torchtitan(with_copies).keys() == torchtitan.to_torchtitan(state(saved)).keys()


def test_the_names_are_those_of_torchtitan() -> None:
    """Compared with the literals of its adapter; `pip install --no-deps torchtitan==0.3.*` is enough to run this."""
    found = importlib.util.find_spec("torchtitan")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("torchtitan is not installed")
    source = Path(found.submodule_search_locations[0]) / "models" / "deepseek_v3" / "state_dict_adapter.py"
    theirs: dict[str, str] = {}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict) and node.keys and all(isinstance(key, ast.Constant) for key in node.keys):
            theirs |= ast.literal_eval(node)
    ours = dict(torchtitan.TOP)
    ours |= {f"model.layers.{{}}.{name}": f"layers.{{}}.{other}" for name, other in torchtitan.LAYER.items()}
    for name, other in torchtitan.EXPERTS.items():
        ours[f"model.layers.{{}}.mlp.experts.{{}}.{name}"] = f"layers.{{}}.{other}"
    assert ours == theirs


def test_torchtitans_own_model_loads_what_is_written(tmp_path: Path) -> None:
    """Its model with a prediction block, by the call of its checkpoint manager, which wants every tensor by name."""
    theirs = pytest.importorskip("torchtitan.models.deepseek_v3", reason="torchtitan is not installed, or not whole")
    found = theirs.model_registry("debugmodel", num_mtp_layers=1).model.build().state_dict()
    shape = {"hidden_size": 256, "intermediate_size": 1024, "moe_intermediate_size": 256, "vocab_size": 2048}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512}
    heads |= {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "n_group": 1, "topk_group": 1}
    layers = {"num_hidden_layers": 6, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1}
    V3ForCausalLM(V3Config(**shape, **heads, **experts, **layers)).save_pretrained(tmp_path / "ours")
    torchtitan.write(tmp_path / "ours", tmp_path / "titan")
    expected = torchtitan.to_torchtitan(state(tmp_path / "ours"))
    assert found.keys() == expected.keys()
    dcp.load(found, checkpoint_id=tmp_path / "titan", no_dist=True)
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
