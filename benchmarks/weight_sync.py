"""How far vLLM and the trainer are apart over a GRPO run: |difference of log-probabilities| of sampled tokens, in nats.

    .venv/vllm-cpu/bin/python -m benchmarks.weight_sync --smoke --out benchmarks/results/weight-sync-cpu.json
    python -m benchmarks.weight_sync --model runs/v3-small/base/model --steps 20 --dtypes bfloat16 --out …   # on a GPU

The weights go to vLLM before every step, through its own reload. A fault in that shows as a difference that grows from
step to step; what is there at the first step is the rounding of two implementations, and, with experts, tokens whose
experts differ for it. `--smoke` compares a random DeepSeek-V3 (experts balanced by their bias) with a random Llama of
the same width, in float32 and with an engine in bfloat16 beside a trainer in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.sampling import installed
from pipeline.context import StageContext
from pipeline.stages.registry import config_class, run_function

METRIC = "sampling/sampling_logp_difference"
REWARD = "import zlib\ndef any(completion: str) -> float:\n    return float(zlib.crc32(completion.encode()) % 7)\n"
"""A reward that moves the weights and teaches nothing, so that sampling stays as it is."""
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}


def random_model(kind: str, folder: Path) -> None:
    """A model with random weights, large enough that its distributions are not flat, and a tokenizer for sums."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from model import V3Config, V3ForCausalLM
    from pipeline.data.vocabulary import VocabularySpec, build

    tokenizer = build(
        VocabularySpec(kind="words"), [f"User: {a} + {b} =\nAssistant:\n" for a in range(9) for b in "12"]
    )
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "initializer_range": 0.15, **ends, **SHAPE}
    torch.manual_seed(0)
    if kind == "llama":
        LlamaForCausalLM(LlamaConfig(**common)).save_pretrained(folder)
    else:
        heads = {"num_key_value_heads": 2, "q_lora_rank": 32, "kv_lora_rank": 32, "first_k_dense_replace": 1}
        dims = {"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "moe_intermediate_size": 32}
        gates = {"n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2}
        yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "mscale_all_dim": 1.0}
        config = V3Config(**common, **heads, **dims, **gates, rope_scaling={**yarn, "mscale": 1.0})
        V3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def config_of(model: str, steps: int, dtype: str, smoke: bool) -> dict[str, Any]:
    """The `grpo` stage that is run: short sums."""
    options = {"dtype": dtype, **({"enforce_eager": True, "max_model_len": 64} if smoke else {})}
    trainer = {"num_generations": 4, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    return {
        "kind": "grpo",
        "model": model,
        "tasks": [{"use": "jsonl", "options": {"path": "sums.jsonl"}, "template": "plain"}],
        "rewards": ["reward.py:any"],
        "rollout": {"engine": "vllm", "max_tokens": 16, "gpu_memory": 0.3, "engine_options": options},
        "trainer": {**trainer, "max_steps": steps, "learning_rate": 1e-3 if smoke else 1e-6, "beta": 0.0},
    }


def differences(model: str, steps: int, dtype: str, smoke: bool) -> dict[str, list[float]]:
    """Mean and largest difference at every step of a run in this very process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "reward.py").write_text(REWARD, encoding="utf-8")
        rows = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(9) for b in (1, 2)]
        (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
        for part in ("output", "scratch"):
            (folder / part).mkdir()
        config = config_class("grpo").model_validate(config_of(model, steps, dtype, smoke))
        paths = (folder / "output", folder / "scratch", folder)
        context: StageContext[Any] = StageContext("zero", config, {}, *paths, 0, folder / "events.jsonl")
        run_function("grpo")(context)
        lines = [json.loads(line) for line in context.events.read_text(encoding="utf-8").splitlines()]
    return {end: [line[f"{METRIC}/{end}"] for line in lines if f"{METRIC}/{end}" in line] for end in ("mean", "max")}


def main() -> None:
    """One run for each model and type of the engine; each in a process of its own, since vLLM stays in it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", help="a folder or hub id")
    parser.add_argument("--smoke", action="store_true", help="tiny random models on a CPU")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.smoke == (asked.model is not None):
        parser.error("either --model or --smoke")
    runs: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {asked.model: asked.model} if asked.model else {}
        for kind in ("llama", "deepseek-v3") if asked.smoke else ():
            models[kind] = str(Path(folder) / kind)
            random_model(kind, Path(models[kind]))
        for name, path in models.items():
            for dtype in asked.dtypes:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    found = pool.submit(differences, path, asked.steps, dtype, asked.smoke).result()
                runs[f"{name}, {dtype}"] = found
                first, last = fmean(found["mean"][:5]), fmean(found["mean"][-5:])
                print(f"{name}, {dtype}: {first:.2e} in the first five steps, {last:.2e} in the last five", flush=True)
    result = {
        "unit": "nats",
        "runs": runs,
        "settings": {"steps": asked.steps, "smoke": asked.smoke},
        "versions": installed(),
        "machine": platform.machine(),
        "command": shlex.join(["python", "-m", "benchmarks.weight_sync", *sys.argv[1:]]),
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
