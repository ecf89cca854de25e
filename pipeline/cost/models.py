"""Shapes of models on the hub, so that a recipe can be planned before anything is downloaded.

The fields are those of their config.json. A model that is not here is read from the hub's cache, or from a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.cost.config import from_config
from pipeline.cost.shape import Shape

_Row = tuple[int, int, int, int, int, int, bool]
"""hidden, layers, intermediate, heads, key-value heads, vocabulary, whether embedding and head are tied."""

_QWEN25: Mapping[str, _Row] = {
    "0.5B": (896, 24, 4864, 14, 2, 151_936, True),
    "1.5B": (1536, 28, 8960, 12, 2, 151_936, True),
    "3B": (2048, 36, 11_008, 16, 2, 151_936, True),
    "7B": (3584, 28, 18_944, 28, 4, 152_064, False),
    "14B": (5120, 48, 13_824, 40, 8, 152_064, False),
    "32B": (5120, 64, 27_648, 40, 8, 152_064, False),
    "72B": (8192, 80, 29_568, 64, 8, 152_064, False),
}
_QWEN3: Mapping[str, _Row] = {
    "0.6B": (1024, 28, 3072, 16, 8, 151_936, True),
    "1.7B": (2048, 28, 6144, 16, 8, 151_936, True),
    "4B": (2560, 36, 9728, 32, 8, 151_936, True),
    "8B": (4096, 36, 12_288, 32, 8, 151_936, False),
    "14B": (5120, 40, 17_408, 40, 8, 151_936, False),
    "32B": (5120, 64, 25_600, 64, 8, 151_936, False),
}
_LLAMA: Mapping[str, _Row] = {
    "Llama-3.2-1B": (2048, 16, 8192, 32, 8, 128_256, True),
    "Llama-3.2-3B": (3072, 28, 8192, 24, 8, 128_256, True),
    "Llama-3.1-8B": (4096, 32, 14_336, 32, 8, 128_256, False),
    "Meta-Llama-3-8B": (4096, 32, 14_336, 32, 8, 128_256, False),
    "Llama-3.1-70B": (8192, 80, 28_672, 64, 8, 128_256, False),
    "Llama-3.3-70B": (8192, 80, 28_672, 64, 8, 128_256, False),
    "Llama-3.1-405B": (16_384, 126, 53_248, 128, 8, 128_256, False),
}
_SMOLLM2: Mapping[str, _Row] = {
    "135M": (576, 30, 1536, 9, 3, 49_152, True),
    "360M": (960, 32, 2560, 15, 5, 49_152, True),
    "1.7B": (2048, 24, 8192, 32, 32, 49_152, True),
}
_MISTRAL_7B: _Row = (4096, 32, 14_336, 32, 8, 32_768, False)
_DEEPSEEK_67B: _Row = (8192, 95, 22_016, 64, 8, 102_400, False)


def _config(kind: str, row: _Row, context: int, **more: Any) -> dict[str, Any]:
    hidden, layers, intermediate, heads, kv_heads, vocabulary, tied = row
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": context,
        **more,
    }


def _configs() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for size, row in _QWEN25.items():
        for family, context in (("Qwen2.5", 131_072 if size != "0.5B" else 32_768), ("Qwen2.5-Coder", 32_768)):
            found[f"Qwen/{family}-{size}"] = _config("qwen2", row, context)
        if size in ("1.5B", "7B", "72B"):
            found[f"Qwen/Qwen2.5-Math-{size}"] = _config("qwen2", row, 4096)
        if size in ("1.5B", "7B", "14B", "32B"):
            untied = (*row[:6], False) if size == "1.5B" else row
            found[f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}"] = _config("qwen2", untied, 131_072)
    for size, row in _QWEN3.items():
        found[f"Qwen/Qwen3-{size}"] = _config("qwen3", row, 40_960, head_dim=128)
    sparse = {"num_experts": 128, "num_experts_per_tok": 8, "head_dim": 128}
    small, large = (2048, 48, 6144, 32, 4, 151_936, False), (4096, 94, 12_288, 64, 4, 151_936, False)
    found["Qwen/Qwen3-30B-A3B"] = _config("qwen3_moe", small, 40_960, moe_intermediate_size=768, **sparse)
    found["Qwen/Qwen3-235B-A22B"] = _config("qwen3_moe", large, 40_960, moe_intermediate_size=1536, **sparse)
    for name, row in _LLAMA.items():
        more = {"head_dim": 128} if name.endswith("3B") else {}
        found[f"meta-llama/{name}"] = _config("llama", row, 8192 if "Meta" in name else 131_072, **more)
    found["deepseek-ai/DeepSeek-R1-Distill-Llama-8B"] = _config("llama", _LLAMA["Llama-3.1-8B"], 131_072)
    found["deepseek-ai/DeepSeek-R1-Distill-Llama-70B"] = _config("llama", _LLAMA["Llama-3.3-70B"], 131_072)
    found["deepseek-ai/deepseek-llm-67b-base"] = _config("llama", _DEEPSEEK_67B, 4096)
    found["mistralai/Mistral-7B-v0.3"] = _config("mistral", _MISTRAL_7B, 32_768)
    for size, row in _SMOLLM2.items():
        found[f"HuggingFaceTB/SmolLM2-{size}"] = _config("llama", row, 8192)
    return found


_CONFIGS = _configs()
_TUNED = ("-Instruct", "-Base", "-Chat", "-it", "-Instruct-v0.3")
"""What names of models of the same shape end with."""
_VOCABULARIES = {"v3-671b": 129_280, "v3-16b": 163_840, "v2-236b": 102_400, "v2-lite": 102_400}
"""Published vocabularies of the presets under configs/model/ that are published models."""
PRESETS: Mapping[str, str] = {
    "deepseek-ai/DeepSeek-V3": "v3-671b",
    "deepseek-ai/DeepSeek-V3-0324": "v3-671b",
    "deepseek-ai/DeepSeek-V3.1": "v3-671b",
    "deepseek-ai/DeepSeek-R1": "v3-671b",
    "deepseek-ai/DeepSeek-R1-Zero": "v3-671b",
    "deepseek-ai/DeepSeek-R1-0528": "v3-671b",
    "deepseek-ai/DeepSeek-V2": "v2-236b",
    "deepseek-ai/DeepSeek-V2-Lite": "v2-lite",
    "moonshotai/Moonlight-16B-A3B": "v3-16b",
}
"""Models on the hub that a preset describes."""


def names() -> list[str]:
    """Every model whose shape is known."""
    return sorted((*_CONFIGS, *PRESETS))


def config(name: str) -> dict[str, Any] | None:
    """What a model's config.json says of its shape, also of its instruction-tuned form; `None` if it is not known."""
    return next((dict(_CONFIGS[found]) for found in _names(name) if found in _CONFIGS), None)


