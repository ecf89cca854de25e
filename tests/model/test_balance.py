"""Load counts, bias updates and balance losses, against hand computation, finite differences and one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model import balance, factory, presets
from model.balance_loss import Balance, BalanceLoss, Sequences, balance_loss, chosen_mask
from tests.model.test_modeling import SHAPE, V2, VOCABULARY

EXPERTS = SHAPE["n_routed_experts"]


def build(**changes: Any) -> Any:
    """A small model in training mode, with unequal loads."""
    shape = presets.load({**SHAPE, "n_group": 1, "topk_group": 1, **changes})
    return factory.build(shape, VOCABULARY, eos_token_id=1, pad_token_id=0, seed=1).train()


def batch(rows: int = 4, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Token ids as [B, T]."""
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def step(model: Any, ids_BT: torch.Tensor, **arguments: Any) -> None:
    """A forward and a backward pass; the loss is a sum, so that micro-batches add up."""
    model(input_ids=ids_BT, **arguments).logits.square().sum().backward()


def choices(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> dict[str, list[int]]:
    """How many tokens chose each expert, from what the gates return."""
    found: dict[str, list[int]] = {}

    def count(layer: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, outputs: Any) -> None:
            kept = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
            chosen = outputs[2][kept.flatten().bool()].flatten().tolist()
            found[layer] = [chosen.count(expert) for expert in range(EXPERTS)]

        return hook

    hooks = [gate.register_forward_hook(count(layer)) for layer, gate in balance.routers(model).items()]
    with torch.no_grad():
        model(input_ids=ids_BT, attention_mask=mask_BT)
    for hook in hooks:
        hook.remove()
    return found


def loads(model: Any) -> dict[str, list[int]]:
    """What the gates have counted; they start anew."""
    return {layer: load_E.tolist() for layer, load_E in balance.update_bias(model, speed=0.0).items()}


def test_every_choice_is_counted_once_and_padding_never() -> None:
    model, ids_BT = build(), batch()
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[2, :4] = 0
    step(model, ids_BT, attention_mask=mask_BT)
    expected = choices(model, ids_BT, mask_BT)
    assert set(expected) == {"1", "2"}
    assert loads(model) == expected
    assert sum(expected["1"]) == SHAPE["num_experts_per_tok"] * int(mask_BT.sum())
    assert loads(model) == {"1": [0.0] * EXPERTS, "2": [0.0] * EXPERTS}


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_counts_once(reentrant: bool) -> None:
    model, ids_BT = build(), batch()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    step(model, ids_BT)
    assert loads(model) == choices(model, ids_BT)


def test_accumulated_micro_batches_add_up() -> None:
    model, ids_BT = build(), batch()
    for row in ids_BT.split(1):
        step(model, row)
    assert loads(model) == choices(model, ids_BT)


def test_passes_without_gradients_and_evaluation_leave_no_trace() -> None:
    model, ids_BT = build(), batch()
    with torch.no_grad():
        model(input_ids=ids_BT)
    step(model.eval(), ids_BT)
    assert loads(model) == {"1": [0.0] * EXPERTS, "2": [0.0] * EXPERTS}


def test_the_bias_moves_against_the_load() -> None:
    model, ids_BT = build(), batch()
    step(model, ids_BT)
    counts = choices(model, ids_BT)
    balance.update_bias(model, speed=0.25)
    for layer, gate in balance.routers(model).items():
        mean = sum(counts[layer]) / EXPERTS
        assert gate.e_score_correction_bias.tolist() == [0.25 * ((n < mean) - (n > mean)) for n in counts[layer]]


def test_v2_gates_are_counted_and_have_no_bias() -> None:
    model, ids_BT = build(**V2), batch()
    step(model, ids_BT)
    expected = choices(model, ids_BT)
    found = balance.update_bias(model, speed=0.25)
    assert {layer: load_E.tolist() for layer, load_E in found.items()} == expected


def test_the_bias_evens_out_a_lopsided_gate() -> None:
    model = build(num_hidden_layers=2)
    (router,) = balance.routers(model).values()
    torch.manual_seed(0)
    router.weight.data.normal_()
    tokens_TD = torch.randn(400, SHAPE["hidden_size"]) * 0.5 + torch.randn(SHAPE["hidden_size"])
    violations = []
    for _ in range(100):
        router(tokens_TD)[1].sum().backward()
        violations.append(float(balance.max_violation(balance.update_bias(model, speed=0.01)["1"])))
    assert violations[0] > 1.5
    assert violations[-1] < 0.1


def test_ids_beyond_the_experts_stand_for_nothing() -> None:
    """Expert parallelism marks choices of other ranks' experts with such ids."""
    mask_TE = chosen_mask(torch.tensor([[0, 4], [2, 5], [4, 4]]), 4)
    assert mask_TE.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_max_violation_is_the_excess_over_the_mean() -> None:
    assert float(balance.max_violation(torch.tensor([1.0, 2.0, 3.0, 10.0]))) == pytest.approx(10 / 4 - 1)
    assert float(balance.max_violation(torch.full((4,), 7.0))) == 0.0


def by_hand(affinity_TE: list[list[float]], sequences: list[list[int]], k: int) -> float:
    """DeepSeek-V3, equations 17 to 20, without α, averaged over sequences given as token numbers."""
    losses = []
    for tokens in sequences:
        total = 0.0
        for expert in range(len(affinity_TE[0])):
            f = p = 0.0
            for t in tokens:
                row = affinity_TE[t]
                top = sorted(range(len(row)), key=lambda i, row=row: -row[i])[:k]
                f += len(row) / (k * len(tokens)) * (expert in top)
                p += row[expert] / sum(row) / len(tokens)
            total += f * p
        losses.append(total)
    return sum(losses) / len(losses)


def test_the_sequence_wise_loss_is_the_papers() -> None:
    torch.manual_seed(0)
    affinity_TE = torch.rand(10, 5)
    counted_TE = chosen_mask(affinity_TE.topk(2).indices, 5)
    index_T = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3, 0])  # sequence 2 is empty, 3 stands for padding
    found = balance_loss(affinity_TE, counted_TE, Sequences(index_T, 3))
    expected = by_hand(affinity_TE.tolist(), [[0, 1, 2, 9], [3, 4, 5, 6]], 2)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_even_use_costs_one_and_a_single_expert_costs_most() -> None:
    even_TE = torch.eye(4).repeat(2, 1)
    assert float(balance_loss(even_TE, even_TE, Sequences(torch.zeros(8, dtype=torch.long), 1))) == pytest.approx(1)
    one_TE = torch.tensor([[1.0, 0, 0, 0]]).repeat(8, 1)
    assert float(balance_loss(one_TE, one_TE, Sequences(torch.zeros(8, dtype=torch.long), 1))) == pytest.approx(4)


