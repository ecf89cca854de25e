"""Tiny real models for the tests of rewards that need one: a few words, a few thousand parameters, seconds to train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from pipeline.data.vocabulary import VocabularySpec, build


def tokenizer(words: str, chat_template: str = "chatml") -> Any:
    """A tokenizer that knows these words."""
    return build(VocabularySpec(kind="words", chat_template=chat_template), [words])


def config(tokenizer: Any, **fields: Any) -> LlamaConfig:
    """A small Llama for this tokenizer."""
    shape: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.05,
    }
    return LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **{**shape, **fields},
    )


def save(folder: Path, words: str) -> Any:
    """A language model that knows nothing, and its tokenizer, which is returned."""
    set_seed(0)
    made = tokenizer(words)
    LlamaForCausalLM(config(made)).save_pretrained(folder)
    made.save_pretrained(folder)
    return made


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, with their mask."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask_BT = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return ids_BT, mask_BT
