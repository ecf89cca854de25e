"""The other switches: reused log-probabilities, refilling, background rewards, lengths, and several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from pipeline.schema.efficiency import STOCK, Efficiency, LengthChange
from pipeline.stages.registry import config_class
from pipeline.training.grpo.batch import of_rows
from pipeline.training.grpo.dynamic_sampling import DynamicSampling, extra_prompts
from pipeline.training.grpo.judging import Judge
from rewards import Batch, Part
from rewards.registry import find
from tests.training.replay import BATCH, GROUP, distance, graded, history_of, trainer_of

PROMPTS = ["what is 2", "you are kind what is 2 + two", "hello", "what four you are you are you are"] * 2
GRPO = {"kind": "grpo", "model": "m", "tasks": ["gsm8k"]}


def but(**switches: Any) -> Efficiency:
    """Everything off, except for these switches."""
    return STOCK.model_copy(update=switches)


def hopeless(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """Always the same reward for one of the four prompts, and for the others one that varies."""
    return [0.0 if prompt == "hello" else score for prompt, score in zip(prompts, graded(completion_ids), strict=True)]


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_is_tokenised_once_for_all_of_its_rollouts(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    prompts: list[Any] = [[{"role": "user", "content": text}] for text in PROMPTS] if chat else PROMPTS
    trainer = trainer_of(models / "dense", tmp_path, STOCK, prompts)
    theirs, given = GRPOTrainer._tokenize_prompts, []
    monkeypatch.setattr(
        GRPOTrainer, "_tokenize_prompts", lambda self, some: (given.append(len(some)), theirs(self, some))[1]
    )
    asked = [prompt for prompt in prompts for _ in range(GROUP)]
    ids = trainer.sampler.prompts([{"prompt": prompt} for prompt in asked])
    assert given == [len(prompts)]
    assert ids == [list(each) for each in theirs(trainer, asked)[0]]
    assert len({id(one) for one in ids}) == len(asked), "a list that several share would grow for all of them"


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_reused_log_probabilities_give_the_gradient_of_the_extra_pass(models: Path, tmp_path: Path, mode: str) -> None:
    bounds = {"vllm_importance_sampling_clip_min": 0.05, "vllm_importance_sampling_clip_max": 1.1}
    fields = {"vllm": True, "vllm_importance_sampling_mode": mode, "beta": 0.1, **bounds}
    stock = trainer_of(models / "dense", tmp_path, None, PROMPTS, **fields)
    reusing = trainer_of(models / "dense", tmp_path, but(reuse_logprobs=True), PROMPTS, **fields)
    calls: list[bool] = []
    passes = reusing._get_per_token_logps_and_entropies
    reusing._get_per_token_logps_and_entropies = lambda *a, **k: (
        calls.append(torch.is_grad_enabled()),
        passes(*a, **k),
    )[1]
    theirs, ours = history_of(stock), history_of(reusing)
    assert all(distance(a, b) < 1e-6 for a, b in zip(theirs.gradients, ours.gradients, strict=True))
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert calls == [False, True, True] * 2, "a step is the reference's pass and two micro-batches"


@pytest.mark.parametrize("packing", [False, True])
def test_reused_log_probabilities_are_logged_as_those_of_the_extra_pass(
    models: Path, tmp_path: Path, packing: bool
) -> None:
    """In a step of one micro-batch, be it divided into passes or not, with a bound that no weight reaches."""
    fields = {"vllm": True, "vllm_importance_sampling_clip_max": 1e30, "gradient_accumulation_steps": 1}
    switches = but(reuse_logprobs=True, packing=packing, tokens_per_pass=60)
    theirs = history_of(trainer_of(models / "dense", tmp_path, None, PROMPTS, **fields)).logs
    ours = history_of(trainer_of(models / "dense", tmp_path, switches, PROMPTS, **fields)).logs
    names = {name for name in theirs[0] if name.startswith("sampling/")}
    assert len(names) == 5
    for name in names:
        assert [at[name] for at in ours if "loss" in at] == pytest.approx(
            [at[name] for at in theirs if "loss" in at], rel=1e-4
        )


def test_log_probabilities_of_another_policy_are_not_reused(models: Path, tmp_path: Path) -> None:
    """With two updates on the same rollouts the policy of the second one is another: TRL's own pass stays."""
    fields = {"vllm": True, "num_iterations": 2, "max_steps": 4}
    stock = history_of(trainer_of(models / "dense", tmp_path, STOCK, PROMPTS, **fields))
    reusing = history_of(trainer_of(models / "dense", tmp_path, but(reuse_logprobs=True), PROMPTS, **fields))
    assert all(torch.equal(a, b) for a, b in zip(stock.gradients, reusing.gradients, strict=True))


