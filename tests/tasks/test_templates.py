"""Prompt and chat templates: what a model sees, and what the loss on the assistant's tokens covers."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import is_chat_template_prefix_preserving, is_chat_template_stop_token_trained

from pipeline.prompts.templates import CHATS, PROMPTS, TemplateError, encode, prompt_template, render, set_chat_template

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>a pair twice</think>\n4"},
    {"role": "user", "content": "Sure?"},
]


def tokenizer(*special: str, bos: bool = False) -> Any:
    """A byte-level tokenizer with these special tokens."""
    tokens = ["<eos>", "<bos>", *special]
    vocabulary = {token: number for number, token in enumerate([*tokens, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(tokens)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>")


@pytest.fixture(params=sorted(CHATS))
def templated(request: pytest.FixtureRequest) -> Any:
    made = tokenizer(*CHATS[request.param].needs)
    set_chat_template(made, request.param)
    return made


def test_the_loss_covers_what_the_assistant_says_and_the_end_of_its_turn(templated: Any) -> None:
    assert is_chat_template_stop_token_trained(templated)
    assert is_chat_template_prefix_preserving(templated)
    encoded = templated.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    learnt = [token for token, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    assert templated.decode(learnt) == CHAT[2]["content"] + templated.eos_token


def test_what_is_generated_from_is_the_beginning_of_what_is_trained_on(templated: Any) -> None:
    for turns in (1, 2, 4):
        (prompt,) = render(templated, [CHAT[:turns]])
        whole = templated.apply_chat_template([*CHAT[:turns], {"role": "assistant", "content": "5"}], tokenize=False)
        assert whole.startswith(prompt + "5" + templated.eos_token)
        (ids,) = encode(templated, [prompt])
        assert ids == templated.apply_chat_template(CHAT[:turns], add_generation_prompt=True)["input_ids"]
    assert render(templated, [CHAT[:2]], prefill="<think>")[0].endswith("<think>")


def test_a_tokenizer_that_begins_with_a_token_of_its_own_keeps_doing_so() -> None:
    for bos in (True, False):
        made = tokenizer(bos=bos)
        set_chat_template(made, "r1_zero")
        assert encode(made, render(made, [CHAT[:2]]))[0].count(made.bos_token_id) == int(bos)


def test_a_template_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"needs the tokens \['<\|im_start\|>', '<\|im_end\|>'\]"):
        set_chat_template(tokenizer(), "chatml")
    with pytest.raises(TemplateError, match="chatml"):
        set_chat_template(tokenizer(), "chatlm")
    with pytest.raises(TemplateError, match="as is usual for base models"):
        render(tokenizer(), [CHAT])
    without = tokenizer()
    without.eos_token = None
    with pytest.raises(TemplateError, match="there is none"):
        set_chat_template(without, "r1_zero")


def test_every_prompt_template_asks_the_question_once() -> None:
    question = r"Is {question} = {0} or \boxed{2}?"
    for name in PROMPTS:
        chat = prompt_template(name)(question)
        assert chat[-1]["role"] == "user"
        assert sum(message["content"].count(question) for message in chat) == 1
    assert prompt_template("Q: {question}\nA:")("1?") == [{"role": "user", "content": "Q: 1?\nA:"}]
    with pytest.raises(TemplateError, match="r1_zero"):
        prompt_template("r1zero")
