"""Tokenizers made from a corpus: whole words for toy languages, byte-pair encoding for everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.prompts.templates import CHATS, ChatTemplateName, set_chat_template
from pipeline.schema.strict import Strict

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


class VocabularySpec(Strict):
    """A tokenizer to be made from the corpus.

    Attributes:
        kind: `words`: every word between spaces is a token, and a word that the corpus lacks is unknown;
            `bpe`: byte-level byte-pair encoding, which can write any text.
        size: entries in the vocabulary, special tokens included; with `words` all words if not given.
        chat_template: its chat template, by name (see `pipeline.prompts.templates`).
        tokens: further tokens that are never split, such as `<think>`; they stay visible in decoded text.
    """

    kind: Literal["words", "bpe"]
    size: Annotated[int, Field(gt=0)] | None = None
    chat_template: ChatTemplateName = "r1_zero"
    tokens: list[str] = Field(default_factory=lambda: ["<think>", "</think>", "<answer>", "</answer>"])

    @model_validator(mode="after")
    def _sized(self) -> VocabularySpec:
        if self.kind == "bpe" and self.size is None:
            raise ValueError("a bpe vocabulary needs a size")
        return self


def build(spec: VocabularySpec, texts: Iterable[str]) -> Any:
    """A fast tokenizer with padding, end-of-sequence, special tokens and chat template.

    Args:
        spec: what to build.
        texts: the corpus.

    Raises:
        ValueError: the size leaves no room for a single word or byte.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    special = [PAD, EOS, UNKNOWN, *CHATS[spec.chat_template].needs]
    visible = [token for token in dict.fromkeys(spec.tokens) if token not in special]
    make = _words if spec.kind == "words" else _bpe
    backend = make(texts, special, visible, None if spec.size is None else spec.size - len(special) - len(visible))
    backend.add_tokens([AddedToken(token, normalized=False) for token in visible])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    set_chat_template(tokenizer, spec.chat_template)
    return tokenizer


def _words(texts: Iterable[str], special: list[str], visible: list[str], room: int | None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    counts = Counter(word for text in texts for word in text.split())
    ordinary = sorted((word for word in counts if word not in {*special, *visible}), key=lambda w: (-counts[w], w))
    if room is not None and room < 1:
        raise ValueError("the vocabulary has no room for words beside its special tokens")
    vocabulary = {word: number for number, word in enumerate([*special, *ordinary[:room]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _bpe(texts: Iterable[str], special: list[str], visible: list[str], room: int | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if room is None or room < len(alphabet):
        raise ValueError(f"a bpe vocabulary needs {len(special) + len(visible) + len(alphabet)} entries or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=room + len(special), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