def known(name: str) -> Shape | None:
    """The shape of a model on the hub, also of its instruction-tuned form; `None` if it is not known here."""
    for candidate in _names(name):
        if candidate in _CONFIGS:
            return from_config(_CONFIGS[candidate])
        if candidate in PRESETS:
            return preset(PRESETS[candidate])
    return None


def _names(name: str) -> tuple[str, str]:
    """A name, and that of the model which it was tuned from."""
    return name, next((name.removesuffix(end) for end in _TUNED if name.endswith(end)), name)


def preset(name: str | Mapping[str, Any], vocabulary: int | None = None) -> Shape:
    """The shape of a preset under configs/model/, or of a mapping of its fields.

    Args:
        name: see `model.presets.load`.
        vocabulary: its rows; the published model's if not given.

    Raises:
        ValueError: there is no such preset, or its vocabulary is not known.
    """
    from model import presets

    shape = presets.load(name)
    base = name if isinstance(name, str) else str(name.get("preset", ""))
    size = vocabulary or _VOCABULARIES.get(base)
    if size is None:
        raise ValueError(f"the preset {base or 'given'} says nothing of its vocabulary, which comes from a corpus")
    kind = "deepseek_v3" if shape.topk_method == presets.V3_METHOD else "deepseek_v2"
    return from_config({**presets.fields(shape), "vocab_size": size, "model_type": kind})
