"""Rows become token ids: against the chat template's own rendering, and with rows nobody should train on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from model.labels import IGNORED
from pipeline.data.examples import Account, completions, documents, shared
from pipeline.data.mixture import DataError
from pipeline.data.vocabulary import VocabularySpec, build
from pipeline.training.setup import warn_if_dropped
from tests.stages.driving import context_of

TEXT = "User: Assistant: you are kind what is 2 + two four <think> </think> <answer> </answer> hello"
QUESTION = {"role": "user", "content": "what is 2 + 2"}
THOUGHT = "<think> two + two </think> <answer> four </answer>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build(VocabularySpec(kind="words", chat_template="r1_zero"), [TEXT])


def only(tokenizer: Any, row: dict[str, Any], **options: Any) -> tuple[list[int], list[int]]:
    dataset, _ = completions(tokenizer, [row], **{"max_length": 100, "too_long": "error", **options})
    (example,) = list(dataset)
    return example["input_ids"], example["labels"]


def test_a_chat_is_what_the_template_renders_and_only_the_answer_is_learnt(tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "you are kind"}, QUESTION, {"role": "assistant", "content": THOUGHT}]
    ids, labels = only(tokenizer, {"messages": chat})
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert ids == tokenizer(rendered, add_special_tokens=False).input_ids
    learnt = [token for token in labels if token != IGNORED]
    assert tokenizer.decode(learnt) == f"{THOUGHT} {tokenizer.eos_token}"
    assert ids[-len(learnt) :] == learnt


def test_prompt_and_completion_say_the_same_as_messages(tokenizer: Any) -> None:
    answer = {"role": "assistant", "content": THOUGHT}
    assert only(tokenizer, {"prompt": [QUESTION], "completion": [answer]}) == only(
        tokenizer, {"messages": [QUESTION, answer], "task": "ignored"}
    )


@pytest.mark.parametrize("beside", [{"prompt": [QUESTION]}, {"prompt": "what is 2 + 2"}, {"prompt": None}])
def test_messages_are_the_whole_chat_whatever_stands_beside_them(tokenizer: Any, beside: dict[str, Any]) -> None:
    messages = [QUESTION, {"role": "assistant", "content": THOUGHT}]
    row = {"messages": messages, "completion": None, **beside}
    assert only(tokenizer, row) == only(tokenizer, {"messages": messages})


def test_plain_text_is_taken_as_it_is(tokenizer: Any) -> None:
    ids, labels = only(tokenizer, {"prompt": "what is", "completion": "four"})
    assert tokenizer.decode(ids) == f"what is four {tokenizer.eos_token}"
    assert labels[:2] == [IGNORED] * 2
    assert labels[2:] == ids[2:]


def test_an_end_that_is_there_already_is_not_doubled(tokenizer: Any) -> None:
    with_end = {"prompt": "what is", "completion": f"four {tokenizer.eos_token}"}
    assert only(tokenizer, with_end) == only(tokenizer, {"prompt": "what is", "completion": "four"})


def test_every_turn_of_the_assistant_is_learnt_once_in_its_own_context(tokenizer: Any) -> None:
    chat = [QUESTION, {"role": "assistant", "content": "four"}, QUESTION, {"role": "assistant", "content": "2 + 2"}]
    dataset, account = completions(tokenizer, [{"messages": chat}], 100, "error")
    learnt = [tokenizer.decode([t for t in example["labels"] if t != IGNORED]) for example in dataset]
    assert learnt == ["four <eos>", "2 + 2 <eos>"]
    assert account.examples == 2
    assert "four" in tokenizer.decode(dataset[1]["input_ids"])


def test_a_thought_that_the_template_opens_is_not_opened_twice(tokenizer: Any) -> None:
    import copy

    prefilling = copy.deepcopy(tokenizer)
    prefilling.chat_template = (
        "{% for message in messages %}{{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}Assistant: <think>\n{% endif %}"
    )
    opened, _ = only(prefilling, {"messages": [QUESTION, {"role": "assistant", "content": THOUGHT}]})
    text = prefilling.decode(opened)
    assert text == f"what is 2 + 2 Assistant: {THOUGHT} <eos>"
    sampled = THOUGHT.removeprefix("<think>")
    assert only(prefilling, {"messages": [QUESTION, {"role": "assistant", "content": sampled}]})[0] == opened


def test_what_is_too_long_is_dropped_whole_and_counted(tokenizer: Any) -> None:
    rows = [{"prompt": "what is", "completion": "two " * n} for n in (1, 2, 50)]
    dataset, account = completions(tokenizer, rows, max_length=5, too_long="drop")
    assert [len(ids) for ids in dataset["input_ids"]] == [4, 5]
    assert (account.examples, account.too_long, account.longest) == (2, 1, 53)
    with pytest.raises(DataError, match="53 tokens, more than max_length=5"):
        completions(tokenizer, rows, max_length=5, too_long="error")
    with pytest.raises(DataError, match="nothing to train on: 3 examples"):
        completions(tokenizer, rows, max_length=2, too_long="drop")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "hello"}, "neither a chat nor"),
        ({"messages": [QUESTION]}, "the assistant says nothing"),
        ({"messages": "hello"}, "neither a chat nor"),
        ({"messages": [{"role": "assistant", "content": None}]}, "neither a chat nor"),
        ({"prompt": [QUESTION], "completion": "four"}, "neither a chat nor"),
        ({"prompt": "what is", "completion": None}, "neither a chat nor"),
    ],
)
def test_a_row_that_is_no_training_row_is_an_error(tokenizer: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        completions(tokenizer, [row], 100, "drop")


def test_documents_are_learnt_whole(tokenizer: Any) -> None:
    dataset, account = documents(tokenizer, ["hello you", "what"])
    assert [tokenizer.decode(ids) for ids in dataset["input_ids"]] == ["hello you <eos>", "what <eos>"]
    assert dataset["labels"] == dataset["input_ids"]
    assert (account.examples, account.tokens) == (2, 5)
    with pytest.raises(DataError, match="nothing to train on"):
        documents(tokenizer, [])


def test_examples_are_tokenised_once_and_never_half(tokenizer: Any, tmp_path: Path) -> None:
    folder, args = tmp_path / "examples", TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    made: list[int] = []

    def make() -> tuple[Dataset, Account]:
        made.append(1)
        return documents(tokenizer, ["2 + 2", "four"])

    def broken() -> tuple[Dataset, Account]:
        raise DataError("row 7")

    with pytest.raises(DataError, match="row 7"):
        shared(folder, args, broken)
    (tmp_path / "examples.unfinished").mkdir()  # what a kill leaves
    (tmp_path / "examples.unfinished" / "data-00000-of-00001.arrow").write_bytes(b"half")
    first, again = (shared(folder, args, make) for _ in range(2))
    assert len(made) == 1
    expected, account = make()
    assert first[0].to_list() == again[0].to_list() == expected.to_list()
    assert first[1] == again[1] == account
    assert {path.name for path in tmp_path.iterdir()} == {"examples"}


def test_tokens_that_go_to_disk_are_the_same_and_leave_nothing(tmp_path: Path) -> None:
    tokenizer = build(VocabularySpec(kind="words"), ["one two three four <eos>"])
    rows = [{"prompt": "one two", "completion": " three"}] * 5000 + [{"prompt": "two", "completion": " three four"}] * 3
    kept, account = completions(tokenizer, rows, 4, "drop")
    written, other = completions(tokenizer, rows, 4, "drop", file=tmp_path / "tokens.arrow")
    assert written.to_list() == kept.to_list() and len(written) > 5000 - 1
    assert account == other and account.examples == len(kept)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_that_examples_were_left_out_is_seen_in_the_terminal_once(rank: int, tmp_path: Path) -> None:
    """A run whose rows are mostly too long would otherwise look like any other."""
    context = context_of(tmp_path, "s", {"kind": "sft", "model": "m", "data": ["rows.jsonl"]}, {})
    args = SimpleNamespace(process_index=rank)
    warn_if_dropped(context, args, Account(examples=3, tokens=9, trained_tokens=3, too_long=0, longest=3), 9)
    assert not context.events.exists()
    warn_if_dropped(context, args, Account(examples=3, tokens=9, trained_tokens=3, too_long=2, longest=12), 9)
    told = "2 of 5 examples are longer than max_length=9 and are left out; the longest has 12 tokens"
    assert (context.events.exists() and told in context.events.read_text()) == (rank == 0)
