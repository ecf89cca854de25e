"""Decoding with a long context: one token a step, ours (absorbed) against transformers' DeepseekV3 (expanded).

    OMP_NUM_THREADS=1 python -m benchmarks.decode --rounds 3 --out benchmarks/results/decode.json
    python -m benchmarks.decode --device cuda --shape v3 --dtypes bfloat16 --out benchmarks/results/decode-h200.json

Both models have the same weights and the same cache; the cache is filled with latents rather than by a prefill, which
takes as long in both. Rounds alternate between the two, and medians are compared, so that whatever else the machine
does meets both. The step is the whole model's: attention, dense feed-forward layers, head.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache

from model import V3Config, V3ForCausalLM

SHAPES: dict[str, dict[str, int]] = {
    "mid": {"hidden_size": 1024, "num_attention_heads": 8, "kv_lora_rank": 256, "q_lora_rank": 512},
    "v3": {"hidden_size": 7168, "num_attention_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536},
}
"""Both with DeepSeek-V3's heads: 128 + 64 dimensions for queries and keys, 128 for values."""
LAYERS = {"mid": 1, "v3": 4}
CONTEXTS, BATCHES = (2048, 16384), (1, 8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def models(shape: str, layers: int, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Ours and transformers' with the same weights; all layers dense, because experts are not what is measured."""
    size = SHAPES[shape]
    fields: dict[str, Any] = {
        **size,
        "num_key_value_heads": size["num_attention_heads"],
        "intermediate_size": 2 * size["hidden_size"],
        "num_hidden_layers": layers,
        "first_k_dense_replace": layers,
        "num_mtp_layers": 0,
        "vocab_size": 1024,
        "max_position_embeddings": max(CONTEXTS) + 1024,
    }
    torch.manual_seed(0)
    with torch.device(device):
        ours = V3ForCausalLM(V3Config(**fields)).to(dtype).eval()
        theirs = DeepseekV3ForCausalLM(DeepseekV3Config(**fields)).to(dtype).eval()
    theirs.load_state_dict(ours.state_dict())
    return {"absorbed": ours, "transformers": theirs}


def filled(model: Any, context: int, batch: int) -> DynamicCache:
    """A cache as after a prefill, with random latents."""
    config, cache = model.config, DynamicCache()
    generator = torch.Generator(model.device).manual_seed(1)
    for layer in range(config.num_hidden_layers):
        latent, key = (
            torch.randn(batch, 1, context, width, generator=generator, device=model.device, dtype=model.dtype)
            for width in (config.kv_lora_rank, config.qk_rope_head_dim)
        )
        cache.update(latent, key, layer)
    return cache


def seconds(model: Any, cache: DynamicCache, token: torch.Tensor) -> tuple[float, torch.Tensor]:
    """One step behind the cache, which is left as it was."""
    sync = torch.cuda.synchronize if token.device.type == "cuda" else (lambda: None)
    sync()
    started = time.perf_counter()
    logits = model(token, past_key_values=cache).logits
    sync()
    taken = time.perf_counter() - started
    cache.crop(-1)
    return taken, logits


def measure(pair: dict[str, Any], context: int, batch: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds a step of both, their ratio, and how far apart their logits are."""
    token = torch.ones(batch, 1, dtype=torch.long, device=pair["absorbed"].device)
    cache = filled(pair["absorbed"], context, batch)
    taken: dict[str, list[float]] = {name: [] for name in pair}
    logits: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, model in pair.items():
                one, logits[name] = seconds(model, cache, token)
                taken[name].append(one)
    milliseconds = {name: 1000 * statistics.median(values[1:]) for name, values in taken.items()}
    apart = (logits["absorbed"].float() - logits["transformers"].float()).abs().max().item()
    return {
        "context": context,
        "batch": batch,
        **{f"{name}_ms": round(value, 2) for name, value in milliseconds.items()},
        "ratio": round(milliseconds["transformers"] / milliseconds["absorbed"], 2),
        "logits_apart": float(f"{apart:.1e}"),
    }


def cache_numbers(config: Any) -> dict[str, Any]:
    """Numbers kept per token and layer, against full keys and values of as many heads (multi-head attention)."""
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    heads = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    return {"latent": latent, "multi_head": heads, "saved": round(1 - latent / heads, 4)}


def main() -> None:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mid")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    layers = options.layers or LAYERS[options.shape]
    steps: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        pair = models(options.shape, layers, DTYPES[dtype], options.device)
        for context in CONTEXTS:
            for batch in BATCHES:
                steps.append({"dtype": dtype, **measure(pair, context, batch, options.rounds)})
                print(steps[-1], flush=True)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU {platform.machine()}"
    result = {
        "device": where,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "shape": {**SHAPES[options.shape], "layers": layers},
        "cache_per_token_and_layer": {
            "this shape": cache_numbers(pair["absorbed"].config),
            "DeepSeek-V3": cache_numbers(DeepseekV3Config()),
        },
        "steps": steps,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
