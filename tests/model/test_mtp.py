"""Multi-token prediction: arithmetic of the blocks, loss and names, against the equations and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import V3Config, V3ForCausalLM
from model.mtp import Objective, blocks, documents

SHAPE: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "routed_scaling_factor": 1.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}


def make(depth: int, seed: int = 0) -> V3ForCausalLM:
    """A tiny model; `initializer_range` is large, so that nothing is nearly uniform, and norms are not all ones."""
    torch.manual_seed(seed)
    model = V3ForCausalLM(V3Config(**SHAPE, num_nextn_predict_layers=depth))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def derived(model: V3ForCausalLM, ids: list[int]) -> list[Tensor]:
    """Equations 21 to 23 for one document, from its weights: logits [T - depth, V] of each depth.

    The decoder layer inside a block is the decoder's own class, which other tests check; it is run without the block.
    """
    names = model.state_dict()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        found = []
        for depth, block in enumerate(blocks(model)[: len(ids) - 1], 1):
            at = f"model.layers.{SHAPE['num_hidden_layers'] + depth - 1}."
            hidden = hidden[:, :-1]  # the last position has no later token to be shown
            later = names["model.embed_tokens.weight"][torch.tensor([ids[depth:]])]
            parts = [rms(later, names[at + "enorm.weight"]), rms(hidden, names[at + "hnorm.weight"])]
            joined = torch.cat(parts, -1) @ names[at + "eh_proj.weight"].T
            positions = torch.arange(joined.shape[1])[None]
            hidden = super(type(block), block).forward(  # type: ignore[misc]
                joined,
                attention_mask=torch.full((joined.shape[1],) * 2, torch.finfo().min).triu(1)[None, None],
                position_ids=positions,
                position_embeddings=model.model.rotary_emb(joined, position_ids=positions),
            )
            hidden = rms(hidden, names[at + "shared_head.norm.weight"])
            found.append(hidden[0] @ names["lm_head.weight"].T)
    return found


def expected(model: V3ForCausalLM, documents_: list[list[int]], labels: list[list[int]]) -> list[float]:
    """Summed cross-entropy of each depth over documents, each by itself."""
    sums = [0.0] * len(blocks(model))
    for ids, wanted in zip(documents_, labels, strict=True):
        for depth, logits in enumerate(derived(model, ids), 1):
            targets = torch.tensor(wanted[depth + 1 :])
            if len(targets):
                sums[depth - 1] += float(F.cross_entropy(logits[: len(targets)], targets, reduction="sum"))
    return sums


def counted(model: V3ForCausalLM, ends: tuple[int, ...] = (), **batch: Tensor) -> list[float]:
    objective = Objective(model.train(), ends=ends)
    with objective.weighed(1.0):
        model(**batch, use_cache=False)  # transformers tells packed documents apart only then
    return [float(count.loss) for count in objective.read()]


DOCUMENTS = [[5, 9, 3, 12, 7, 1], [8, 2, 2, 19, 1], [11, 1], [4, 6, 21, 13, 10, 15, 1]]


@pytest.mark.parametrize("depth", [1, 3])
def test_losses_are_those_of_the_equations_in_padded_rows(depth: int) -> None:
    model, width = make(depth), max(map(len, DOCUMENTS))
    labels = [[-100, -100, *ids[2:]] for ids in DOCUMENTS]  # prompts of two tokens
    for left in (False, True):  # SFT pads on the right, rollouts are padded on the left

        def padded(ids: list[int], fill: int, left: bool = left) -> list[int]:
            pad = [fill] * (width - len(ids))
            return pad + ids if left else ids + pad

        found = counted(
            model,
            input_ids=torch.tensor([padded(ids, 0) for ids in DOCUMENTS]),
            attention_mask=torch.tensor([padded([1] * len(ids), 0) for ids in DOCUMENTS]),
            labels=torch.tensor([padded(row, -100) for row in labels]),
        )
        assert found == pytest.approx(expected(model, DOCUMENTS, labels), rel=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_packed_documents_do_not_mix(depth: int) -> None:
    model = make(depth)
    found = counted(
        model,
        input_ids=torch.tensor([[token for ids in DOCUMENTS for token in ids]]),
        position_ids=torch.tensor([[at for ids in DOCUMENTS for at in range(len(ids))]]),
        labels=torch.tensor([[token for ids in DOCUMENTS for token in [-100, *ids[1:]]]]),
    )
    assert found == pytest.approx(expected(model, DOCUMENTS, DOCUMENTS), rel=1e-5)


def test_shift_labels_are_the_same_labels_a_step_ahead() -> None:
    model, ids = make(2), torch.tensor([DOCUMENTS[3]])
    shifted = F.pad(ids, (0, 1), value=-100)[:, 1:]
    assert counted(model, input_ids=ids, shift_labels=shifted) == counted(model, input_ids=ids, labels=ids)


def test_documents_that_follow_each_other_are_told_apart_by_their_ends() -> None:
    """In pre-training rows attention crosses borders; what is shown to a block and asked of it does not."""
    model, ids = make(2), torch.tensor([[3, 4, 1, 5, 6, 7, 1, 8]])
    assert documents(ids, None, None, (1,)).tolist() == [[0, 0, 0, 1, 1, 1, 1, 2]]
    objective = Objective(model.train(), ends=(1,))
    with objective.weighed(1.0):
        model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids))
    assert [int(count.tokens) for count in objective.read()] == [3, 1]  # of documents of 3, 4 and 1 tokens
    # Nothing that a later document says about a border position reaches that document: only its own tokens count.
    changed = ids.clone()
    changed[0, 3] = 9
    first = counted(model, (1,), input_ids=ids[:, :3], attention_mask=torch.ones(1, 3), labels=ids[:, :3])
    alone = expected(model, [[3, 4, 1]], [[3, 4, 1]])
    assert first == pytest.approx(alone, rel=1e-5)
    labels = torch.where(torch.arange(8) < 3, ids, -100)
    for row in (ids, changed):
        assert counted(model, (1,), input_ids=row, attention_mask=torch.ones_like(row), labels=labels) == pytest.approx(
            alone, rel=1e-5
        )


def gradients(model: V3ForCausalLM, weight: float | None, detach: bool = False, **batch: Tensor) -> dict[str, Tensor]:
    model.train().zero_grad()
    if weight is None:
        model(**batch).loss.backward()
    else:
        with Objective(model, detach).weighed(weight, 7):
            model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_gradient_is_that_of_the_sum_of_losses() -> None:
    """λ/D Σ CE / targets, by automatic differentiation of the equations; with checkpointing the same."""
    ids = torch.tensor([DOCUMENTS[3]])
    model = make(2)
    ours = gradients(model, 0.3, input_ids=ids, labels=ids)
    model.gradient_checkpointing_enable()
    again = gradients(model, 0.3, input_ids=ids, labels=ids)
    model.gradient_checkpointing_disable()
    plain = gradients(model, None, input_ids=ids, labels=ids)
    model.zero_grad()
    hidden = model.model(input_ids=ids).last_hidden_state
    total = sum(Objective(model).losses(ids, hidden, ids), torch.zeros(())) * 0.3 / 2 / 7
    total.backward()
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, plain.get(name, 0) + alone.get(name, 0), rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(gradient, again[name], rtol=1e-4, atol=1e-6, msg=name)
    assert any("layers.3." in name for name in ours)


def test_detached_blocks_leave_every_other_gradient_alone() -> None:
    ids = torch.tensor([DOCUMENTS[3]])
    model = make(2)
    plain = gradients(model, None, input_ids=ids, labels=ids)
    ours = gradients(model, 0.3, detach=True, input_ids=ids, labels=ids)
    for name, gradient in plain.items():
        assert gradient.equal(ours[name]), name
    assert {name.split(".")[2] for name in ours.keys() - plain.keys()} == {"2", "3"}


def test_acceptance_counts_what_greedy_verification_would_accept() -> None:
    model, ids = make(1), torch.tensor([DOCUMENTS[3]])
    objective = Objective(model.train())
    with objective.weighed(1.0):
        own = model(input_ids=ids, labels=ids).logits[0].argmax(-1)
    (count,) = objective.read()
    drafted = derived(model, DOCUMENTS[3])[0].argmax(-1)
    assert int(count.agreed) == int((drafted[:-1] == own[1:-1]).sum())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="num_nextn_predict_layers is 0"):
        Objective(make(0))


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_checkpoints_load_with_fewer_and_more_blocks(wanted: int, tmp_path: Path) -> None:
    saved = make(2)
    saved.save_pretrained(tmp_path)
    again, told = V3ForCausalLM.from_pretrained(tmp_path, num_nextn_predict_layers=wanted, output_loading_info=True)
    assert not told["unexpected_keys"]
    missing = {name for name in told["missing_keys"] if not name.startswith("model.layers.4.")}
    assert not missing and bool(told["missing_keys"]) == (wanted == 3)
    ours = again.state_dict()
    for name, weight in saved.state_dict().items():
        if name in ours:
            assert weight.equal(ours[name]), name
    assert all(weight.isfinite().all() for weight in ours.values())


def test_copies_of_embedding_and_head_in_an_official_checkpoint_are_passed_over(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = make(1)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "model.layers.2.mlp.experts.0.gate_proj.weight" in tensors
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1
    tensors["model.layers.2.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.2.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    again, told = V3ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_transformers_own_inference_drafts_what_we_draft(tmp_path: Path) -> None:
    """transformers loads our checkpoint and its prediction blocks by their official names."""
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.modeling_layers import MtpModel

    model = make(2)
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager")
    stock._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[23]\..*"]  # it only knows of layer 61
    theirs = MtpModel.from_pretrained(stock, device_map={"": "cpu"})
    ids = torch.tensor([DOCUMENTS[3]])
    with torch.no_grad():
        hidden = stock.model(ids, past_key_values=DynamicCache()).last_hidden_state[:, :-1]
        from transformers.cache_utils import MtpCache

        tokens, logits, _ = theirs(
            input_ids=ids[:, 1:],
            last_hidden_states=hidden,
            attention_mask=torch.ones_like(ids[:, 1:]),
            position_ids=torch.arange(1, ids.shape[1])[None],
            mtp_cache=MtpCache(config=stock.config.get_mtp_config()),
        )
    stock.generation_config.use_mtp = None
    settings = {"max_new_tokens": 20, "do_sample": False}
    drafted = stock.generate(ids[:, :-1], **settings, use_mtp=True)
    assert drafted.tolist() == model.eval().generate(ids[:, :-1], **settings, use_mtp=True).tolist()
    ours = [logits_TV[-1] for logits_TV in derived(model, [*DOCUMENTS[3], int(tokens[0, 0])])]
    ours[0] = derived(model, DOCUMENTS[3])[0][-1]
    torch.testing.assert_close(logits[0], torch.stack(ours), rtol=1e-4, atol=1e-4)
