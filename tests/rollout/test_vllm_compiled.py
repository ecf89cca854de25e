"""What vLLM compiles for a model is found again by the next model of its shape: for real, on a CPU as on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    # On a CPU they take three minutes: `ZERO2R1_COMPILE=1 sh scripts/test-vllm.sh tests/rollout/test_vllm_compiled.py`
    pytest.mark.skipif(
        not torch.cuda.is_available() and "ZERO2R1_COMPILE" not in os.environ, reason="compiling takes minutes on a CPU"
    ),
]

COMPILED = (".so", ".cpp", ".cubin")
"""What compilers write; a small record of a lookup may come on top at any start."""
GRAPHS = "model"
"""vLLM's file of a whole model's graphs, below its key."""
FOUND = ("Directly load AOT compilation from path", "Compiling model again due to a load failure from")
"""What vLLM says of graphs that it found; its CPU build of 0.32 cannot read them, and makes them of compiled parts."""
START = """
import json, sys, time
from pipeline.rollout import open_engine, preload
from pipeline.rollout.base import Sampling
from pipeline.schema.pieces import RolloutSpec

spec = RolloutSpec(engine="vllm", gpu_memory=0.1, engine_options={"dtype": "float32", "max_model_len": 64})
preload(spec)
before = time.monotonic()
engine = open_engine(spec, sys.argv[1], seed=0)
seconds = time.monotonic() - before
groups = engine.generate([[3, 4, 5]], Sampling(max_tokens=8, temperature=0))
engine.close()
print("TOLD", json.dumps({"seconds": seconds, "ids": groups[0][0].token_ids}))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Path], dict[str, Any]]:
    """Starts an engine in a process of its own, with a cache of this test, and compiles."""
    env = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    env |= {"ZERO2R1_CACHE": str(tmp_path / "cache"), "VLLM_CACHE_ROOT": str(tmp_path / "cache" / "vllm")}

    def started(model: Path) -> dict[str, Any]:
        done = subprocess.run([sys.executable, "-c", START, str(model)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        told = next(line for line in done.stdout.splitlines() if line.startswith("TOLD"))
        files = [path for path in (tmp_path / "cache" / "vllm").rglob("*") if path.is_file()]
        compiled = {str(path) for path in files if path.suffix in COMPILED or path.name == GRAPHS}
        keys = {*(tmp_path / "cache").glob("vllm/torch_compile_cache/*")}
        keys |= {*(tmp_path / "cache").glob("vllm/torch_compile_cache/torch_aot_compile/*")}
        return {
            **json.loads(told.removeprefix("TOLD")),
            "compiled": compiled,
            "keys": keys,
            "found": any(said in done.stdout + done.stderr for said in FOUND),
        }

    return started


@pytest.fixture
def shapes(tmp_path: Path) -> tuple[Path, Path]:
    """Two models of one shape and other weights; the config of the second is as training leaves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.data.vocabulary import VocabularySpec, build

    tokenizer = build(VocabularySpec(kind="words"), ["User: 1 + 2 =\nAssistant:\n<answer> 3 </answer><eos>"])
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    folders = tmp_path / "one", tmp_path / "two"
    for seed, folder in enumerate(folders):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=len(tokenizer), max_position_embeddings=64, use_cache=not seed, eos_token_id=0, **shape
            )
            LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def test_the_second_start_of_a_shape_compiles_nothing(
    start: Callable[[Path], dict[str, Any]], shapes: tuple[Path, Path]
) -> None:
    first, second = map(start, shapes)
    assert any(path.endswith(f"/{GRAPHS}") for path in first["compiled"]), "nothing was compiled, so nothing is shown"
    assert second["compiled"] == first["compiled"]
    assert (first["found"], second["found"]) == (False, True)
    assert first["ids"] != second["ids"]  # each with its own weights


def test_the_second_start_is_quicker_by_what_compiling_takes(
    start: Callable[[Path], dict[str, Any]], shapes: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (start(shape) for shape in (*shapes, shapes[0]))
    with capsys.disabled():
        print("seconds of a start:", [round(told["seconds"], 1) for told in (first, second, third)])
    assert first["keys"] and first["keys"] == second["keys"] == third["keys"]
    assert first["compiled"] == second["compiled"] == third["compiled"]
    assert max(second["seconds"], third["seconds"]) < first["seconds"]
    assert first["ids"] == third["ids"] != second["ids"]
