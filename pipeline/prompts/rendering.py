"""How a prompt, a prefill, a thought and an answer join: the one place, for training, sampling, rewards and evaluation.

    renderer = Renderer(tokenizer)
    (prompt,) = renderer.prompts([[{"role": "user", "content": "2 + 2?"}]])
    prompt.text     "<｜User｜>2 + 2?<｜Assistant｜><think>\\n"
    prompt.begun    "<think>\\n": what the assistant is made to begin with, by its template or by `prefill`
    renderer.turns(conversation)     [(prompt, what the assistant says and the model learns), …]

What the assistant says is the chat template's own text of its message, from the point where sampling would have begun,
up to and with the token that ends its turn. Templates differ in what they do with a thought:

    the template …                                     and the message has a thought   and it has none
    opens `<think>` in the prompt (DeepSeek-R1)        the thought goes on there       an empty thought is closed first
    leaves thoughts out of messages (DeepSeek-R1)      it is put before the answer     -
    writes thoughts, and empty ones too (Qwen3)        as the template writes it       as the template writes it
    knows nothing of thoughts (Qwen2.5)                as it stands in `content`       -

A model's tokenizer carries `chat_template_kwargs` and `prefill` along, so that a model is sampled from with the prompts
that it was trained on, unless a stage says otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError as JinjaError

from pipeline.prompts.messages import ASSISTANT, PLUMBING, Conversation, Message, MessageError
from pipeline.prompts.templates import PROMPTING, Chat, TemplateError, chat_text
from rewards.text import THINK_CLOSE, THINK_OPEN

EMPTY_THOUGHT = f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n"
"""A thought that says nothing, as Qwen3 and DeepSeek write it."""
RESERVED = frozenset(
    {"tokenize", "add_generation_prompt", "continue_final_message", "tools", "documents", "conversation"}
)
"""Arguments of `apply_chat_template` that are not the template's to read, or set elsewhere."""
FAULTS = (JinjaError, TypeError, ValueError, AttributeError, LookupError)
"""What a template raises about messages that it cannot take."""
_BEGUN = re.compile(rf"{THINK_OPEN}\s*(?:{THINK_CLOSE}\s*)?\Z")
"""A thought that a template opens at the end of a prompt, or opens and closes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        head: the chat template's text up to where the assistant's turn begins.
        begun: what the assistant is made to begin with: a thought that the template opens, the stage's `prefill`.
    """

    head: str
    begun: str

    @property
    def text(self) -> str:
        """All of it, as the model sees it."""
        return self.head + self.begun


