"""Prompt templates (a question becomes a chat) and chat templates (a chat becomes text).

A *prompt template* is what a task, a stage or a recipe names. With `r1_zero` the question "What is 6 * 7?" becomes

    [{"role": "system", "content": "Below, a user asks a question and an assistant answers it. …"},
     {"role": "user", "content": "What is 6 * 7?"}]

A *chat template* is the Jinja text inside a tokenizer. Base models have none; with `r1_zero` the chat above becomes

    Below, a user asks a question and an assistant answers it. …

    User: What is 6 * 7?
    Assistant:

and the model goes on in a new line. Generation marks surround exactly what the assistant says, its end-of-sequence
token included, so that a loss on the assistant's tokens alone also teaches where to stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from pipeline.files.source import brief
from rewards.registry import nearest
from rewards.text import unknown_slots

Chat = list[dict[str, Any]]
"""Messages, each with `role` and `content`."""

QUESTION = "{question}"
PROMPTING = "prompting"
"""Key of `tokenizer_config.json` under which a model carries how it is prompted; see `pipeline.prompts.rendering`."""


class TemplateError(ValueError):
    """A template that does not exist, or does not fit the tokenizer."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How a question becomes a chat: an optional system message, and the user's message around the question."""

    user: str = QUESTION
    system: str = ""

    def __call__(self, question: str) -> Chat:
        """The chat that ends with the user's turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user.replace(QUESTION, question)}]


PROMPTS: Mapping[str, PromptTemplate] = {
    "plain": PromptTemplate(),
    "boxed": PromptTemplate(
        QUESTION + "\n\nReason step by step, and put the final answer, and nothing else, in \\boxed{}."
    ),
    "r1_zero": PromptTemplate(
        system=(
            "Below, a user asks a question and an assistant answers it. The assistant first thinks the matter through, "
            "between <think> and </think>, and only then gives the answer, between <answer> and </answer>:\n"
            "<think>the thoughts</think>\n<answer>the answer</answer>"
        )
    ),
    "r1": PromptTemplate(
        QUESTION + "\n\nThink first, between <think> and </think>. Then say briefly how the problem is solved, "
        "and put the final answer in \\boxed{}."
    ),
}
"""Prompt templates by name. `r1_zero` says what R1-Zero's template says (R1, arXiv 2501.12948, table 1), in other
words: the shape, and nothing about content."""


def prompt_template(name: str) -> PromptTemplate:
    """A prompt template by name; a text that contains `{question}` is a template itself.

    Raises:
        TemplateError: there is no template of that name; the message names the nearest one. Or the text has a
            placeholder that nothing fills in.
    """
    if fault := unknown_slots(name, [QUESTION.strip("{}")]):
        raise TemplateError(f"the prompt template {brief(repr(name))} {fault}")
    if QUESTION in name:
        return PromptTemplate(name)
    if name not in PROMPTS:
        raise TemplateError(
            f"there is no prompt template {name!r}{nearest(name, PROMPTS)}. Known: {', '.join(sorted(PROMPTS))}; "
            f"a text that contains {QUESTION} is a template of your own."
        )
    return PROMPTS[name]


_R1_ZERO = """\
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- 'User: ' + message['content'] + '\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Assistant:\\n' }}
        {%- generation %}
            {%- if message['reasoning_content'] %}
                {{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
            {%- endif %}
            {{- message['content'] + eos_token }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:\\n' }}{%- endif %}"""

_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {%- if message['reasoning_content'] %}
                {{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
            {%- endif %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

_R1 = """\
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] }}
    {%- elif message['role'] == 'user' %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<｜Assistant｜>' }}
        {%- generation %}
            {%- if message['reasoning_content'] %}
                {{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
            {%- endif %}
            {{- message['content'] + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}"""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template for tokenizers that have none.

    Attributes:
        jinja: the template, with generation marks around what the assistant says.
        end_of_turn: token that ends the assistant's turn; the tokenizer's end-of-sequence token if empty.
        needs: tokens that the vocabulary must hold.
    """

    jinja: str
    end_of_turn: str = ""
    needs: tuple[str, ...] = ()


CHATS: Mapping[str, ChatTemplate] = {
    "r1_zero": ChatTemplate(_R1_ZERO),
    "chatml": ChatTemplate(_CHATML, end_of_turn="<|im_end|>", needs=("<|im_start|>", "<|im_end|>")),
    "r1": ChatTemplate(_R1, needs=("<｜User｜>", "<｜Assistant｜>")),
}
"""Chat templates by name. `r1_zero` needs no special tokens; `r1` is the form of DeepSeek's own tokenizers."""


def chat_template(name: str) -> ChatTemplate:
    """A chat template by name.

    Raises:
        TemplateError: there is no template of that name; the message names the nearest one.
    """
    if name not in CHATS:
        raise TemplateError(
            f"there is no chat template {name!r}{nearest(name, CHATS)}. Known: {', '.join(sorted(CHATS))}; "
            "a Jinja file is named where a model is imported."
        )
    return CHATS[name]


def _known(name: str) -> str:
    chat_template(name)
    return name


ChatTemplateName = Annotated[str, AfterValidator(_known)]
"""The name of a chat template in a recipe."""


JINJA_NAMES = (
    *("messages", "tools", "documents", "add_generation_prompt"),
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "raise_exception", "strftime_now"),
)
"""What `transformers` gives to every chat template."""
_MAY_BE_MISSING = {"defined", "undefined", "none"}
"""Tests of Jinja that ask whether a name is there."""


def check_jinja(path: Path, given: Iterable[str] = ()) -> None:
    """Make sure that a file holds a chat template, and asks for nothing that it will not get.

    Args:
        path: the file.
        given: what it gets beside `JINJA_NAMES`: `chat_template_kwargs`.

    Raises:
        TemplateError: it cannot be read, is not Jinja as `transformers` understands it, or prints a name that nothing
            defines, which Jinja would leave out without a word; the message names the line.
    """
    from jinja2 import Environment, TemplateSyntaxError, meta, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser

    class Generation(Extension):
        """The marks around what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Environment(extensions=[Generation, loopcontrols])
    try:
        source = path.read_text(encoding="utf-8")
        environment.compile(source)
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"cannot read {path}: {error}") from error
    except TemplateSyntaxError as error:
        raise TemplateError(f"{path}:{error.lineno} is not a Jinja template: {error.message}") from error
    tree, known = environment.parse(source), sorted({*JINJA_NAMES, *given})
    tested = [test.node for test in tree.find_all(nodes.Test) if test.name in _MAY_BE_MISSING]
    tested += [one.node for one in tree.find_all(nodes.Filter) if one.name in ("default", "d") and one.node is not None]
    unknown = meta.find_undeclared_variables(tree) - {*known, *environment.globals}
    unknown -= {node.name for node in tested if isinstance(node, nodes.Name)}
    for node in tree.find_all(nodes.Name):
        if node.name in unknown:
            raise TemplateError(
                f"{path}:{node.lineno} asks for {node.name!r}, which nothing defines{nearest(node.name, known)}. "
                f"Known: {', '.join(known)}; others are given by chat_template_kwargs, or tested with 'is defined'"
            )


def set_chat_template(tokenizer: Any, name: str) -> None:
    """Give a tokenizer a chat template of ours, with everything that has to agree with it.

    A beginning-of-sequence token is put in front where the tokenizer itself puts one (chats are tokenised without
    special tokens); the end-of-sequence token becomes the one that ends the assistant's turn.

    Raises:
        TemplateError: no such template, or the vocabulary lacks a token that it needs.
    """
    template = chat_template(name)
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in template.needs if token not in vocabulary]:
        raise TemplateError(f"chat template {name!r} needs the tokens {missing}, which this tokenizer lacks")
    if template.end_of_turn:
        tokenizer.eos_token = template.end_of_turn
    if tokenizer.eos_token is None:
        raise TemplateError(f"chat template {name!r} ends a turn with the end-of-sequence token; there is none")
    tokenizer.init_kwargs.pop(PROMPTING, None)  # it was meant for the earlier template
    tokenizer.chat_template = ("{{- bos_token }}" if start_ids(tokenizer) else "") + template.jinja


def start_ids(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text that is no chat: its beginning-of-sequence token, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("").input_ids[:1] == [bos] else []


def chat_text(
    tokenizer: Any,
    chat: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    ask: bool = False,
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """What a tokenizer's chat template makes of a chat; how that joins with the rest is `pipeline.prompts.rendering`'s.

    Args:
        tokenizer: with a chat template.
        chat: messages.
        tools: JSON schemas of tools.
        ask: whether to end where the assistant goes on.
        kwargs: arguments of the template.

    Raises:
        TemplateError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise TemplateError(
            "the model's tokenizer has no chat template, as is usual for base models: "
            f"give it one with `chat_template:` ({', '.join(sorted(CHATS))})"
        )
    given = {**(kwargs or {}), **({"tools": list(tools)} if tools else {})}
    return str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=ask, **given))


def render(tokenizer: Any, chats: Sequence[Chat], prefill: str = "") -> list[str]:
    """The text of each chat up to where the assistant goes on, followed by `prefill`.

    Raises:
        TemplateError: the tokenizer has no chat template.
    """
    return [chat_text(tokenizer, chat, ask=True) + prefill for chat in chats]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered chats; special tokens are in the text already, so none are added."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids] if texts else []