def test_documents_begin_where_positions_do_not_count_on() -> None:
    ids_BT = torch.zeros(2, 5)
    positions_BT = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    found = Sequences.of(ids_BT, None, positions_BT)
    assert (found.index_T.tolist(), found.number) == ([0, 0, 0, 1, 1, 2, 3, 3, 3, 3], 4)
    mask_BT = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    padded = Sequences.of(ids_BT, mask_BT, None)
    assert (padded.index_T.tolist(), padded.number) == ([2, 0, 0, 0, 0, 1, 1, 1, 1, 2], 2)


def gate_gradients(model: Any, ids_BT: torch.Tensor, only_balance: bool = True) -> dict[str, torch.Tensor]:
    """Gradients of the gates' weights; those of the balance loss alone if the rest of the loss is multiplied by 0."""
    model.zero_grad()
    for part in ids_BT.split(len(ids_BT) // accumulation(model)):
        (model(input_ids=part).logits.square().sum() * (0.0 if only_balance else 1.0)).backward()
    return {layer: gate.weight.grad.clone() for layer, gate in balance.routers(model).items()}


def accumulation(model: Any) -> int:
    """Micro-batches a step, from the scale that the model's balance loss has."""
    return round(1 / next(iter(balance.routers(model).values())).balance.scale)


@pytest.mark.parametrize("kind", [BalanceLoss.SEQUENCE, BalanceLoss.SWITCH])
def test_the_gradient_is_that_of_the_loss(kind: BalanceLoss) -> None:
    """Finite differences of α Σ f P in double precision, with the choices held fixed: f has no gradient."""
    model, ids_BT = build(num_hidden_layers=2), batch()
    (router,) = balance.routers(model).values()
    router.e_score_correction_bias.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    hook = router.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().double()))
    balance.configure(model, Balance(kind, alpha=0.1))
    found = gate_gradients(model, ids_BT)["1"]
    hook.remove()
    tokens_TD, k = seen[0].flatten(0, 1), SHAPE["num_experts_per_tok"]
    weight_ED = router.weight.detach().double()
    affinity_TE = (tokens_TD @ weight_ED.T).sigmoid()
    choice_TE = affinity_TE + (router.e_score_correction_bias if kind is BalanceLoss.SWITCH else 0)
    counted_TE = chosen_mask(choice_TE.topk(k).indices, EXPERTS).double()
    index_T = torch.arange(len(ids_BT)).repeat_interleave(ids_BT.shape[1])
    groups = [index_T == row for row in range(len(ids_BT))] if kind is BalanceLoss.SEQUENCE else [index_T >= 0]

    def loss(weight: torch.Tensor) -> float:
        affinity = (tokens_TD @ weight.T).sigmoid()
        share = affinity / affinity.sum(-1, keepdim=True)
        terms = [EXPERTS / k * (counted_TE[g].mean(0) * share[g].mean(0)).sum() for g in groups]
        return 0.1 * float(sum(terms)) / len(groups)

    for expert, column in [(0, 0), (3, 5), (7, 31)]:
        nudge = torch.zeros_like(weight_ED)
        nudge[expert, column] = 1e-5
        slope = (loss(weight_ED + nudge) - loss(weight_ED - nudge)) / 2e-5
        assert float(found[expert, column]) == pytest.approx(slope, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_changes_no_gradient(reentrant: bool) -> None:
    model, ids_BT = build(), batch()
    balance.configure(model, Balance(BalanceLoss.SEQUENCE, alpha=0.1))
    plain = gate_gradients(model, ids_BT, only_balance=False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = gate_gradients(model, ids_BT, only_balance=False)
    for layer, gradient in plain.items():
        torch.testing.assert_close(again[layer], gradient)


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    model, ids_BT = build(), batch()
    balance.configure(model, Balance(BalanceLoss.SEQUENCE, alpha=0.1))
    whole = gate_gradients(model, ids_BT)
    balance.configure(model, Balance(BalanceLoss.SEQUENCE, alpha=0.1, scale=1 / 4))
    parts = gate_gradients(model, ids_BT)
    for layer, gradient in whole.items():
        torch.testing.assert_close(parts[layer], gradient, rtol=1e-4, atol=1e-9)
        assert gradient.abs().max() > 1e-6


def test_without_a_loss_the_gradient_is_untouched() -> None:
    model, ids_BT = build(), batch()
    assert all(not gradient.any() for gradient in gate_gradients(model, ids_BT).values())


def _rank(rank: int, port: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = build()
    for row in batch().chunk(2)[rank].split(1):
        step(model, row)
    found = balance.update_bias(model, speed=0.25)
    results[rank] = [
        {layer: load_E.tolist() for layer, load_E in found.items()},
        [gate.e_score_correction_bias.tolist() for gate in balance.routers(model).values()],
    ]
    dist.destroy_process_group()


def test_a_pass_without_a_share_in_the_step_is_not_counted() -> None:
    """As of a process that only keeps others company: nothing in it counts."""
    model, ids_BT = build(), batch()
    balance.configure(model, Balance(BalanceLoss.SEQUENCE, alpha=0.1, scale=0.0))
    step(model, ids_BT)
    assert not any(any(load_E) for load_E in loads(model).values())


def test_two_ranks_count_together_and_move_as_one_process_does(free_port: int) -> None:
    with mp.get_context("fork").Manager() as manager:
        results = manager.dict()
        mp.start_processes(_rank, (free_port, results), nprocs=2, start_method="fork")
        found = dict(results)
    model = build()
    step(model, batch())
    alone = balance.update_bias(model, speed=0.25)
    biases = [gate.e_score_correction_bias.tolist() for gate in balance.routers(model).values()]
    assert found[0] == found[1] == [{layer: load_E.tolist() for layer, load_E in alone.items()}, biases]