class Renderer:
    """Text for a model, by its tokenizer's chat template.

    Args:
        tokenizer: with a chat template.
        template_kwargs: arguments of the template, such as `{enable_thinking: false}`; those that the model carries
            along if not given.
        prefill: text that every answer is made to begin with; the one that the model carries along if not given.
        ends: texts of further tokens at which the model stops; the tokenizer's own counts always.

    Raises:
        TemplateError: there is no chat template, or it does not know one of the arguments.
    """

    def __init__(
        self,
        tokenizer: Any,
        template_kwargs: Mapping[str, Any] | None = None,
        prefill: str | None = None,
        ends: Sequence[str] = (),
    ) -> None:
        carried = carried_along(tokenizer)
        self.tokenizer = tokenizer
        self.template_kwargs = dict(carried["chat_template_kwargs"] if template_kwargs is None else template_kwargs)
        self.prefill: str = carried["prefill"] if prefill is None else prefill
        self.ends = tuple(dict.fromkeys([*([tokenizer.eos_token] if tokenizer.eos_token else []), *ends]))
        check_kwargs(tokenizer, self.template_kwargs)
        self._sound: set[Any] = set()
        self._specials = sorted({str(token) for token in tokenizer.get_added_vocab()}, key=len, reverse=True)

    def prompts(self, chats: Sequence[Chat]) -> list[Prompt]:
        """The prompt of each chat: everything up to where the assistant goes on.

        Raises:
            TemplateError: the template cannot take a chat or leaves out a message of it, or the tokenizer has none.
        """
        prompts = [self._prompt(chat, (), {}) for chat in chats]
        for chat in chats:
            try:
                self._check_used(Conversation(chat, []), self.template_kwargs)
            except MessageError as error:
                raise TemplateError(f"a prompt: {error}") from error
        return prompts

    def carry(self) -> None:
        """Let the tokenizer, and so the model that is saved with it, carry along how it is prompted."""
        self.tokenizer.init_kwargs.pop(PROMPTING, None)
        if self.told:
            self.tokenizer.init_kwargs[PROMPTING] = self.told

    @property
    def told(self) -> dict[str, Any]:
        """How the model is prompted beyond what the template does by itself; empty if it is not."""
        told = {"chat_template_kwargs": self.template_kwargs, "prefill": self.prefill}
        return {name: value for name, value in told.items() if value}

    def guide(self, trainer: Any) -> None:
        """Let a trainer of TRL, which tokenises prompts itself, make the prompts of this renderer."""
        trainer.chat_template_kwargs = dict(self.template_kwargs)
        if self.prefill:
            # "+" and no "-": whitespace before the block is the template's own; a newline at its end is never rendered
            template = self.tokenizer.get_chat_template().removesuffix("\n")
            trainer.chat_template = template + "{%+ if add_generation_prompt %}{{ _prefill }}{% endif %}"
            trainer.chat_template_kwargs["_prefill"] = self.prefill

    def turns(self, chat: Conversation) -> list[tuple[str, str]]:
        """(prompt, what the assistant says) for every turn of a chat that is to be learnt.

        Raises:
            MessageError: the template does not use a message, a key of one, or the tools; or a turn has no text that
                could follow its prompt.
        """
        kwargs = {**self.template_kwargs, **chat.template_kwargs}
        try:
            check_kwargs(self.tokenizer, chat.template_kwargs)
            self._check_used(chat, kwargs)
            return [self._turn(chat, at, kwargs) for at in chat.learnt]
        except TemplateError as error:
            raise MessageError(str(error)) from error

    def _prompt(self, chat: Sequence[Message], tools: Sequence[dict[str, Any]], kwargs: Mapping[str, Any]) -> Prompt:
        text = self._text(chat, tools, {**self.template_kwargs, **kwargs}, ask=True)
        begun = match[0] if (match := _BEGUN.search(text)) else ""
        return Prompt(text.removesuffix(begun), begun + self.prefill)

    def _turn(self, chat: Conversation, at: int, kwargs: Mapping[str, Any]) -> tuple[str, str]:
        place, before = chat.place(at), chat.messages[:at]
        message, thought, answer = _split(chat.messages[at], self.tokenizer.eos_token or "", place)
        prompt = self._prompt(before, chat.tools, kwargs)
        whole = self._text([*before, message], chat.tools, kwargs)
        calls = "tool_calls" in message
        if whole.startswith(prompt.head):
            body = self._ended(whole[len(prompt.head) :], message["content"])
        elif calls:
            raise MessageError(f"{place}: the chat template changes what stands before a tool call")
        else:
            body = self._ended(answer, answer)
        if thought is not None and self._left_out(message, thought, body):
            body = _thought_of(message, answer, thought) + (body.lstrip("\n") if calls else self._ended(answer, answer))
        said = _continued(prompt.begun, body, thought is not None)
        if said is None:
            raise MessageError(
                f"{place}: the prompt makes the assistant begin with {prompt.begun!r}, and what the row lets it say"
                f" does not: {body[:60]!r}. Change the row, `prefill` or `chat_template_kwargs`"
            )
        return prompt.text, said

    def _left_out(self, message: Message, thought: str, body: str) -> bool:
        """Whether the template's text of a message lacks its thought."""
        if "reasoning_content" in message and not self.knows_thoughts:
            return False  # the template was found to use the key, in its own way
        return thought.strip() not in body.rpartition(THINK_CLOSE)[0] or THINK_CLOSE not in body

    @property
    def knows_thoughts(self) -> bool:
        """Whether the chat template treats `</think>` in some way, for example by leaving thoughts out."""
        return THINK_CLOSE in template_text(self.tokenizer)

    def _ended(self, body: str, content: str) -> str:
        """The assistant's text with the token that ends its turn, and without what a template puts behind that."""
        text = body.rstrip()
        if not text.endswith(self.ends):
            foreign = next((token for token in self._specials if text.endswith(token)), "")
            if foreign and not content.rstrip().endswith(foreign):
                text = text.removesuffix(foreign)
            elif body.strip() == content.strip():
                text = content
            return text + (self.tokenizer.eos_token or "")
        return text

    def _text(
        self, chat: Sequence[Message], tools: Sequence[dict[str, Any]], kwargs: Mapping[str, Any], ask: bool = False
    ) -> str:
        """What the template makes of a chat; arguments of tool calls go in as mappings, or as JSON text."""
        try:
            text = chat_text(self.tokenizer, chat, tools, ask, kwargs)
        except FAULTS as error:
            if isinstance(error, TemplateError) or (other := _with_text_arguments(chat)) is None:
                raise _refused(error) from error
            try:
                return chat_text(self.tokenizer, other, tools, ask, kwargs)
            except FAULTS as again:
                raise _refused(again) from again
        given = [call["function"]["arguments"] for message in chat for call in message.get("tool_calls", ())]
        if any(arguments and str(arguments) in text for arguments in given):  # Python's text of a mapping
            return chat_text(self.tokenizer, _with_text_arguments(chat) or chat, tools, ask, kwargs)
        return text

    def _check_used(self, chat: Conversation, kwargs: Mapping[str, Any]) -> None:
        """Make sure that the template uses every message and every key: without it, the text has to be another.

        Chats of one form are asked about once.
        """
        form = tuple(
            (
                m["role"],
                *(key for key in m if m[key]),
                THINK_CLOSE in m["content"],
                _names_a_call(chat.messages[:at], m),
            )
            for at, m in enumerate(chat.messages)
        )
        if (form, bool(chat.tools)) in self._sound:
            return
        if chat.tools and self._text(chat.messages, chat.tools, kwargs) == self._text(chat.messages, (), kwargs):
            raise MessageError(f"tools: the chat template does not render them: {_WAY_OUT}")
        following = len(chat.messages)
        for at in reversed(range(len(chat.messages))):
            message = chat.messages[at]
            following = at if message["role"] == ASSISTANT else following
            view = chat.messages[: at + 1 if message["role"] == ASSISTANT else following]
            for key in (key for key in message if message[key] and key != "role" and key not in PLUMBING):
                if key == "name" and _names_a_call(chat.messages[:at], message):
                    continue
                if not self._thought_is_joined(message, key) and self._ignores(view, at, key, chat.tools, kwargs):
                    raise MessageError(_unused(chat.place(at), message, key))
        self._sound.add((form, bool(chat.tools)))

    def _thought_is_joined(self, message: Message, key: str) -> bool:
        """Whether `_turn` puts in what a template leaves out of a message."""
        if message["role"] != ASSISTANT or not self.knows_thoughts:
            return False
        return key == "reasoning_content" or (key == "content" and THINK_CLOSE in message["content"])

    def _ignores(
        self, view: Sequence[Message], at: int, key: str, tools: Sequence[dict[str, Any]], kwargs: Mapping[str, Any]
    ) -> bool:
        ask = view[at]["role"] != ASSISTANT
        without = {name: value for name, value in view[at].items() if name != key}
        without.setdefault("content", "")
        whole = self._text(view, tools, kwargs, ask)
        try:
            return self._text([*view[:at], without, *view[at + 1 :]], tools, kwargs, ask) == whole
        except TemplateError:  # the template insists on the key
            return False


