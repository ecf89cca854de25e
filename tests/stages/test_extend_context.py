"""Longer context: what the published model's config says, who can read it, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Outputs
from pipeline.stages.registry import config_class
from tests.stages.driving import Drive

LONG = """
from pipeline.data.corpus import Corpus

class Counting(Corpus):
    def documents(self, n, seed):
        for start in range(n):
            yield " ".join(str((start + step) % 5) for step in range(255))
"""
TRAINER = {"max_steps": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "logging_steps": 1}


def extension(model: str, context: int, **changes: Any) -> dict[str, Any]:
    corpus = {"use": "long.py:Counting", "documents": 12}
    stage = {"kind": "extend_context", "model": model, "context": context, "corpus": corpus, "trainer": TRAINER}
    return {**stage, **changes}


@pytest.fixture(scope="module")
def long(chain: Drive, base: Path) -> tuple[Path, Outputs]:
    """`@base`, which reads 128 tokens, extended to 256; `@long` in the chain."""
    (chain.folder / "long.py").write_text(LONG)  # type: ignore[attr-defined]
    return chain("long", extension("@base", 256, factor=8, trainer={**TRAINER, "model_init_kwargs": None}))


def test_two_stages_give_a_model_that_transformers_reads(
    chain: Drive, base: Path, long: tuple[Path, Outputs], caplog: pytest.LogCaptureFixture
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with caplog.at_level(logging.WARNING):
        out, outputs = chain("longer", extension("@long", 1024, factor=8, length=512))
    assert "the longest document has 256 tokens and the model reads 256 already" in caplog.text
    assert (outputs.metrics["context_before"], outputs.metrics["context"]) == (256, 1024)
    saved = json.loads((out / "model" / "config.json").read_text())
    assert saved["max_position_embeddings"] == 1024
    assert saved["rope_parameters"]["original_max_position_embeddings"] == 128
    assert saved["rope_parameters"]["factor"] == 8.0
    assert (saved["topk_method"], saved["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert saved["architectures"] == ["DeepseekV3ForCausalLM"]
    assert AutoTokenizer.from_pretrained(out / "model").model_max_length >= 1024
    model, before = (AutoModelForCausalLM.from_pretrained(path / "model") for path in (out, base))
    changed = [
        name
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True)
        if not new.equal(old)
    ]
    assert "model.embed_tokens.weight" in changed
    with torch.no_grad():
        assert model(torch.full((1, 900), 5)).logits.isfinite().all()


def test_the_last_step_says_what_the_first_could_not(long: tuple[Path, Outputs]) -> None:
    _, outputs = long
    assert outputs.metrics["steps"] == 3
    assert outputs.metrics["loss_last"] < outputs.metrics["loss_first"]
    assert outputs.metrics["longest"] == 256


def test_other_models_with_rotary_positions_are_extended_too(
    chain: Drive, long: tuple[Path, Outputs], calculator: Path
) -> None:
    out, _ = chain("longer-llama", extension(str(calculator), 256))
    saved = json.loads((out / "model" / "config.json").read_text())
    assert saved["rope_parameters"]["rope_type"] == "yarn"
    assert saved["rope_parameters"]["factor"] == 4.0
    assert "mscale_all_dim" not in saved["rope_parameters"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 128}, "reads 128 tokens already"),
        ({"context": 64}, "reads 128 tokens already"),
        ({"context": 512, "factor": 2}, "factor 2 reaches 256 tokens"),
    ],
)
def test_what_extends_nothing_is_refused_before_training(
    chain: Drive, long: tuple[Path, Outputs], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        chain(f"refused-{changes['context']}", {**extension("@base", 256), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 512}, "rows of length=512 exceed the context of 256 tokens"),
        ({"factor": 1}, "greater than 1"),
        ({"corpus": []}, "at least 1 item"),
    ],
)
def test_nonsense_is_refused_when_the_recipe_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class("extend_context").model_validate(extension("@base", 256, **changes))
