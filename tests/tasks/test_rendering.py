"""Every key of a message and every role: used as the chat template means it, or refused; and how thoughts join.

What is learnt is held against the template's own rendering, and against the label masks that `apply_chat_template`
computes from generation marks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.examples import IGNORED, completions, documents
from pipeline.data.mixture import DataError, DataSource, mixed
from pipeline.prompts.rendering import Renderer
from pipeline.prompts.templates import CHATS, TemplateError, set_chat_template
from tests.stages.driving import context_of
from tests.tasks.chat_templates import TEMPLATES, tokenizer

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Bün'de", "days": 2}}}
ASK, SAY = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "four"}
SYSTEM = {"role": "system", "content": "be kind"}
TOOL = {"role": "tool", "content": 'it is "warm"'}


def learnt(made: Any, row: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    """(what is read, what is learnt) of each example, as text."""
    renderer = Renderer(made, options.get("template_kwargs"), options.get("prefill"))
    dataset, _ = completions(made, [row], 10_000, "error", renderer)
    read = []
    for example in dataset:
        start = sum(label == IGNORED for label in example["labels"])
        assert example["labels"][start:] == example["input_ids"][start:]
        read.append((made.decode(example["input_ids"][:start]), made.decode(example["input_ids"][start:])))
    return read


def masked(made: Any, messages: list[dict[str, Any]], **options: Any) -> tuple[list[int], list[int]]:
    """Token ids and, where the template's marks say that the assistant speaks, labels."""
    encoded = made.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **options)
    ids, on = encoded["input_ids"], encoded["assistant_masks"]
    return ids, [token if learn else IGNORED for token, learn in zip(ids, on, strict=True)]


def trimmed(made: Any, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """Without what stands behind the last token that is learnt."""
    last = max(at for at, label in enumerate(labels) if label != IGNORED) + 1
    return ids[:last], labels[:last]


CHATS_WITHOUT_THOUGHTS: dict[str, list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]] = {
    "qwen2.5": [
        ([SYSTEM, ASK, SAY], []),
        ([ASK, SAY, ASK, SAY, SYSTEM, ASK, SAY], []),
        ([SYSTEM, ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, TOOL, SAY], [WEATHER]),
        ([ASK, {"role": "assistant", "content": "let me see", "tool_calls": [CALL, CALL]}, TOOL, TOOL, SAY], [WEATHER]),
    ],
    "qwen3": [([ASK, SAY], []), ([ASK, {"role": "assistant", "content": "so", "tool_calls": [CALL]}], [WEATHER])],
    "llama": [
        ([SYSTEM, ASK, SAY, ASK, SAY], []),
        ([ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, TOOL, SAY], [WEATHER]),
        ([{**ASK, "name": "Ann"}, SAY, {**ASK, "name": "Ben"}, SAY], []),
    ],
    "strict": [([ASK, SAY, ASK, SAY], [])],
}


@pytest.mark.parametrize("name", CHATS_WITHOUT_THOUGHTS)
def test_what_is_learnt_is_what_the_template_marks(name: str) -> None:
    made = tokenizer(name)
    for messages, tools in CHATS_WITHOUT_THOUGHTS[name]:
        row = {"messages": messages, "tools": tools}
        dataset, _ = completions(made, [row], 10_000, "error")
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(dataset) == len(turns)
        for example, at in zip(dataset, turns, strict=True):
            ids, labels = trimmed(made, *masked(made, messages[: at + 1], tools=tools or None))
            first = max(i for i in range(len(labels)) if labels[i] == IGNORED) + 1  # earlier turns are read, not learnt
            assert example["input_ids"] == ids
            assert example["labels"] == [IGNORED] * first + labels[first:]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("form", ["text", "parts", "nulls", "prompt and completion"])
def test_one_chat_in_all_its_spellings(name: str, form: str) -> None:
    made = tokenizer(name)
    plain = learnt(made, {"messages": [ASK, SAY]})
    spelled: dict[str, dict[str, Any]] = {
        "text": {"messages": [ASK, SAY], "tools": None, "task": "ignored"},
        "parts": {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "four"}]},
            ]
        },
        "nulls": {"messages": [{**m, "name": None, "tool_calls": None, "reasoning_content": None} for m in (ASK, SAY)]},
        "prompt and completion": {"prompt": [ASK], "completion": [SAY], "tools": []},
    }
    assert learnt(made, spelled[form]) == plain
    assert len(plain) == 1
    assert plain[0][1].endswith(f"four{made.eos_token}")