def template_text(tokenizer: Any) -> str:
    """The chat template of a tokenizer, or its several ones; empty if there is none."""
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else "\n".join(map(str, template.values()))


def check_kwargs(tokenizer: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments of a chat template that it does not read.

    Raises:
        TemplateError: names the argument.
    """
    template = template_text(tokenizer)
    for name in kwargs:
        if name in RESERVED:
            raise TemplateError(
                f"chat_template_kwargs: {name!r} is not an argument of the template; it is set elsewhere"
            )
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise TemplateError(
                f"chat_template_kwargs: {name!r} has no effect: the model's chat template never reads it"
            )


def carried_along(tokenizer: Any) -> dict[str, Any]:
    """How a model's tokenizer says that the model is prompted: `chat_template_kwargs` and `prefill`."""
    told = tokenizer.init_kwargs.get(PROMPTING)
    told = told if isinstance(told, Mapping) else {}
    kwargs, prefill = told.get("chat_template_kwargs"), told.get("prefill")
    return {
        "chat_template_kwargs": dict(kwargs) if isinstance(kwargs, Mapping) else {},
        "prefill": prefill if isinstance(prefill, str) else "",
    }


_WAY_OUT = "leave it out of the rows (`ignore:` beside `from:`), or give the model a chat template that uses it"


def _names_a_call(before: Sequence[Message], message: Message) -> bool:
    """Whether a message is the result of a tool that was called before by the same name."""
    if message["role"] == ASSISTANT or "name" not in message:
        return False
    return any(call["function"]["name"] == message["name"] for one in before for call in one.get("tool_calls", ()))


def _unused(place: str, message: Message, key: str) -> str:
    role = message["role"]
    if key == "content":
        beside = " beside tool calls" if "tool_calls" in message else ""
        return f"{place}: the chat template does not render the content of the role {role!r}{beside}"
    hint = ""
    if key == "reasoning_content":
        hint = f"; or write it into `content`, between {THINK_OPEN} and {THINK_CLOSE}"
    return f"{place}.{key}: the chat template does not use it in a message of the role {role!r}: {_WAY_OUT}{hint}"


def left_open(content: str) -> bool:
    """Whether an assistant's text begins with a thought that is never closed, so that nothing could learn from it."""
    return content.lstrip().startswith(THINK_OPEN) and THINK_CLOSE not in content


def _split(message: Message, eos: str, place: str) -> tuple[Message, str | None, str]:
    """A message with its thought opened and its end taken off, the thought, and the answer behind it."""
    content = message["content"].removesuffix(eos)
    thought: str | None = message.get("reasoning_content") or None
    head, closed, answer = content.rpartition(THINK_CLOSE)
    if left_open(content):
        raise MessageError(f"{place}: the thought is never closed: the model would learn to stop within it")
    if closed and thought is not None:
        raise MessageError(f"{place}: there is a thought in `content` and one in `reasoning_content`: leave one out")
    if closed and THINK_OPEN not in head:  # sampled behind a prompt that had opened it
        content, head = f"{THINK_OPEN}\n{content}", f"{THINK_OPEN}\n{head}"
    if closed:
        thought = head.partition(THINK_OPEN)[2]
    return {**message, "content": content}, thought, answer if closed else content


def _thought_of(message: Message, answer: str, thought: str) -> str:
    """The thought as the row has it, or in the usual form where the row has it apart."""
    if "reasoning_content" in message:
        return f"{THINK_OPEN}\n{thought.strip()}\n{THINK_CLOSE}\n\n"
    content: str = message["content"]
    return content[: len(content) - len(answer)]


def _continued(begun: str, body: str, thinks: bool) -> str | None:
    """What of the assistant's text is left to say behind what the prompt makes it begin with; `None` if it differs."""
    if body.startswith(begun):
        return body[len(begun) :]
    opened = begun.rstrip() == THINK_OPEN
    if opened and body.lstrip().startswith(THINK_OPEN):
        return body.lstrip().removeprefix(THINK_OPEN).removeprefix(begun[len(THINK_OPEN) :])
    if opened and not thinks:
        return (EMPTY_THOUGHT.removeprefix(begun) if EMPTY_THOUGHT.startswith(begun) else f"{THINK_CLOSE}\n\n") + body
    if _BEGUN.fullmatch(begun) and not opened and not thinks:
        return body
    return None


def _refused(error: Exception) -> TemplateError:
    if isinstance(error, TemplateError):
        return error
    return TemplateError(f"the chat template cannot take this chat ({type(error).__name__}): {error}")


def _with_text_arguments(chat: Sequence[Message]) -> list[Message] | None:
    """A chat in which arguments of tool calls are JSON text; `None` if it has none."""
    if not any("tool_calls" in message for message in chat):
        return None

    def as_text(call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

    return [
        {**message, "tool_calls": [as_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in chat
    ]
