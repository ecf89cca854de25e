"""Packed, divided into passes, without dead rows: losses and gradients are stock TRL's, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from pipeline.schema.efficiency import STOCK, Efficiency
from pipeline.training import varlen
from pipeline.training.grpo.micro_batches import balanced
from pipeline.training.grpo.objective import equal_groups
from tests.training.replay import BATCH, distance, graded, half_dead, history_of, trainer_of

STRINGS = ["what is 2", "you are kind what is 2 + two", "hello", "what four you are you are you are"] * 2
CHATS = [[{"role": "user", "content": text}] for text in STRINGS]
TOLERANCE = 1e-6
"""Relative, in fp32: what another order of the same sums makes of them."""
PACKED = Efficiency(packing=True, tokens_per_pass=60, drop_dead_groups=False, reuse_logprobs=False)
"""Sixty tokens are three or four rows of eight, so that each micro-batch has several passes."""
KL = {"beta": 0.1, "num_iterations": 2, "learning_rate": 0.1}
"""The second of two updates on the same rollouts has ratios other than 1 and a divergence other than 0."""

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "grpo": ("dense", STRINGS, {"loss_type": "grpo"}),
    "grpo-kl": ("dense", STRINGS, {"loss_type": "grpo", **KL}),
    "grpo-kl-corrected": ("dense", CHATS, {"loss_type": "grpo", **KL, "use_bias_correction_kl": True}),
    "grpo-sequence": ("dense", STRINGS, {"loss_type": "grpo", **KL, "importance_sampling_level": "sequence"}),
    "bnpo": ("dense", CHATS, {"loss_type": "bnpo", "mask_truncated_completions": True}),
    "bnpo-kl": ("dense", STRINGS, {"loss_type": "bnpo", **KL}),
    "dr_grpo": ("dense", STRINGS, {"loss_type": "dr_grpo", "mask_truncated_completions": True}),
    "dr_grpo-kl": ("dense", CHATS, {"loss_type": "dr_grpo", **KL}),
    "dapo": ("dense", STRINGS, {"loss_type": "dapo", "mask_truncated_completions": True}),
    "dapo-kl": ("dense", STRINGS, {"loss_type": "dapo", **KL}),
    "dapo-reused": ("dense", STRINGS, {"loss_type": "dapo", "steps_per_generation": 4, "max_steps": 4}),
    "grpo-vllm": ("dense", STRINGS, {"loss_type": "grpo", "vllm": True}),
    "entropy-bonus": ("dense", STRINGS, {"loss_type": "grpo", "entropy_coef": 0.01}),
    "experts": ("v3", STRINGS, {"loss_type": "grpo", **KL}),
    "router-loss": ("routed", STRINGS, {"router_aux_loss_coef": 0.5, "mask_truncated_completions": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_padded_rows(models: Path, tmp_path: Path, case: str) -> None:
    model, prompts, fields = CASES[case]
    stock = history_of(trainer_of(models / model, tmp_path, None, prompts, **fields))
    packed = history_of(trainer_of(models / model, tmp_path, PACKED, prompts, **fields))
    assert len(stock.gradients) >= 2
    for ours, theirs in zip(packed.gradients, stock.gradients, strict=True):
        assert distance(theirs, ours) <= TOLERANCE
    # The losses are sums of terms of size 1 that nearly cancel: advantages of a group add up to zero.
    assert packed.losses == pytest.approx(stock.losses, rel=TOLERANCE, abs=1e-7)


CLOCK = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "packing/fill"}


@pytest.mark.parametrize("case", ["grpo-kl", "grpo-sequence", "grpo-vllm", "dapo", "entropy-bonus", "router-loss"])
def test_every_metric_of_trl_is_there_with_its_value(models: Path, tmp_path: Path, case: str) -> None:
    """Of one micro-batch a step: over several, TRL takes the mean of their means, and ours is that of their tokens."""
    model, prompts, fields = CASES[case]
    fields = {**fields, "gradient_accumulation_steps": 1, "vllm_importance_sampling_clip_max": 1e30}
    stock = history_of(trainer_of(models / model, tmp_path, None, prompts, **fields)).logs
    packed = history_of(trainer_of(models / model, tmp_path, PACKED, prompts, **fields)).logs
    for ours_at, theirs_at in zip(packed, stock, strict=True):
        theirs = {name: value for name, value in theirs_at.items() if name not in CLOCK}
        assert {name: ours_at[name] for name in theirs} == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    unknown = [at["sampling/unknown_logprobs"] for at in packed if "sampling/unknown_logprobs" in at]
    assert (0 < max(unknown, default=0.0) < 0.1) == (case == "grpo-vllm")


@pytest.mark.parametrize("divided", [{}, {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 4}])
def test_a_metric_is_the_mean_over_tokens_however_they_are_divided(
    models: Path, tmp_path: Path, divided: dict[str, int]
) -> None:
    fields = {**KL, "per_device_train_batch_size": 2 * BATCH, "gradient_accumulation_steps": 1}
    whole = history_of(trainer_of(models / "dense", tmp_path, STOCK, STRINGS, **fields)).logs
    parts = history_of(
        trainer_of(
            models / "dense",
            tmp_path,
            PACKED,
            STRINGS,
            **{**fields, "gradient_accumulation_steps": 2, "per_device_train_batch_size": BATCH, **divided},
        )
    ).logs
    for one, other in zip(whole, parts, strict=True):
        for name in ("entropy", "kl", "clip_ratio/region_mean", "clip_ratio/high_max"):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-4, abs=1e-6)


MERGED: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "gradient_accumulation_steps": 4},
    "grpo-kl": {"loss_type": "grpo", **KL, "max_steps": 4},
    "dr_grpo": {"loss_type": "dr_grpo", "mask_truncated_completions": True},
    "dapo": {"loss_type": "dapo", "mask_truncated_completions": True},
    "dapo-reused": {"loss_type": "dapo", "steps_per_generation": 4, "max_steps": 4},
    "cispo-over-batches": {"loss_type": "cispo", "gradient_accumulation_steps": 4, "steps_per_generation": 2},
    "sapo": {"loss_type": "sapo", "generation_batch_size": 32, "max_steps": 4},
    "grpo-vllm": {"loss_type": "grpo", "vllm": True},
    "bnpo": {"loss_type": "bnpo"},
}


@pytest.mark.parametrize("case", MERGED)
def test_one_micro_batch_has_the_losses_and_gradients_of_several(models: Path, tmp_path: Path, case: str) -> None:
    fields = MERGED[case]
    dropping = PACKED.model_copy(update={"drop_dead_groups": "auto", "reuse_logprobs": True})
    several = trainer_of(models / "dense", tmp_path, None, STRINGS, half_dead, **fields)
    stock = history_of(several)
    one = trainer_of(models / "dense", tmp_path, dropping, STRINGS, half_dead, merge=True, **fields)
    kept = one.args.per_device_train_batch_size == BATCH
    assert kept == (case == "bnpo"), "its loss divides by the tokens of a micro-batch"
    assert one.args.generation_batch_size == several.args.generation_batch_size
    merged = history_of(one)
    assert len(stock.gradients) == len(merged.gradients) >= 2
    for ours, theirs in zip(merged.gradients, stock.gradients, strict=True):
        assert distance(theirs, ours) <= TOLERANCE
    assert merged.losses == pytest.approx(stock.losses, rel=TOLERANCE, abs=1e-7)


def rounded(prompts: Sequence[Any], **columns: Any) -> list[float]:
    """Always 1.3. The mean of six of them is off by a rounding error, which stock TRL divides by 1e-4."""
    return [1.3] * len(prompts)


SIXES = {"num_generations": 6, "per_device_train_batch_size": 6}


LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")
VARIANTS: dict[str, dict[str, Any]] = {
    "reused": {"num_iterations": 2, "learning_rate": 0.1, "beta": 0.1},
    "truncated": {"mask_truncated_completions": True},
    "token-weights": {
        "vllm": True,
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_max": 1.5,
    },
    "sequence-weights": {"vllm": True, "vllm_importance_sampling_mode": "sequence_truncate"},
    "off-policy-mask": {"vllm": True, "off_policy_mask_threshold": 0.4},
    "gspo-kl": {"importance_sampling_level": "sequence", "num_iterations": 2, "learning_rate": 0.1, "beta": 0.1},
    "two-sided": {"delta": 1.05, "epsilon_high": 0.28, "num_iterations": 2, "learning_rate": 0.1},
}


@pytest.mark.parametrize(
    ("loss_type", "variant"),
    [pair for pair in product(LOSSES, VARIANTS) if pair != ("vespo", "sequence-weights")],  # which TRL refuses
)
def test_every_loss_is_trls(models: Path, tmp_path: Path, loss_type: str, variant: str) -> None:
    """Without packing, so that only the objective differs; with accumulation, and old log-probabilities reused."""
    fields = {
        "loss_type": loss_type,
        "max_steps": 2 if "num_iterations" in VARIANTS[variant] else 1,
        **VARIANTS[variant],
    }
    theirs = history_of(trainer_of(models / "dense", tmp_path, None, STRINGS, **fields))
    ours = history_of(trainer_of(models / "dense", tmp_path, REUSING, STRINGS, **fields))
    assert all(gradient.any() for gradient in theirs.gradients)
    for mine, stock in zip(ours.gradients, theirs.gradients, strict=True):
        assert distance(stock, mine) <= 2e-6
    assert ours.losses == pytest.approx(theirs.losses, rel=2e-6, abs=2e-7)


REUSING = STOCK.model_copy(update={"reuse_logprobs": True})


@pytest.mark.parametrize(
    "fields",
    [
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"use_adaptive_entropy": True, "entropy_coef": 0.01, "entropy_target": 2.0, "max_steps": 4},
        {"top_entropy_quantile": 0.3},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_settings_are_trls(models: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    theirs = history_of(trainer_of(models / "dense", tmp_path, None, STRINGS, **fields))
    ours = history_of(trainer_of(models / "dense", tmp_path, PACKED, STRINGS, **fields))
    for mine, stock in zip(ours.gradients, theirs.gradients, strict=True):
        assert distance(stock, mine) <= 2e-6
    for name in ("entropy_coef", "policy_loss"):
        found, expected = ([at[name] for at in logs if name in at] for logs in (ours.logs, theirs.logs))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_equal_rewards_give_no_gradient_where_trl_divides_a_rounding_error(models: Path, tmp_path: Path) -> None:
    theirs = history_of(trainer_of(models / "dense", tmp_path, None, STRINGS, rounded, **SIXES))
    ours = history_of(trainer_of(models / "dense", tmp_path, STOCK, STRINGS, rounded, **SIXES))
    assert all(gradient.any() for gradient in theirs.gradients)
    assert not any(gradient.any() for gradient in ours.gradients)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_dropping_dead_groups_leaves_the_gradient(models: Path, tmp_path: Path, loss_type: str) -> None:
    fields = {"loss_type": loss_type, "mask_truncated_completions": True}
    stock = history_of(trainer_of(models / "dense", tmp_path, None, STRINGS, half_dead, **fields))
    for packing in (False, True):
        dropping = STOCK.model_copy(update={"drop_dead_groups": True, "packing": packing, "tokens_per_pass": 60})
        fewer = history_of(trainer_of(models / "dense", tmp_path, dropping, STRINGS, half_dead, **fields))
        for ours, theirs in zip(fewer.gradients, stock.gradients, strict=True):
            assert distance(theirs, ours) <= TOLERANCE
        assert fewer.losses == pytest.approx(stock.losses, rel=TOLERANCE, abs=1e-7)
        assert all(entry["groups/dropped_rows"] >= 0.4 for entry in fewer.logs if "loss" in entry)


@pytest.mark.parametrize(
    ("model", "fields"),
    [("dense", {"beta": 0.1, "num_iterations": 2}), ("dense", {"entropy_coef": 0.01}), ("routed", {})],
    ids=["kl", "entropy-bonus", "router-loss-of-the-model"],
)
def test_auto_drops_nothing_that_has_a_gradient(
    models: Path, tmp_path: Path, model: str, fields: dict[str, Any]
) -> None:
    auto = STOCK.model_copy(update={"drop_dead_groups": "auto"})
    stock = history_of(trainer_of(models / model, tmp_path, STOCK, STRINGS, half_dead, **fields))
    kept = history_of(trainer_of(models / model, tmp_path, auto, STRINGS, half_dead, **fields))
    assert all(torch.equal(a, b) for a, b in zip(stock.gradients, kept.gradients, strict=True))
    assert kept.losses == stock.losses
    assert not any("groups/dropped_rows" in entry for entry in kept.logs)


def test_dropping_is_refused_beside_a_router_loss_of_the_model(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has a router loss"):
        trainer_of(models / "routed", tmp_path, STOCK.model_copy(update={"drop_dead_groups": True}), STRINGS)


def test_a_batch_without_any_live_group_gives_no_gradient(models: Path, tmp_path: Path) -> None:
    dropping = STOCK.model_copy(update={"drop_dead_groups": True, "packing": True})
    dead = history_of(trainer_of(models / "dense", tmp_path, dropping, STRINGS, rounded, **SIXES))
    assert all(not gradient.any() for gradient in dead.gradients)


def test_rows_without_a_score_do_not_make_a_group_alive(models: Path, tmp_path: Path) -> None:
    """A judge that failed on the first rollout of each group, and gave 1.1 to all others."""

    def broken(prompts: list[Any], **columns: Any) -> list[float | None]:
        return [1.1 if row % 4 else None for row in range(len(prompts))]

    dropping = STOCK.model_copy(update={"drop_dead_groups": True})
    dead = history_of(trainer_of(models / "dense", tmp_path, dropping, STRINGS, broken))
    assert all(not gradient.any() for gradient in dead.gradients)
    steps = [entry for entry in dead.logs if "loss" in entry]
    assert [entry["groups/dropped_rows"] for entry in steps] == [1.0] * len(steps)
    assert {entry["groups/all_equal_above_zero"] for entry in dead.logs if "groups/all_failed" in entry} == {1.0}
    assert {entry["groups/all_failed"] for entry in dead.logs if "groups/all_failed" in entry} == {0.0}


def test_groups_are_compared_by_the_rows_that_have_a_score() -> None:
    nan = float("nan")
    groups = {
        (nan, 0.9, 0.9): True,
        (0.9, nan, 0.9): True,
        (nan, -0.9, -0.9): True,
        (nan, 0.9, nan): True,
        (nan, nan, nan): True,
        (nan, 0.0, 0.9): False,
        (nan, 0.9, 0.0): False,
        (0.0, 0.0, 0.0): True,
        (0.3, 0.3, 0.1): False,
    }
    rewards_BF = torch.tensor(list(groups)).view(-1, 1)
    assert equal_groups(rewards_BF, 3).tolist() == list(groups.values())
    partly_BF = torch.tensor([[0.5, nan], [nan, 0.5], [nan, nan], [0.5, 0.5]])
    assert equal_groups(partly_BF, 2).tolist() == [True, True], "one reward of several is a score"
    assert equal_groups(torch.cat([partly_BF[:1], partly_BF[3:]]), 2).tolist() == [False]


@pytest.mark.parametrize("how", ["boundaries", "positions"])
@pytest.mark.parametrize("name", ["dense", "v3"])
def test_no_sequence_sees_another(models: Path, name: str, how: str) -> None:
    """Changing one sequence of a packed row changes nothing in the others, and each is as if it were alone.

    `positions` is what transformers makes of restarting positions by itself; `boundaries` is our attention.
    """
    model = AutoModelForCausalLM.from_pretrained(models / name)
    if how == "boundaries":
        assert varlen.install(model)
    lengths = [5, 9, 1, 7]
    one, other = torch.arange(4, 26) % 15 + 2, torch.arange(4, 26) % 15 + 2
    other[5:14] = torch.tensor([3, 3, 4, 5, 9, 9, 2, 8, 3])
    positions = torch.cat([torch.arange(length) for length in lengths])
    apart = varlen.boundaries(lengths, positions.device) if how == "boundaries" else {}
    packed, changed = (
        model(input_ids=ids[None], position_ids=positions[None], use_cache=False, **apart).logits[0]
        for ids in (one, other)
    )
    start = 0
    for index, length in enumerate(lengths):
        part = slice(start, start + length)
        alone = model(input_ids=one[None, part], use_cache=False).logits[0]
        assert torch.allclose(packed[part], alone, rtol=1e-5, atol=1e-6)
        assert torch.equal(packed[part], changed[part]) == (index != 1)
        start += length


def test_without_boundaries_the_attention_is_transformers_own(models: Path) -> None:
    from transformers import GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(models / "dense")
    ids, mask = torch.tensor([[0, 0, 7, 8, 9], [4, 5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    greedy = GenerationConfig(max_new_tokens=9, do_sample=False, output_logits=True, return_dict_in_generate=True)
    before = model.generate(ids, attention_mask=mask, generation_config=greedy)
    assert varlen.install(model)
    after = model.generate(ids, attention_mask=mask, generation_config=greedy)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))


def test_a_layer_that_loses_the_boundaries_fails(models: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(models / "dense")
    assert varlen.install(model)
    with pytest.raises(RuntimeError):
        model(
            input_ids=torch.ones(1, 5, dtype=torch.long), position_ids=torch.tensor([[0, 1, 2, 0, 1]]), use_cache=False
        )


def test_gradient_checkpointing_recomputes_the_same_attention(models: Path, tmp_path: Path) -> None:
    fields = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    plain = history_of(trainer_of(models / "dense", tmp_path, PACKED, STRINGS))
    checkpointed = history_of(trainer_of(models / "dense", tmp_path, PACKED, STRINGS, **fields))
    assert all(torch.equal(a, b) for a, b in zip(checkpointed.gradients, plain.gradients, strict=True))


def test_passes_that_stay_rather_empty_are_told_once(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two rows at a time where there is room for many: as full as the rows that count are long."""
    roomy = PACKED.model_copy(update={"tokens_per_pass": 400})
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_steps": 9}
    trainer = trainer_of(models / "dense", tmp_path, roomy, STRINGS, **fields)
    counted: list[float] = []
    inner = trainer._passes

    def passes(batch: Any) -> Any:
        counted.append(float(batch.prompt_mask_BP.sum() + batch.mask_BC.sum()) / 400)
        return inner(batch)

    trainer._passes = passes
    logs = [entry for entry in history_of(trainer).logs if "loss" in entry]
    expected = [sum(counted[step * 8 : step * 8 + 8]) / 8 for step in range(9)]
    assert [entry["packing/fill"] for entry in logs] == pytest.approx(expected)
    (told,) = (record.getMessage() for record in caplog.records if "tokens_per_pass" in record.getMessage())
    assert f"are {100 * sum(counted[:32]) / 32:.0f} % full" in told and "2 rows" in told and "(8 now)" in told

    caplog.clear()
    fitting = PACKED.model_copy(update={"tokens_per_pass": 32})
    history_of(trainer_of(models / "dense", tmp_path, fitting, STRINGS, **fields))
    assert not any("tokens_per_pass" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("lengths", "budget", "at_least"),
    [
        ([5] * 8, 10, 1),
        ([9, 1, 1, 1, 8, 7], 10, 1),
        ([30, 2, 2], 10, 1),
        ([1, 1, 1], 10, 3),
        ([4, 4, 4], 7, 2),
        ([0, 0], 5, 1),
    ],
)
def test_passes_are_within_the_budget_whole_and_balanced(lengths: list[int], budget: int, at_least: int) -> None:
    passes = balanced(lengths, budget, at_least)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in rows) for rows in passes]
    assert all(size <= budget or len(rows) == 1 for size, rows in zip(sizes, passes, strict=True))
    assert len(passes) >= min(at_least, len(lengths)) or not any(lengths)
    assert max(sizes) - min(sizes) <= max(lengths)