@pytest.mark.parametrize("arguments", [{"town": "Rome"}, '{"town": "Rome"}'])
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "deepseek", "llama"])
def test_arguments_of_a_tool_call_are_json_once(name: str, arguments: Any) -> None:
    made = tokenizer(name)
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    tools = [] if name == "deepseek" else [WEATHER]
    messages = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {**TOOL, "tool_call_id": "call_1", "name": "weather"},  # of the call, which templates may leave out
        SAY,
    ]
    (_, said), (read, _) = learnt(made, {"messages": messages, "tools": tools})
    assert '{"town": "Rome"}' in said
    assert said.endswith(made.eos_token)
    assert read.count('{"town": "Rome"}') == 1
    assert "warm" in read
    flat = [ASK, {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": arguments}]}]
    assert learnt(made, {"messages": flat, "tools": tools})[0][1] == said
    as_text = {"messages": messages, "tools": json.dumps(tools)}
    assert learnt(made, as_text)[0][1] == said


THOUGHT = [
    {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\nfour"},
    {"role": "assistant", "content": "four", "reasoning_content": "two and two"},
    {"role": "assistant", "content": "two and two\n</think>\n\nfour"},
]


@pytest.mark.parametrize("name", ["qwen3", "deepseek", *CHATS])
@pytest.mark.parametrize("message", THOUGHT, ids=["in content", "apart", "opened before"])
def test_a_thought_is_learnt_once_however_the_row_spells_it(name: str, message: dict[str, Any]) -> None:
    made = tokenizer(name if name in TEMPLATES else "qwen2.5")
    if name in CHATS:
        set_chat_template(made, name)
    ((read, said),) = learnt(made, {"messages": [ASK, message]})
    assert (read + said).endswith(f"<think>\ntwo and two\n</think>\n\nfour{made.eos_token}")
    assert (read + said).count("<think>") == 1
    assert read.endswith("<think>\n") == (name == "deepseek")
    assert Renderer(made).prompts([[ASK]])[0].text == read


def test_a_row_without_a_thought_closes_the_one_that_the_template_opens() -> None:
    made = tokenizer("deepseek")
    ((read, said),) = learnt(made, {"messages": [ASK, SAY]})
    assert read == "<bos><｜User｜>2 + 2?<｜Assistant｜><think>\n"
    assert said == "\n</think>\n\nfour<eos>"
    explicit = {"role": "assistant", "content": "<think>\n\n</think>\n\nfour"}
    assert learnt(made, {"messages": [ASK, explicit]}) == [(read, said)]
    called = {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "ask"}
    ((_, said),) = learnt(made, {"messages": [ASK, called]})
    assert said.startswith("ask\n</think>\n\n<tool>function|weather\n{")


def test_thoughts_of_earlier_turns_are_left_out_where_the_template_does_so() -> None:
    for name in ("qwen3", "deepseek"):
        made = tokenizer(name)
        (_, first), (read, second) = learnt(made, {"messages": [ASK, THOUGHT[0], ASK, THOUGHT[0]]})
        assert first == second
        assert "two and two" not in read


@pytest.mark.parametrize("kwargs", [None, {"enable_thinking": False}])
def test_arguments_of_the_template_reach_what_is_trained(kwargs: dict[str, Any] | None) -> None:
    made = tokenizer("qwen3")
    prompt = made.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True, **(kwargs or {}))
    ((read, said),) = learnt(made, {"messages": [ASK, SAY]}, template_kwargs=kwargs)
    assert read == prompt
    assert (
        read + said
        == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nfour<|im_end|>"
    )
    assert learnt(made, {"messages": [ASK, SAY], "chat_template_kwargs": kwargs}) == [(read, said)]
    if kwargs:
        with pytest.raises(
            DataError, match=r"messages\[1\]: the prompt makes the assistant begin with '<think>\\n\\n</th"
        ):
            learnt(made, {"messages": [ASK, THOUGHT[1]]}, template_kwargs=kwargs)


def test_a_prefill_is_read_and_not_learnt() -> None:
    for name in ("qwen2.5", "qwen3"):
        made = tokenizer(name)
        ((read, said),) = learnt(made, {"messages": [ASK, THOUGHT[0]]}, prefill="<think>\n")
        assert read.endswith("<|im_start|>assistant\n<think>\n")
        assert said == "two and two\n</think>\n\nfour<|im_end|>"
        ((_, said),) = learnt(made, {"messages": [ASK, SAY]}, prefill="<think>\n")
        assert said == "\n</think>\n\nfour<|im_end|>"
    made = tokenizer("llama")
    ((read, said),) = learnt(made, {"messages": [ASK, {**SAY, "content": "Well, four"}]}, prefill="Well,")
    assert (read[-7:], said) == ("\n\nWell,", " four<|eot_id|>")
    with pytest.raises(DataError, match=r"begin with 'Well,', and what the row lets it say does not: 'four"):
        learnt(made, {"messages": [ASK, SAY]}, prefill="Well,")


def test_turns_of_weight_zero_are_read_and_not_learnt() -> None:
    made = tokenizer("llama")
    messages = [ASK, {**SAY, "content": "five", "weight": 0}, {**ASK, "weight": 0}, {**SAY, "weight": 1}]
    ((read, said),) = learnt(made, {"messages": messages})
    assert "five" in read
    assert said == "four<|eot_id|>"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen2.5", {"messages": [ASK, {**SAY, "reasoning_content": "hm"}]}, r"messages\[1\].reasoning_content: the chat"),
    ("strict", {"messages": [ASK, {**SAY, "reasoning_content": "hm"}]}, r"write it into `content`"),
    ("qwen2.5", {"messages": [{**ASK, "name": "Ann"}, SAY]}, r"messages\[0\].name: the chat template does not use it"),
    ("qwen2.5", {"messages": [ASK, {**SAY, "tool_calls": [CALL]}, {**TOOL, "name": "clock"}, SAY]}, r"\[2\].name: the"),
    ("qwen2.5", {"prompt": [ASK], "completion": [{**SAY, "mood": "glad"}]}, r"completion\[0\].mood: .*`ignore:`"),
    ("deepseek", {"messages": [ASK, SAY], "tools": [WEATHER]}, r"tools: the chat template does not render them"),
    ("strict", {"messages": [SYSTEM, ASK, SAY]}, r"cannot take this chat.*must alternate"),
    ("strict", {"messages": [ASK, {**SAY, "tool_calls": [CALL]}]}, r"messages\[1\].tool_calls: the chat template"),
    ("qwen3", {"messages": [ASK, {"role": "critic", "content": "bad"}, SAY]}, r"content of the role 'critic'"),
    ("deepseek", {"messages": [ASK, {"role": "developer", "content": "be"}, SAY]}, r"content of the role 'developer'"),
    ("llama", {"messages": [ASK, {**SAY, "tool_calls": [CALL]}]}, r"content of the role 'assistant' beside tool calls"),
    ("llama", {"messages": [ASK, {"role": "assistant", "tool_calls": [CALL, CALL]}]}, r"one tool call at a time"),
    ("qwen3", {"messages": [ASK, {**THOUGHT[0], "reasoning_content": "hm"}]}, r"in `content` and one in `reasoning"),
    (
        "deepseek",
        {"messages": [ASK, {**SAY, "content": "<think>\ntwo"}]},
        r"messages\[1\]: the thought is never closed",
    ),
    ("llama", {"messages": [ASK, {**SAY, "weight": 0.5}]}, r"messages\[1\].weight is 0 \(not learnt\) or 1, not 0.5"),
    ("llama", {"messages": [{**ASK, "weight": 1}, SAY]}, r"messages\[0\].weight is 1, but only what the assistant"),
    ("llama", {"messages": [ASK, {**SAY, "weight": 0}]}, r"assistant says nothing that is to be learnt"),
    ("llama", {"prompt": [ASK, {**SAY, "weight": 1}, ASK], "completion": [SAY]}, r"prompt\[1\].weight is 1"),
    ("llama", {"messages": [ASK, {"role": "assistant", "content": ""}]}, r"messages\[1\]: the assistant says nothing"),
    ("llama", {"messages": [{"role": "user"}, SAY]}, r"messages\[0\].content is missing"),
    ("llama", {"messages": [{"content": "2?"}, SAY]}, r"messages\[0\].role is a text"),
    ("llama", {"messages": ["2?", SAY]}, r"messages\[0\]: a message has `role` and `content`"),
    ("llama", {"messages": [{**ASK, "content": [{"type": "image_url", "image_url": "x"}]}, SAY]}, "type 'image_url'"),
    ("llama", {"messages": [{**ASK, "content": {"text": "x"}}, SAY]}, r"messages\[0\].content is a text or a list"),
    ("llama", {"messages": [{**ASK, "tool_calls": [CALL]}, SAY]}, r"messages\[0\].tool_calls is a list, and the assis"),
    ("llama", {"messages": [{**ASK, "reasoning_content": "hm"}, SAY]}, r"messages\[0\].reasoning_content is a text"),
    ("llama", {"messages": [ASK, {**SAY, "tool_calls": [{"name": "f", "arguments": "{"}]}]}, r"arguments is not JSON"),
    ("llama", {"messages": [ASK, {**SAY, "tool_calls": [{"arguments": {}}]}]}, r"tool_calls\[0\] is \{type: function"),
    ("llama", {"messages": [ASK, SAY], "tools": "weather"}, r"tools is neither a list nor JSON text"),
    ("llama", {"messages": [ASK, SAY], "chat_template_kwargs": {"thinking": True}}, r"'thinking' has no effect"),
]


@pytest.mark.parametrize(("name", "row", "message"), REFUSED)
def test_what_a_template_would_drop_is_refused(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        learnt(tokenizer(name), row)


def test_a_refusal_names_file_and_line_and_the_way_out_works(tmp_path: Path) -> None:
    rows = [{"messages": [ASK, SAY]}, {"messages": [{**ASK, "name": "Ann"}, SAY]}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = tokenizer("qwen2.5")
    for ignore in ([], ["name"]):
        source = {"from": "chats.jsonl", "ignore": ignore}
        context = context_of(tmp_path, f"sft{len(ignore)}", {"kind": "sft", "model": "nowhere", "data": [source]}, {})
        found = mixed([DataSource.model_validate(source)], context)
        if ignore:
            assert len(completions(made, found, 1000, "error")[0]) == 2
        else:
            with pytest.raises(DataError, match=r"chats.jsonl:2: messages\[0\].name: .*`ignore:` beside `from:`"):
                completions(made, found, 1000, "error")
    with pytest.raises(DataError, match=r"chats.jsonl:\d: an example has \d+ tokens, more than max_length=9"):
        completions(made, found, 9, "error")


@pytest.mark.parametrize("bos", [True, False])
def test_texts_begin_as_the_tokenizer_begins_them(bos: bool) -> None:
    made = tokenizer("llama", bos)
    for prompt in ("2 + 2 =", "<bos>2 + 2 =" if bos else "2 + 2 =", ""):
        dataset, _ = completions(made, [{"prompt": prompt, "completion": " 4"}], 100, "error")
        expected = made(prompt.removeprefix("<bos>")).input_ids  # with its special tokens
        said = [*made(" 4", add_special_tokens=False).input_ids, made.eos_token_id]
        assert dataset[0]["input_ids"] == expected + said
        assert dataset[0]["labels"] == [IGNORED] * len(expected) + said
        assert (expected[:1] == [made.bos_token_id]) == bos
    dataset, account = documents(made, ["one", "<bos>two" if bos else "two"])
    assert dataset["input_ids"] == [[*made(text).input_ids, made.eos_token_id] for text in ("one", "two")]
    assert dataset["labels"] == dataset["input_ids"]
    assert account.tokens == sum(map(len, dataset["input_ids"]))


def test_a_model_carries_along_how_it_is_prompted(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = tokenizer("qwen3")
    Renderer(made, {"enable_thinking": False}, "So: ").carry()
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    (prompt,) = Renderer(again).prompts([[ASK]])
    assert prompt.begun == "<think>\n\n</think>\n\nSo: "
    assert prompt.text.endswith("<|im_start|>assistant\n" + prompt.begun)
    assert Renderer(again, {}, "").prompts([[ASK]])[0].begun == ""
    Renderer(again, {}, "").carry()
    assert "prompting" not in again.init_kwargs
    with pytest.raises(TemplateError, match="'tokenize' is not an argument of the template"):
        Renderer(made, {"tokenize": True})
