"""Training rows in the shapes that people publish, brought into those of `pipeline.data.mixture`.

    ShareGPT     {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}], "system": "…"}
                 also with the turns `function_call`, `observation`, and `tools` as JSON text
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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.messages import MessageError

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
PAIR = ("chosen", "rejected")


def known(row: Mapping[str, Any]) -> Row:
    """A row in a shape that training reads.

    Raises:
        MessageError: a turn that has no counterpart in a chat.
    """
    if all(name in row for name in PAIR):
        return _pair(row)
    for keys, change in _SHAPES:
        if keys <= row.keys() and row.get("messages") is None:
            return change(row)
    return dict(row)


def _sharegpt(row: Mapping[str, Any]) -> Row:
    rest = {key: value for key, value in row.items() if key not in ("conversations", "system")}
    return {**rest, "messages": _messages(row)}


def _messages(row: Mapping[str, Any]) -> list[Row]:
    turns = row["conversations"]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise MessageError(f"conversations is a list of turns, not {str(turns)[:100]!r}")
    said = [_turn(turn, f"conversations[{at}]") for at, turn in enumerate(turns)]
    system = row.get("system")
    return [{"role": "system", "content": system}, *said] if system else said


def _turn(turn: Any, place: str) -> Row:
    """One turn of ShareGPT's as a message; a message stays one."""
    if not isinstance(turn, Mapping):
        raise MessageError(f"{place}: a turn has `from` and `value`, unlike {str(turn)[:100]!r}")
    if turn.get("from") is None:
        return dict(turn)
    role = ROLES.get(str(turn["from"]).lower())
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


_SHAPES: Sequence[tuple[set[str], Callable[[Mapping[str, Any]], Row]]] = (
    ({"conversations"}, _sharegpt),
    ({"instruction", "output"}, _alpaca),
)
"""Keys that tell a shape -> how it is changed; the first that fits counts."""


def _pair(row: Mapping[str, Any]) -> Row:
    """A pair whose responses are what the assistant says last."""
    changed = dict(row)
    if isinstance(row.get("conversations"), list):
        changed["prompt"] = _messages(row)
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
