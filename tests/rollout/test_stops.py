"""`rollout.stop`: completions end at texts and token ids, in the engines that need no GPU; and room in the context."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.commands.chat import Conversation
from pipeline.prompts.templates import encode, prompt_template, render
from pipeline.rollout import open_engine, sampling
from pipeline.rollout.base import Finish, RolloutError, Sampling
from pipeline.rollout.context_limit import ContextLimit, context_of
from pipeline.rollout.stops import Stops
from pipeline.rollout.transformers import TransformersEngine
from pipeline.schema.pieces import RolloutSpec
from pipeline.training import setup
from tests.tasks.chat_templates import tokenizer

THINKS = "<think> 1 2 </think> <answer> 3 </answer>"


def test_the_first_stop_is_found_where_counting_finds_it() -> None:
    made, rng = tokenizer("qwen2.5"), random.Random(0)
    alphabet = [*made("ab ü").input_ids, made.convert_tokens_to_ids("<|im_end|>")]
    for _ in range(300):
        ids = rng.choices(alphabet, k=rng.randrange(12))
        stops = Stops.of(made, rng.sample(["ab", "ü", "b a", alphabet[0], "<|im_end|>"], k=rng.randrange(1, 4)))
        texts = [made.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
        at = [n + 1 for n, text in enumerate(texts) if ids[n] in stops.ids or any(stop in text for stop in stops.texts)]
        assert stops.length(ids) == (at[0] if at else None)
        assert stops.cut(ids) == ids[: at[0] if at else None]
        assert stops.ended(stops.cut(ids)) == bool(at)


def test_a_special_token_is_meant_by_its_name_and_one_that_is_not_there_refused() -> None:
    made = tokenizer("qwen2.5")
    assert Stops.of(made, ["<|im_start|>", "im", 7]) == Stops(
        made, (made.convert_tokens_to_ids("<|im_start|>"), 7), ("im",)
    )
    assert not Stops.of(made, [])
    with pytest.raises(RolloutError, match=rf"^stop: 99999 is not a token id; the vocabulary has {len(made)}"):
        Stops.of(made, [99999])


def test_a_recipe_says_it_with_texts_and_ids() -> None:
    assert RolloutSpec.model_validate({"stop": "</answer>"}).stop == ["</answer>"]
    assert sampling(RolloutSpec.model_validate({"stop": ["a", 3]}), 1, 0).stop == ("a", 3)
    for wrong in ("", [""], [-1], [True], [1.5], {"a": 1}):
        with pytest.raises(ValidationError):
            RolloutSpec.model_validate({"stop": wrong})


@pytest.fixture(scope="module", params=["here", "in a process"])
def engine(calculator: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "here":
        made: Any = TransformersEngine(str(calculator), batch_size=4, logprobs=True)
    else:
        spec = RolloutSpec.model_validate({"engine": "transformers", "batch_size": 4, "process": {}})
        made = open_engine(spec, str(calculator), seed=0, logprobs=True)
    yield made
    made.close()


def prompts(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(folder)
    chats = [prompt_template("plain")(question) for question in ("1 + 2 =", "3 + 0 =", "2 + 2 =", "0 + 4 =", "4 + 4 =")]
    return encode(made, render(made, chats))


def test_a_completion_ends_with_what_it_stops_at(engine: Any, calculator: Path) -> None:
    from transformers import AutoTokenizer

    made, asked = AutoTokenizer.from_pretrained(calculator), prompts(calculator)
    whole = engine.generate(asked, Sampling(max_tokens=12, temperature=0.0))
    assert whole[0][0].text == THINKS
    for stop in ("</think>", "think> <answer>", made.convert_tokens_to_ids("</think>"), "<eos>"):
        groups = engine.generate(asked, Sampling(max_tokens=12, temperature=0.0, stop=("nowhere", stop)))
        for (before,), (rollout,) in zip(whole, groups, strict=True):
            assert rollout.token_ids == before.token_ids[: len(rollout.token_ids)]
            assert rollout.finish is Finish.STOP
            assert rollout.text == made.decode(rollout.token_ids, skip_special_tokens=True)
            ends = made.decode(rollout.token_ids)
            assert ends.endswith("</think>" if isinstance(stop, int) else stop)
            assert rollout.logprobs == pytest.approx(before.logprobs[: len(rollout.token_ids)], abs=1e-4)
    sampled = engine.generate(asked, Sampling(n=6, max_tokens=4, seed=3, stop=("</answer>",)))
    finished = {rollout.finish for group in sampled for rollout in group}
    assert finished == {Finish.STOP, Finish.LENGTH}
    for group in sampled:
        for rollout in group:
            assert rollout.text.count("</answer>") <= 1
            stopped = rollout.text.endswith("</answer>") or rollout.token_ids[-1] == made.eos_token_id
            assert stopped == (rollout.finish is Finish.STOP)


def test_an_answer_in_a_chat_ends_there_too(calculator: Path) -> None:
    sampling = Sampling(max_tokens=12, temperature=0.0, stop=("</think>",))
    assert "".join(Conversation(str(calculator), "plain", sampling).ask("1 + 2 =")) == "<think> 1 2 </think>"


def test_a_prompt_that_leaves_no_room_is_named_before_anything_is_sampled(calculator: Path) -> None:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(calculator)
    limit = context_of(str(calculator))
    assert limit == 64
    texts = ["1 + 2 =", "1 " * 40, "1 " * 56, "1 " * 57, "1 " * 2_500_000]
    rows = [{"task": "sums", "id": f"s{n}", "question": text} for n, text in enumerate(texts)]
    assert ContextLimit(limit, 8).fitting(made, texts[:3], rows) == [0, 1, 2]
    message = (
        r"2 of 5 prompts are too long for the model's context of 64 tokens with rollout.max_tokens 8. The first is row"
        r" 4, problem s3 of sums \('1 1 .*'\), with 57 tokens. Lower rollout.max_tokens, or .*rollout.too_long: filter"
    )
    with pytest.raises(RolloutError, match=message):
        ContextLimit(limit, 8).fitting(made, texts, rows)
    assert ContextLimit(limit, 8, "filter").fitting(made, texts, rows) == [0, 1, 2]
    assert ContextLimit(limit, 30, "filter").fitting(made, texts, rows) == [0]
    with pytest.raises(RolloutError, match="2 of 2 prompts"):
        ContextLimit(limit, 8, "filter").fitting(made, texts[3:], rows[3:])
    for tokens in (64, 100_000):
        with pytest.raises(RolloutError, match=f"max_tokens is {tokens}, and the model's context has 64 tokens"):
            ContextLimit(limit, tokens).check()
    with pytest.raises(RolloutError, match="the chat"):
        list(Conversation(str(calculator), "plain", Sampling(max_tokens=12)).ask("1 " * 60))


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("changes", "options", "limit"),
    [
        ({}, {}, 64),
        ({}, {"max_model_len": 48}, 48),
        ({}, {"max_model_len": None}, 64),
        ({"rope_parameters": YARN}, {}, 256),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, {}, 64),
    ],
)
def test_what_counts_as_a_models_context(
    calculator: Path, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], limit: int
) -> None:
    folder = shutil.copytree(calculator, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    assert context_of(str(folder), options) == limit
    assert setup.context_length(str(folder)) == context_of(str(folder)), "fine-tuning and sampling agree"


def test_a_model_that_does_not_say_what_it_reads_needs_a_max_length(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="does not say how many tokens the model reads: set max_length"):
        setup.context_length(str(tmp_path))