def batches(trainer: Any, steps: int) -> list[Any]:
    """The generation batches of a run, before they are shuffled."""
    found: list[Any] = []
    generate = trainer.generation_batch

    def kept(*args: Any) -> Any:
        found.append(generate(*args))
        return found[-1]

    trainer.generation_batch = kept
    trainer.history = history_of(trainer)
    assert len(found) == steps
    return found


def test_refilling_replaces_dead_groups_and_says_what_it_took(models: Path, tmp_path: Path) -> None:
    switches = but(dynamic_sampling_rounds=4, dynamic_sampling_queue=8)
    trainer = trainer_of(models / "dense", tmp_path, switches, PROMPTS, hopeless, max_steps=4)
    for batch in batches(trainer, 4):
        groups_GK = batch.advantages_B.view(-1, GROUP)
        assert groups_GK.shape[0] == 2 * BATCH // GROUP
        assert groups_GK.any(dim=1).all()
        assert batch.tokens == batch.mask_BC.sum()
    logs = [entry for entry in trainer.history.logs if "loss" in entry]
    assert [entry["dynamic_sampling/dead"] for entry in logs] == [0.0] * 4
    sampled, queued = sum(entry["dynamic_sampling/sampled"] for entry in logs), logs[-1]["dynamic_sampling/queued"]
    assert sampled == 4 * 4 + trainer.dynamic_sampling.drawn
    assert sum(entry["dynamic_sampling/rounds"] for entry in logs) > 0
    assert queued == len(trainer.dynamic_sampling.queue) <= 8


def test_refilling_gives_up_after_its_rounds(models: Path, tmp_path: Path) -> None:
    nothing = lambda prompts, **_: [0.0] * len(prompts)  # noqa: E731
    trainer = trainer_of(models / "dense", tmp_path, but(dynamic_sampling_rounds=2), PROMPTS, nothing, max_steps=1)
    (batch,) = batches(trainer, 1)
    assert not batch.advantages_B.any()
    assert trainer.history.logs[0]["dynamic_sampling/rounds"] == 2
    assert trainer.history.logs[0]["dynamic_sampling/dead"] == 4
    assert trainer.history.logs[0]["dynamic_sampling/sampled"] == 4 + 2 * 4


def test_the_queue_is_first_in_first_out(models: Path, tmp_path: Path) -> None:
    nothing = lambda prompts, **_: [0.0] * len(prompts)  # noqa: E731
    trainer = trainer_of(models / "dense", tmp_path, but(dynamic_sampling_rounds=1), PROMPTS, nothing, max_steps=1)
    row = {"prompt_ids": torch.tensor([5, 6]), "mask": torch.ones(3, dtype=torch.long)}
    waiting = [
        [
            row | {"completion_ids": torch.full((3,), number), "advantage": torch.tensor(side)}
            for side in (-1.0, 1.0) * 2
        ]
        for number in range(4, 10)
    ]
    trainer.dynamic_sampling.queue = list(waiting)
    (batch,) = batches(trainer, 1)
    assert batch.completion_ids_BC[::GROUP, 0].tolist() == [4, 5, 6, 7]
    assert [group[0]["completion_ids"][0].item() for group in trainer.dynamic_sampling.queue] == [8, 9]
    assert trainer.history.logs[0]["dynamic_sampling/from_queue"] == 4