def one_call_a_sequence(
    q: Any, k: Any, v: Any, ends: Any, _: Any, *longest: int, scale: float, window_size: Any
) -> Any:
    """torch 2.11's `varlen_attn`, which takes as many keys as queries, and knows no `enable_gqa`."""
    assert q.shape == k.shape == v.shape and window_size == (-1, 0) and set(longest) == {int(ends.diff().max())}
    parts = [slice(start, end) for start, end in pairwise(ends.tolist())]
    rows = [[x[part].transpose(0, 1) for x in (q, k, v)] for part in parts]
    return torch.cat([scaled_dot_product_attention(*row, is_causal=True, scale=scale).transpose(0, 1) for row in rows])


def grouped_call_a_sequence(q: Any, k: Any, v: Any, *args: Any, enable_gqa: bool = False, **kwargs: Any) -> Any:
    """The newer one: fewer keys than queries if it is told so."""
    assert enable_gqa == (len(q[0]) > len(k[0]))
    groups = len(q[0]) // len(k[0])
    return one_call_a_sequence(q, *(x.repeat_interleave(groups, dim=1) for x in (k, v)), *args, **kwargs)


@pytest.mark.parametrize("kernel", [one_call_a_sequence, grouped_call_a_sequence])
@pytest.mark.parametrize(("keys", "width"), [(2, 16), (4, 8), (1, 16)])
def test_every_torchs_kernel_is_asked_for_the_same(
    kernel: Any, keys: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    varlen._kernel_groups.cache_clear()
    told = varlen.boundaries([4, 1, 7], torch.device("cpu"))
    query, key = torch.randn(1, 4, 12, 16), torch.randn(1, keys, 12, 16)
    value = torch.randn(1, keys, 12, width)
    expected, _ = varlen.attention(None, query, key, value, None, **{k: v for k, v in told.items() if "_q" in k})
    found = varlen._kernel(query, key, value, told["cu_seq_lens_q"], told["max_length_q"], None)
    varlen._kernel_groups.cache_clear()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_kernel_agrees_with_one_call_a_sequence() -> None:
    """Run on a GPU: `pytest -m gpu tests/training/test_packing.py`."""
    torch.manual_seed(0)
    lengths, dtype = [700, 3, 64, 1, 129], torch.bfloat16
    told = varlen.boundaries(lengths, torch.device("cuda"))
    for heads, width, values in ((2, 64, 64), (8, 192, 128)):
        shape = (sum(lengths), width)
        query, key = (torch.randn(1, n, *shape, device="cuda", dtype=dtype, requires_grad=True) for n in (8, heads))
        value = torch.randn(1, heads, sum(lengths), values, device="cuda", dtype=dtype, requires_grad=True)
        assert varlen._kernel_can(query, dropout=0.0)
        results = []
        for double in (False, True):
            inputs = [
                part.detach().to(torch.float64 if double else dtype).requires_grad_() for part in (query, key, value)
            ]
            out, _ = varlen.attention(None, *inputs, None, **{k: v for k, v in told.items() if "_q" in k})
            out.pow(2).sum().backward()
            results.append([out, *(part.grad for part in inputs)])
        for fast, exact in zip(*results, strict=True):
            assert distance(exact, fast.double()) < 0.02


def test_graded_groups_have_variance() -> None:
    """The reward that these comparisons lean on is no constant."""
    assert len({graded([[ids]])[0] for ids in range(3)}) == 3
