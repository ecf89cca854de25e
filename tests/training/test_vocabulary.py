"""Tokenizers made from a corpus: what goes in comes out, and tags stay visible."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.vocabulary import VocabularySpec, build

CORPUS = ["the cat sat on the mat", "User: the dog Assistant: <think> cat </think> <answer> mat </answer>"] * 20


@pytest.fixture(scope="module")
def words() -> Any:
    return build(VocabularySpec(kind="words"), CORPUS)


@pytest.fixture(scope="module")
def bpe() -> Any:
    return build(VocabularySpec(kind="bpe", size=300), CORPUS)


def test_words_come_back(words: Any) -> None:
    for text in CORPUS:
        assert words.decode(words(text).input_ids) == text
    assert words.decode(words("the bird").input_ids) == "the <unk>"


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_bpe_can_write_anything(bpe: Any, text: str) -> None:
    ids = bpe(text, add_special_tokens=False).input_ids
    assert bpe.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_tags_are_single_tokens_and_survive_decoding_without_special_tokens(kind: str, request: Any) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids = tokenizer("<think> cat </think>").input_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("<think>") != tokenizer.unk_token_id
    shown = tokenizer.decode([*ids, tokenizer.eos_token_id, tokenizer.pad_token_id], skip_special_tokens=True)
    assert shown == "<think> cat </think>"


def test_a_size_keeps_the_most_frequent_words() -> None:
    tokenizer = build(VocabularySpec(kind="words", size=9, tokens=["<think>", "</think>"]), CORPUS)
    assert len(tokenizer) == 9
    assert tokenizer("the").input_ids != [tokenizer.unk_token_id]
    assert tokenizer("dog").input_ids == [tokenizer.unk_token_id]


def test_what_a_chat_template_needs_is_there() -> None:
    tokenizer = build(VocabularySpec(kind="words", chat_template="chatml"), CORPUS)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") != tokenizer.unk_token_id


@pytest.mark.parametrize(
    ("spec", "message"),
    [({"kind": "words", "size": 5}, "no room for words"), ({"kind": "bpe", "size": 100}, "needs 26. entries or more")],
)
def test_an_impossible_size_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(VocabularySpec(**spec), CORPUS)
