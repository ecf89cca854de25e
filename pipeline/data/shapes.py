"""Training rows in the shapes that people publish, brought into those of `pipeline.data.mixture`.

    ShareGPT     {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}], "system": "…"}
                 also with the turns `function_call`, `observation`, and `tools` as JSON text; and such turns, or
                 messages, as `conversation` or `messages`; as a list, as JSON text (in the cell of a table), or as
                 columns: {"from": ["human", "gpt"], "value": ["2 + 2?", "4"]}
    half a chat  {"prompt": [user], "completion": "4"}  {"prompt": "2 + 2?", "completion": [assistant]}
    Alpaca       {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "…", "history": [["…", "…"]]}
    pairs        {"prompt": "2 + 2?", "chosen": [user, assistant], "rejected": [user, assistant]}
                 {"conversations": […], "chosen": {"from": "gpt", "value": "4"}, "rejected": {…}}
                 {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"}

A row whose keys are of one of these shapes is changed, and every other row is left as it is. What a shape's turns hold
that has no counterpart in a chat is an error, which names the row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipeline.prompts.messages import MessageError

Row = dict[str, Any]

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""What ShareGPT's `from` says -> the role; `call` is a turn of the assistant's that calls tools."""
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
CHATS = ("messages", "conversations", "conversation")
"""Keys of a chat; the first that a row has counts."""
ALPACA = {"instruction", "output"}
HALVES: Mapping[str, str] = {"prompt": "user", "completion": "assistant"}
"""Keys of a chat in two parts -> who says one that is a text."""
PAIR = ("chosen", "rejected")


def known(row: Mapping[str, Any]) -> Row:
    """A row in a shape that training reads.

    Raises:
        MessageError: a turn that has no counterpart in a chat.
    """
    if all(name in row for name in PAIR):
        return _pair(row)
    if (chat := next((key for key in CHATS if row.get(key) is not None), None)) is not None:
        return {**{key: value for key, value in row.items() if key not in (*CHATS, "system")}, **_chat(row, chat)}
    if row.keys() >= ALPACA:
        return _alpaca(row)
    return _halves(row)


def _chat(row: Mapping[str, Any], key: str) -> Row:
    """The messages of a row, begun by the system prompt that stands beside them."""
    messages, system = _turns(row[key], key), _text(row, "system")
    begun = bool(messages) and messages[0].get("role") == "system"
    if begun and system and messages[0].get("content") != system:
        raise MessageError(
            f"system is another prompt than that of {key}[0]: take one with columns: {{messages: {key}}}"
        )
    return {"messages": messages if begun or not system else [{"role": "system", "content": system}, *messages]}


def _turns(turns: Any, key: str) -> list[Row]:
    if isinstance(turns, str):
        with suppress(ValueError):  # told as what it is
            turns = json.loads(turns)
    if isinstance(turns, Mapping) and all(isinstance(column, list) for column in turns.values()):
        turns = [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise MessageError(f"{key} is a list of turns, not {str(turns)[:100]!r}")
    return [_turn(turn, f"{key}[{at}]") for at, turn in enumerate(turns)]


def _halves(row: Mapping[str, Any]) -> Row:
    """A prompt and a completion of which one is a text and the other a chat: the text is what its side says."""
    changed = dict(row)
    given = {key: row[key] for key in HALVES if row.get(key) is not None}
    if len(given) == len(HALVES) and any(isinstance(value, list | Mapping) for value in given.values()):
        for key, value in given.items():
            said = [{"role": HALVES[key], "content": value}] if isinstance(value, str) else value
            changed[key] = _turns([said] if isinstance(said, Mapping) else said, key)
    return changed


def _turn(turn: Any, place: str) -> Row:
    """One turn of ShareGPT's as a message; a message stays one."""
    if not isinstance(turn, Mapping):
        raise MessageError(f"{place}: a turn has `from` and `value`, unlike {str(turn)[:100]!r}")
    if turn.get("from") is None:
        said = dict(turn)
        if said.get("content") is None and isinstance(said.get("value"), str):
            said["content"] = said.pop("value")
        return said
    role = ROLES.get(str(turn["from"]).strip().lower())
    if role is None:
        raise MessageError(f"{place}.from is {turn['from']!r}; it is one of: {', '.join(ROLES)}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value") and value is not None}
    if role != "call":
        return {"role": role, "content": turn.get("value"), **rest}
    return {"role": "assistant", "content": "", "tool_calls": _calls(turn.get("value"), place), **rest}


def _calls(value: Any, place: str) -> list[Any]:
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise MessageError(f"{place}.value is a call of a tool, and not JSON: {error}") from error
    return list(calls) if isinstance(calls, list) else [calls]


def _alpaca(row: Mapping[str, Any]) -> Row:
    asked = "\n\n".join(text for key in ("instruction", "input") if (text := _text(row, key)))
    if not asked:
        raise MessageError("instruction and input are empty: nothing is asked")
    messages = [{"role": "system", "content": system}] if (system := _text(row, "system")) else []
    for at, pair in enumerate(row.get("history") or ()):
        if not isinstance(pair, Sequence) or len(pair) != 2:
            raise MessageError(f"history[{at}] is a question with its answer, unlike {str(pair)[:100]!r}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": _text(row, "output")}]
    rest = {
        key: value for key, value in row.items() if key not in ("instruction", "input", "output", "system", "history")
    }
    return {**rest, "messages": messages}


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MessageError(f"{key} is a text, not {str(value)[:100]!r}")
    return value


def _pair(row: Mapping[str, Any]) -> Row:
    """A pair whose responses are what the assistant says last."""
    changed = dict(row)
    if isinstance(row.get("conversations"), list):
        changed["prompt"] = _chat(row, "conversations")["messages"]
        del changed["conversations"]
    for name in PAIR:
        said = changed[name]
        if isinstance(said, Mapping):
            changed[name] = [_turn(said, name)]
        elif isinstance(said, str) and changed.get("prompt") is None and _SPOKEN.match(said):
            changed[name] = _spoken(said, name)
        elif isinstance(said, list):
            changed[name] = [_turn(turn, f"{name}[{at}]") for at, turn in enumerate(said)]
    if changed.get("prompt") is None:
        changed.pop("prompt", None)
        return changed
    whole = [isinstance(changed[name], list) and len(changed[name]) > 1 for name in PAIR]
    if all(whole):
        before = [changed[name][:-1] for name in PAIR]
        if before[0] != before[1] or not _same(changed["prompt"], before[0]):
            raise MessageError("chosen and rejected are whole conversations that do not begin with the prompt")
        changed |= {"prompt": before[0], **{name: changed[name][-1:] for name in PAIR}}
    return changed


def _same(prompt: Any, messages: Sequence[Any]) -> bool:
    """Whether messages say what a prompt says, which may be the text of the last one."""
    if isinstance(prompt, list):
        return prompt == list(messages)
    return bool(messages) and isinstance(messages[-1], Mapping) and messages[-1].get("content") == prompt


def _spoken(text: str, name: str) -> list[Row]:
    """A dialogue of `Human:` and `Assistant:` as messages (the form of Anthropic's HH-RLHF)."""
    parts = _SPOKEN.split(text)
    if parts[0].strip():
        raise MessageError(f"{name} begins with neither Human: nor Assistant:")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]
