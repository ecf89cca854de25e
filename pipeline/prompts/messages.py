"""Chat messages, checked and brought into the one form that chat templates are written for.

    {"role": "assistant", "content": "4", "reasoning_content": "two and two", "weight": 1,
     "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]}

Files say the same in several ways: content as a text or as a list of parts, arguments of a tool call as a mapping or as
JSON text, an absent key as `null`. Templates do not: a list of parts is an error in one and a Python list as text in
another. What has no form that a template could take is refused; whether a template uses a key at all is asked in
`pipeline.prompts.rendering`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""`role`, `content` (a text), and whatever else the template may use."""

ASSISTANT = "assistant"
PLUMBING = frozenset({"tool_call_id"})
"""Keys that tie messages together for an API: a template that leaves them out loses nothing of what is said."""
_CALL_KEYS = {"function", "type", "id", "index"}


class MessageError(ValueError):
    """A message, or a chat, that cannot be taken as it is; the text begins with where in the row it stands."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat, and which turns of it are to be learnt.

    Attributes:
        messages: all messages in their normal form.
        learnt: positions of the assistant's messages that are trained on.
        tools: JSON schemas of the tools that the model may call.
        template_kwargs: arguments of the chat template that belong to this row alone.
        places: what each message is called in its row, such as `messages[2]`.
    """

    messages: list[Message]
    learnt: list[int]
    tools: list[dict[str, Any]] = field(default_factory=list)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    places: Sequence[str] = ()

    def place(self, at: int) -> str:
        """What a message is called in its row."""
        return self.places[at] if at < len(self.places) else f"messages[{at}]"


def conversation(row: Mapping[str, Any]) -> Conversation | None:
    """The chat of a training row: `messages`, or `prompt` and `completion`; `None` if the row holds none.

    Raises:
        MessageError: a message is not what it should be, or nothing is to be learnt.
    """
    parts = [(name, row.get(name)) for name in ("prompt", "completion")]
    if row.get("completion") is None:  # whole, also where a column `prompt` tells how it begins
        parts = [("messages", row.get("messages"))]
    if not all(isinstance(value, list) for _, value in parts):
        return None
    messages: list[Message] = []
    places: list[str] = []
    learnt: list[int] = []
    for name, value in parts:
        for number, raw in enumerate(value or ()):
            place = f"{name}[{number}]"
            message, learns = normal(raw, place)
            if name == "prompt" and raw.get("weight"):
                raise MessageError(f"{place}.weight is {raw['weight']}, but a prompt is not learnt: leave it out")
            if message["role"] == ASSISTANT and learns and name != "prompt":
                if not any(message.get(key) for key in message.keys() - {"role"}):
                    raise MessageError(f"{place}: the assistant says nothing; leave it out, or give it `weight: 0`")
                learnt.append(len(messages))
            messages.append(message)
            places.append(place)
    if not learnt:
        why = "" if all(message["role"] != ASSISTANT for message in messages) else " that is to be learnt"
        raise MessageError(f"a chat in which the assistant says nothing{why}")
    kwargs = row.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise MessageError(f"chat_template_kwargs is a mapping, not {kwargs!r}")
    return Conversation(messages, learnt, tool_schemas(row.get("tools")), kwargs, places)


def without(row: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """A row whose messages lack these keys."""
    if not keys:
        return row
    changed = dict(row)
    for name in ("messages", "prompt", "completion"):
        if isinstance(row.get(name), list):
            changed[name] = [
                {key: value for key, value in message.items() if key not in keys}
                if isinstance(message, Mapping)
                else message
                for message in row[name]
            ]
    return changed


def normal(raw: Any, place: str) -> tuple[Message, bool]:
    """A message in its normal form, and whether its `weight` lets it be learnt.

    Raises:
        MessageError: it has no form that a template could take.
    """
    if not isinstance(raw, Mapping):
        raise MessageError(f"{place}: a message has `role` and `content`, unlike {str(raw)[:100]!r}")
    message = {str(key): value for key, value in raw.items() if value is not None}
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise MessageError(f"{place}.role is a text such as 'user', not {role!r}")
    weight = _weight(message.pop("weight", None), role, place)
    calls = message.pop("tool_calls", [])
    if not isinstance(calls, list) or (calls and role != ASSISTANT):
        raise MessageError(f"{place}.tool_calls is a list, and the assistant's; this is the role {role!r}")
    if calls:
        message["tool_calls"] = [_call(call, f"{place}.tool_calls[{at}]") for at, call in enumerate(calls)]
    thought = message.get("reasoning_content")
    if thought is not None and (not isinstance(thought, str) or role != ASSISTANT):
        raise MessageError(f"{place}.reasoning_content is a text, and the assistant's; this is the role {role!r}")
    if "content" not in message and not calls and not thought:
        raise MessageError(f"{place}.content is missing, so the row is neither a chat nor a prompt with its completion")
    message["content"] = _text(message.get("content", ""), f"{place}.content")
    return message, weight


def tool_schemas(tools: Any) -> list[dict[str, Any]]:
    """The tools of a row: a list of JSON schemas, or that list as JSON text.

    Raises:
        MessageError: it is neither.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise MessageError(f"tools is neither a list nor JSON text: {error}") from error
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise MessageError(f"tools is a list of JSON schemas, not {str(tools)[:100]!r}")
    return tools


def _weight(weight: Any, role: str, place: str) -> bool:
    if weight is None:
        return True
    if weight not in (0, 1) or not isinstance(weight, int | float):
        raise MessageError(f"{place}.weight is 0 (not learnt) or 1, not {weight!r}")
    if weight and role != ASSISTANT:
        raise MessageError(
            f"{place}.weight is 1, but only what the assistant says is learnt; this is the role {role!r}"
        )
    return bool(weight)


def _text(content: Any, place: str) -> str:
    """Content as one text; a list of text parts is joined, as templates that know parts do it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MessageError(f"{place} is a text or a list of text parts, not {str(content)[:100]!r}")
    texts: list[str] = []
    for at, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping) or kind != "text":
            raise MessageError(
                f"{place}[{at}] is a part of type {kind!r}; models are trained on text: leave the row out"
            )
        elif not isinstance(part.get("text"), str):
            raise MessageError(f"{place}[{at}].text is a text, not {part.get('text')!r}")
        elif others := sorted(key for key in part.keys() - {"type", "text"} if part[key] is not None):
            raise MessageError(f"{place}[{at}] has {', '.join(others)}, which no template uses: leave it out")
        else:
            texts.append(part["text"])
    return "".join(texts)


def _call(call: Any, place: str) -> dict[str, Any]:
    """A tool call as `{type: function, function: {name, arguments}}`, its arguments as a mapping."""
    call = {key: value for key, value in call.items() if value is not None} if isinstance(call, Mapping) else {}
    flat = "function" not in call and "name" in call
    function = {key: call[key] for key in call.keys() - _CALL_KEYS} if flat else call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessageError(f"{place} is {{type: function, function: {{name, arguments}}}}, unlike {str(call)[:100]!r}")
    others = sorted({*(call.keys() - _CALL_KEYS if not flat else ()), *(function.keys() - {"name", "arguments"})})
    if others or call.get("type", "function") != "function":
        raise MessageError(f"{place}: no template uses {', '.join(others) or 'a type but `function`'}: leave it out")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise MessageError(f"{place}.function.arguments is not JSON: {error}") from error
    if not isinstance(arguments, Mapping):
        raise MessageError(
            f"{place}.function.arguments is a mapping, or one as JSON text, not {str(arguments)[:100]!r}"
        )
    kept = {key: call[key] for key in ("id",) if key in call}
    return {**kept, "type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