@pytest.mark.parametrize("fields", [{}, {"vllm": True, "vllm_importance_sampling_correction": False}], ids=str)
def test_a_group_from_the_queue_keeps_its_policys_log_probabilities(
    models: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Fresh rollouts have unknown ones, for they are those of the training pass; the loss knows the difference.

    The reference is stock TRL on the same batches, with what is unknown computed in a pass of its own.
    """
    fields = {"max_steps": 6, "learning_rate": 1.0, **fields}
    switches = but(dynamic_sampling_rounds=1, dynamic_sampling_queue=8, packing=True)
    trainer = trainer_of(models / "dense", tmp_path, switches, PROMPTS, hopeless, **fields)
    sampled = batches(trainer, 6)
    unknown = [batch.old_BC.isnan().any(dim=1) for batch in sampled if batch.old_BC is not None]
    assert any(row.any() and not row.all() for row in unknown)
    steps = [entry for entry in trainer.history.logs if "loss" in entry]
    assert any(entry["dynamic_sampling/from_queue"] for entry in steps)

    stock = trainer_of(models / "dense", tmp_path, None, PROMPTS, hopeless, **fields)
    of_step = iter(sampled)

    def known(inputs: Any) -> Any:
        batch = next(of_step)
        found = {
            "prompt_ids": batch.prompt_ids_BP,
            "prompt_mask": batch.prompt_mask_BP,
            "completion_ids": batch.completion_ids_BC,
            "completion_mask": batch.mask_BC,
            "advantages": batch.advantages_B,
            "num_items_in_batch": torch.tensor(batch.tokens),
        }
        with torch.no_grad():
            now, _, _ = stock._get_per_token_logps_and_entropies(
                stock.model, batch.ids, batch.attended, batch.completion_ids_BC.size(1)
            )
        old = now if batch.old_BC is None else batch.old_BC
        return {**found, "old_per_token_logps": torch.where(old.isnan(), now, old)}

    stock._generate_and_score_completions = known
    for theirs, ours in zip(history_of(stock).gradients, trainer.history.gradients, strict=True):
        assert distance(theirs, ours) < 1e-5


def test_rows_survive_the_queue(models: Path, tmp_path: Path) -> None:
    fields = {"vllm": True, "beta": 0.1, "mask_truncated_completions": True, "max_steps": 1}
    trainer = trainer_of(models / "dense", tmp_path, STOCK, PROMPTS, **fields)
    (batch,) = batches(trainer, 1)
    again = of_rows(batch.rows(), trainer._tokenizer.pad_token_id, "cpu", batch.tokens)
    width = again.completion_ids_BC.size(1)
    counted = again.mask_BC.bool()
    assert torch.equal(again.mask_BC, batch.mask_BC[:, :width])
    assert torch.equal(again.prompt_ids_BP, batch.prompt_ids_BP)
    assert torch.equal(again.prompt_mask_BP, batch.prompt_mask_BP)
    assert torch.equal(again.advantages_B, batch.advantages_B)
    for name in ("completion_ids_BC", "old_BC", "sampler_BC", "reference_BC"):
        ours, theirs = getattr(again, name)[counted], getattr(batch, name)[:, :width][counted]
        assert torch.equal(ours.nan_to_num(nan=7.0), theirs.nan_to_num(nan=7.0))


@pytest.mark.parametrize(("ranks", "found"), [(1, ["abc"]), (2, ["ac", "b"]), (3, ["a", "b", "c"]), (4, [*"abc", ""])])
def test_a_queue_is_shared_out_where_the_number_of_processes_has_changed(
    tmp_path: Path, ranks: int, found: list[str]
) -> None:
    """A stage that was stopped may go on with other GPUs."""

    def process(number: int, of: int) -> DynamicSampling:
        efficiency = STOCK.model_copy(update={"dynamic_sampling_rounds": 1, "dynamic_sampling_queue": 8})
        args = SimpleNamespace(per_device_train_batch_size=4, steps_per_generation=1)
        accelerator = SimpleNamespace(process_index=number, num_processes=of)
        trainer = SimpleNamespace(efficiency=efficiency, args=args, num_generations=4, accelerator=accelerator)
        return DynamicSampling(trainer)

    for number, name in enumerate("abc"):
        saved = process(number, 3)
        saved.queue, saved.drawn = [[{"advantage": torch.tensor(float(ord(name)))}]], 9
        saved.save(tmp_path)
    for number, names in enumerate(found):
        again = process(number, ranks)
        again.load(tmp_path)
        assert "".join(chr(int(group[0]["advantage"])) for group in again.queue) == names
        assert again.drawn == 9


def test_extra_prompts_go_through_the_training_set_in_a_new_order_each_time() -> None:
    drawn = [row for number in range(21) for row in extra_prompts(7, seed=1).rows(number)]
    assert all(sorted(drawn[i : i + 7]) == list(range(7)) for i in (0, 7, 14))
    assert drawn[:7] != drawn[7:14] != drawn[14:]
    assert drawn != [row for number in range(21) for row in extra_prompts(7, seed=2).rows(number)]


WAITING = """
import time
from pathlib import Path

FLAG = Path(__file__).with_name("gone-on")

def wait(completion):
    until = time.monotonic() + 20
    while not FLAG.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return len(completion) if FLAG.exists() else -1
"""


LOGGING = """
def logged(completions, trainer_state, log_extra, log_metric, **columns):
    log_extra("first", [text[:1] for text in completions])
    log_metric("characters", sum(map(len, completions)))
    log_metric("step_of_reward", float(trainer_state.global_step))
    return [len(text) % 3 + float(trainer_state.global_step) for text in completions]
"""


def test_rewards_are_judged_while_the_trainer_goes_on(tmp_path: Path) -> None:
    """The reward waits until the trainer has gone on, which it could not if it were waiting for the reward."""
    (tmp_path / "slow.py").write_text(WAITING)
    reward = Judge([Part(f"{tmp_path}/slow.py:wait")])
    reward.prepare()
    completions = ["ab", "c"]
    reward.start(Batch(["", ""], completions))
    (tmp_path / "gone-on").touch()
    assert reward(prompts=["", ""], completions=completions) == [2.0, 1.0]
    assert reward(prompts=["", ""], completions=["abcd", "c"]) == [4.0, 1.0], "another list is judged itself"
    reward.close()


def test_overlapped_rewards_change_nothing(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text("def score(completion):\n    return float(len(completion) % 3)\n")
    start, early, results = Judge.start, [], []
    monkeypatch.setattr(Judge, "start", lambda reward, batch: (early.append(switches), start(reward, batch))[1])
    for switches in (STOCK, but(background_rewards=True)):
        reward = Judge([Part(f"{tmp_path}/own.py:score")])
        results.append(history_of(trainer_of(models / "dense", tmp_path, switches, PROMPTS, reward, beta=0.1)))
        reward.close()
    assert early == [but(background_rewards=True)] * 2, "each batch, and only with the switch"
    assert all(torch.equal(a, b) for a, b in zip(*(result.gradients for result in results), strict=True))
    assert results[0].logs[0]["reward"] == results[1].logs[0]["reward"] > 0


def test_rewards_log_and_see_the_step_as_under_plain_trl(models: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(LOGGING)
    plain = find(f"{tmp_path}/own.py:logged").target
    reference = trainer_of(models / "dense", tmp_path, None, PROMPTS, plain)
    theirs = history_of(reference)
    for switches in (STOCK, but(background_rewards=True)):
        reward = Judge([Part(f"{tmp_path}/own.py:logged", name="logged")])
        trainer = trainer_of(models / "dense", tmp_path, switches, PROMPTS, reward)
        ours = history_of(trainer)
        reward.close()
        for metric in ("characters", "step_of_reward", "reward"):
            assert [log.get(metric) for log in ours.logs] == [log.get(metric) for log in theirs.logs]
    assert [log["step_of_reward"] for log in theirs.logs if "loss" in log] == [0.0, 1.0]


def test_the_length_follows_the_step(models: Path, tmp_path: Path) -> None:
    changes = [LengthChange(step=2, max_tokens=7), LengthChange(step=3, max_tokens=3)]
    fields = {"max_completion_length": 5, "max_steps": 4, "length_schedule": changes, "replayed": False}
    trainer = trainer_of(models / "dense", tmp_path, STOCK, PROMPTS, **fields)
    assert [trainer.length_at(step) for step in range(5)] == [5, 5, 7, 3, 3]
    history = history_of(trainer)
    steps = [entry for entry in history.logs if "loss" in entry]
    assert [entry["max_tokens"] for entry in steps] == [5, 5, 7, 3]
    assert [entry["completions/max_length"] for entry in steps] == [5, 5, 7, 3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"efficiency": {"drop_dead_groups": True}}, r"beta=0.001 pulls every row"),
        ({"efficiency": {"drop_dead_groups": True}, "trainer": {"beta": 0.0, "entropy_coef": 0.1}}, "entropy bonus"),
        ({"efficiency": {"drop_dead_groups": True}, "trainer": {"beta": 0.0, "top_entropy_quantile": 0.2}}, "quantile"),
        ({"efficiency": {"drop_dead_groups": True}, "mtp": {}, "trainer": {"beta": 0.0}}, "mtp. learns from every row"),
        ({"efficiency": {"dynamic_sampling_rounds": 1}, "trainer": {"scale_rewards": "batch"}}, "scale_rewards=batch"),
        ({"efficiency": {"tokens_per_pass": 0}}, "greater than 0"),
        ({"efficiency": {"pack": True}}, "pack"),
        ({"length_schedule": [{"step": 5, "max_tokens": 64}, {"step": 5, "max_tokens": 65}]}, "does not come after"),
        ({"length_schedule": [{"step": 5, "max_tokens": 1024}]}, "is 1024 already"),
    ],
)
def test_what_would_not_be_exact_is_refused_when_the_recipe_is_read(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class("grpo").model_validate({**GRPO, **config})


@pytest.mark.parametrize(
    ("config", "drops"), [({}, "auto"), ({"mtp": {}}, False), ({"routing": {"bias_update_speed": 1e-3}}, False)]
)
def test_rows_that_something_else_learns_from_are_kept(config: dict[str, Any], drops: Any) -> None:
    checked: Any = config_class("grpo").model_validate({**GRPO, "trainer": {"beta": 0.0}, **config})
    assert checked.switches.drop_dead_groups == drops
