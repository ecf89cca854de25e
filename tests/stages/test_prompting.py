"""One way of making prompts: training, sampling, rewards and evaluation see the same, and a model carries it along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.commands.chat import Conversation
from pipeline.prompts.rendering import Renderer
from pipeline.rollout.base import RolloutError, Sampling
from pipeline.stages.registry import config_class
from tests.stages import test_training_stages
from tests.stages.driving import Drive
from tests.stages.test_training_stages import TASK

GRPO = {**test_training_stages.GRPO, "rewards": ["constant.py:length"]}

REWARD = """
import json
from pathlib import Path
from rewards import Status, Verdict

class Seen:
    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def verify(self, items):
        with self.path.open("a") as sink:
            for item in items:
                prompt = item.messages[-1]["content"] if item.messages else item.prompt
                told = [prompt, item.columns["prefill"], item.completion, item.columns["truncated"]]
                sink.write(json.dumps(told) + "\\n")
        return [Verdict.graded(len(item.completion) / 100) for item in items]
"""
TEMPLATE = """\
{%- for message in messages %}
{{- message.role + ' : ' if shown else '' }}{{ message.content + ' ' }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}Assistant: {{ '<think> ' if opened else '' }}{% endif %}
"""


@pytest.fixture(scope="module")
def templated(chain: Drive, base: Path) -> Path:
    """`@templated`: the tiny model with a template that takes arguments."""
    folder: Path = chain.folder  # type: ignore[attr-defined]
    (folder / "seen.py").write_text(REWARD)
    (folder / "constant.py").write_text("def length(completion):\n    return 1.0\n")
    (folder / "sums.py").write_text(TASK)
    (folder / "template.jinja").write_text(TEMPLATE)
    config = {"kind": "import_model", "model": str(base / "model"), "chat_template": str(folder / "template.jinja")}
    return chain("templated", config)[0]


def seen(path: Path) -> list[list[str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_policy_is_scored_with_what_it_was_trained_with(chain: Drive, templated: Path, tmp_path: Path) -> None:
    kwargs = {"shown": True, "opened": True}
    reward = {"use": "seen.py:Seen", "options": {"path": str(tmp_path / "grpo")}}
    config = {**GRPO, "model": "@templated", "rewards": [reward], "prefill": "2", "trainer": {**GRPO["trainer"]}}
    config["trainer"] |= {"max_steps": 1, "chat_template_kwargs": kwargs}
    out, _ = chain("prompted", config)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    (prompt,) = Renderer(tokenizer).prompts([[{"role": "user", "content": "1 + 2 ="}]])
    assert prompt.text == "user : 1 + 2 = Assistant: <think> 2"
    assert {begun for _, begun, *_ in seen(tmp_path / "grpo")} == {prompt.begun} == {"<think> 2"}
    for name, own, begun in [("scored", {}, "<think> 2"), ("plain", {"prefill": "", "chat_template_kwargs": {}}, "")]:
        rewards = {"require": [{**reward, "options": {"path": str(tmp_path / name)}, "min": 0.0}]}
        sample = {"kind": "rejection_sample", "model": "@prompted", "tasks": ["sums.py:Sums"], **rewards, **own}
        rows, _ = chain(name, {**sample, "samples": 1, "rollout": {"max_tokens": 4}, "filters": {"truncated": True}})
        assert {found for _, found, *_ in seen(tmp_path / name)} == {begun}
        said = [json.loads(line)["messages"][-1]["content"] for line in (rows / "data.jsonl").read_text().splitlines()]
        assert said
        assert all(text.startswith(begun) for text in said)
    score = {"kind": "evaluate", "models": ["@prompted", "@base"], "tasks": ["sums.py:Sums"], "samples": 1}
    _, outputs = chain("score", {**score, "problems": 2, "rollout": {"max_tokens": 4}})
    assert outputs.metrics["prompting"] == {"prompted": {"chat_template_kwargs": kwargs, "prefill": "2"}}


@pytest.mark.parametrize("teacher", [None, "@base"])
def test_a_trainer_is_given_the_prompts_of_the_one_renderer(
    chain: Drive, templated: Path, monkeypatch: pytest.MonkeyPatch, teacher: str | None
) -> None:
    """TRL's trainers tokenise prompts themselves."""
    from pipeline.training import fit

    asked: list[list[list[int]]] = []

    def look(trainer: Any, context: Any) -> dict[str, Any]:
        prompts = [row["prompt"] for row in list(trainer.train_dataset)[:6]]
        asked.append([list(ids) for ids in trainer._tokenize_prompts(prompts)[0]])
        texts = [prompt.text for prompt in Renderer(trainer.processing_class).prompts(prompts)]
        asked.append(trainer.processing_class(texts, add_special_tokens=False).input_ids)
        trainer.is_world_process_zero = lambda: False
        return {}

    monkeypatch.setattr(fit, "fit", look)
    own = {"chat_template_kwargs": {"shown": True}, "prefill": "<think> 1"}
    config: dict[str, Any] = {**GRPO, "model": "@templated", **own}
    if teacher is not None:
        config = {"kind": "distill", "model": "@templated", "teacher": teacher, "tasks": GRPO["tasks"], **own}
        config |= {"trainer": {"max_steps": 1, "per_device_train_batch_size": 2}, "rollout": {"max_tokens": 4}}
    chain(f"asked-{teacher or 'none'}".replace("@", ""), config)
    assert asked[0] == asked[1]
    assert len(set(map(tuple, asked[0]))) == 6


