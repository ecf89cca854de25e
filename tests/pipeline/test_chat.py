"""Talking to a checkpoint: what it says, and what is said where it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.commands.chat import Conversation
from pipeline.prompts.templates import TemplateError
from pipeline.rollout.base import RolloutError, Sampling


def test_an_answer_comes_and_is_remembered(calculator: Path) -> None:
    conversation = Conversation(str(calculator), "plain", Sampling(max_tokens=12, temperature=0.0))
    assert "<answer> 3 </answer>" in "".join(conversation.ask("1 + 2 ="))
    assert [message["role"] for message in conversation.chat] == ["user", "assistant"]


def test_an_answer_may_be_as_long_as_the_context_leaves(calculator: Path) -> None:
    """A small model reads fewer tokens than an answer may have by default."""
    with pytest.raises(RolloutError, match="max_tokens is 1024, and the model's context has 64 tokens"):
        Conversation(str(calculator), "plain", Sampling(max_tokens=1024)).ask("1 + 2 =").__next__()
    conversation = Conversation(str(calculator), "plain", Sampling(max_tokens=1024, temperature=0.0), shorten=True)
    assert "<answer> 3 </answer>" in "".join(conversation.ask("1 + 2 ="))
    with pytest.raises(RolloutError, match="too long for the model's context of 64 tokens"):
        list(conversation.ask("1 + " * 100))


def test_a_failure_while_sampling_ends_the_answer(calculator: Path) -> None:
    conversation = Conversation(str(calculator), "plain", Sampling(max_tokens=12, temperature=1e-40))
    with pytest.raises(RuntimeError, match="probability"):
        list(conversation.ask("1 + 2 ="))


def test_a_model_without_a_chat_template_says_so(calculator: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(calculator, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    with pytest.raises(TemplateError, match="no chat template"):
        list(Conversation(str(folder), "plain", Sampling(max_tokens=4)).ask("1 + 2 ="))