def test_fine_tuning_reads_the_prompt_that_the_model_will_get(chain: Drive, templated: Path) -> None:
    folder: Path = chain.folder  # type: ignore[attr-defined]
    rows = [
        {"messages": [{"role": "user", "content": f"{n} +"}, {"role": "assistant", "content": "4"}]} for n in range(4)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"chat_template_kwargs": {"opened": True}, "trainer": {"max_steps": 1}}
    out, outputs = chain("tuned", {"kind": "sft", "model": "@templated", "data": ["chats.jsonl"], **own})
    assert outputs.metrics["trained_tokens"] == 4 * 3  # </think> 4 <eos>
    conversation = Conversation(str(out / "model"), "plain", Sampling(max_tokens=2, temperature=0.0))
    answer = "".join(conversation.ask("3 +"))
    assert conversation.chat[-1]["content"] == f"<think> {answer}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "sft", "data": ["x.jsonl"], "chat_template_kwargs": ["thinking"]}, "chat_template_kwargs"),
        ({**GRPO, "chat_template_kwargs": {}, "trainer": {"chat_template_kwargs": {"a": 1}}}, "leave one out"),
        ({**GRPO, "trainer": {**GRPO["trainer"], "chat_template_kwargs": "{}"}}, "is a mapping"),
    ],
)
def test_arguments_of_a_template_are_given_once(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(config["kind"]).model_validate({"model": "m", **config})


@pytest.mark.parametrize("engine", [{"engine": "transformers"}, {"engine": "transformers", "process": {}}])
def test_rollouts_stop_where_they_are_told_to(
    chain: Drive, templated: Path, tmp_path: Path, engine: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    reward = {"use": "seen.py:Seen", "options": {"path": str(tmp_path / "seen")}}
    trainer = {**GRPO["trainer"], "max_steps": 2, "per_device_train_batch_size": 40, "mask_truncated_completions": True}
    rollout = {**engine, "max_tokens": 6, "stop": ["</think>", "<answer>"]}
    config = {**GRPO, "rewards": [reward], "rollout": rollout, "trainer": trainer, "samples": 40, "sample_every": 1}
    out, _ = chain(f"stopped-{len(engine)}", config)
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    stopped = [row["completion"] for row in rows if row["finish"] == "stop"]
    assert any(text.endswith(("</think>", "<answer>")) for text in stopped)
    for _, _, text, truncated in seen(tmp_path / "seen"):
        words = text.split()
        first = next((at for at, word in enumerate(words) if word in ("</think>", "<answer>")), len(words) - 1)
        assert first == len(words) - 1, "nothing stands behind a stop"
        assert not (truncated and words[-1] in ("</think>", "<answer>"))
        assert truncated or len(words) < 6 or words[-1] in ("</think>", "<answer>", "<eos>")
    assert sum(truncated for *_, truncated in seen(tmp_path / "seen")) == sum(row["finish"] == "length" for row in rows)
    logged = [
        json.loads(line) for line in (out.parent / f"{out.name}-scratch" / "events.jsonl").read_text().splitlines()
    ]
    cut = [row["finish"] == "length" for row in rows if row["step"] == 0]
    assert logged[0]["completions/clipped_ratio"] == pytest.approx(sum(cut) / len(cut))
    assert logged[0]["completions/max_length"] <= 6


def test_a_student_that_stops_at_a_text_is_not_cut_off(
    chain: Drive, templated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TRL knows end-of-sequence tokens alone; each completion here ends with its first word."""
    words = [*"012345678+=", "User:", "Assistant:", "<think>", "</think>", "<answer>", "</answer>"]
    student = {"kind": "distill", "model": "@base", "teacher": "@base", "tasks": ["sums.py:Sums"]}
    student |= {"trainer": {"max_steps": 1, "per_device_train_batch_size": 4}}
    for name, stop, tokens in (("words", words, 3), ("cut", [], 1)):
        out, _ = chain(f"student-{name}", {**student, "rollout": {"max_tokens": tokens, "stop": stop, "top_k": 1}})
        events = (out.parent / f"{out.name}-scratch" / "events.jsonl").read_text().splitlines()
        logged = json.loads(events[0])
        assert logged["completions/clipped_ratio"] == (0 if stop else 1)
        assert logged["completions/mean_terminated_length"] == (1 if stop else 0)
        assert logged["completions/max_length"] == 1
        assert ("of the first 4 completions were cut off at 1 tokens" in caplog.text) == (not stop)


def test_what_ends_a_completion_is_said_in_one_place() -> None:
    for keys in ({"stop": ["a"]}, {"eos_token_id": 3}, {"stop_token_ids": [3]}, {"stop_strings": ["a"]}):
        config = {**GRPO, "model": "m", "trainer": {**GRPO["trainer"], "generation_kwargs": keys}}
        with pytest.raises(ValueError, match=r"is not set here; set `rollout\.stop`"):
            config_class("grpo").model_validate(config)


def test_the_first_completions_tell_how_many_were_cut_off(
    chain: Drive, templated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score = {"kind": "evaluate", "model": "@base", "tasks": ["sums.py:Sums"], "samples": 1, "problems": 4}
    chain("cut-off", {**score, "rollout": {"max_tokens": 1}})
    assert "100% of the first 4 completions were cut off at 1 tokens. Either they need more" in caplog.text
    with pytest.raises(RolloutError, match=r"rollout\.max_tokens is 128, and the model's context has 128 tokens"):
        chain("no-room", {**score, "rollout": {"max_tokens": 128}})
    with pytest.raises(
        RolloutError, match=r"4 of 4 prompts are too long .* problem 0-0 of sums.py:Sums \('0 \+ 0 ='\)"
    ):
        chain("little-room", {**score, "rollout": {"max_tokens": 125}})
    with pytest.raises(RolloutError, match=r"Lower rollout\.max_tokens"):
        chain("grpo-no-room", {**GRPO, "rollout": {"max_tokens": 125}})
