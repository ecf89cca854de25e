"""What packing, dropping and reused log-probabilities give without a GPU: steps on recorded rollouts, against TRL.

    python -m benchmarks.grpo_replay --out benchmarks/results/grpo-cpu.json

Rollouts are random tokens of long-tailed length (log-normal, median 48, cut off at 512) in groups of 8, half of which
have no variance in their rewards; they come with a sampler's log-probabilities, as vLLM's do. A small random Llama
trains on them. Nothing is generated, so a step is what a trainer does after generation: old log-probabilities, forward,
backward, optimizer. All kinds take turns in one process, on one thread. Counted is the processor's time, and the
fastest of each kind's steps, because the machine may be busy with other things.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.grpo import versions
from benchmarks.grpo_clock import Clock, watch
from pipeline.schema.efficiency import STOCK, Efficiency
from pipeline.training.grpo.sampling import Sampled, Sampler

GROUP, PROMPTS, MICRO, ACCUMULATION = 8, 8, 16, 4
MEDIAN, SPREAD, LONGEST, PROMPT = 48, 1.0, 512, 40
"""Tokens: median and standard deviation of the logarithm of completions, the longest of them, a prompt."""
VOCABULARY, WIDTH, LAYERS = 2048, 128, 2
OFF = STOCK.model_copy(update={"tokens_per_pass": 2048})
KINDS: dict[str, Efficiency | None] = {
    "stock": None,
    "folded": OFF.model_copy(update={"reuse_logprobs": True}),
    "packed": OFF.model_copy(update={"packing": True}),
    "packed_dropped": OFF.model_copy(update={"packing": True, "drop_dead_groups": True}),
    "packed_dropped_reused": OFF.model_copy(update={"packing": True, "drop_dead_groups": True, "reuse_logprobs": True}),
}
"""Name -> switches; without any it is `trl.GRPOTrainer`."""


def rollouts(seed: int) -> Callable[[Sequence[Any], Any], dict[str, Any]]:
    """A rollout function as TRL takes it: the same rollouts for every trainer."""
    rng = random.Random(seed)

    def sample(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        lengths = [min(LONGEST, max(1, round(rng.lognormvariate(0, SPREAD) * MEDIAN))) for _ in prompts]
        asked = [[rng.randrange(4, VOCABULARY) for _ in range(PROMPT)] for _ in prompts[::GROUP]]
        return {
            "prompt_ids": [asked[row // GROUP] for row in range(len(prompts))],
            "completion_ids": [[*(rng.randrange(4, VOCABULARY) for _ in range(n - 1)), 1] for n in lengths],
            "logprobs": [[-8.3 + rng.gauss(0, 0.02) for _ in range(n)] for n in lengths],
        }

    return sample


def half_dead(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
    """A reward without variance in every second group."""
    return [float(len(ids) % 2) if row // GROUP % 2 else 1.0 for row, ids in enumerate(completion_ids)]


class Replayed(Sampler):
    """Recorded rollouts for our trainer.

    Args:
        trainer: a `GrpoTrainer`.
        recorded: a rollout function as TRL takes it.
        scored: whether it gives log-probabilities.
    """

    def __init__(self, trainer: Any, recorded: Callable[..., dict[str, Any]], scored: bool) -> None:
        super().__init__(trainer)
        self.recorded, self.scored = recorded, scored

    def extra(self, problems: list[Any]) -> Sampled:
        """See `Sampler`."""
        found = self.recorded([problem["prompt"] for problem in problems], self.trainer)
        logprobs = found["logprobs"]
        if logprobs is not None:
            logprobs = [[float("nan") if one is None else one for one in row] for row in logprobs]
        return Sampled(problems, found["prompt_ids"], found["completion_ids"], logprobs)


class Elsewhere:
    """Where vLLM would be for TRL: recorded rollouts need no weights."""

    def sync_weights(self) -> None:
        """Nothing to do."""


def trainer_of(efficiency: Efficiency | None, model: Path, steps: int) -> Any:
    """A trainer on recorded rollouts."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from pipeline.stages.grpo import DEFAULTS
    from pipeline.training.grpo.judging import Samples
    from pipeline.training.grpo.trainer import GrpoTrainer

    fields = {
        **DEFAULTS,
        "beta": 0.0,
        "num_generations": GROUP,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_completion_length": LONGEST,
        "max_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "shuffle_dataset": False,
        "output_dir": str(model),
    }
    arguments: dict[str, Any] = {
        "model": str(model),
        "reward_funcs": half_dead,
        "args": GRPOConfig(**fields),
        "train_dataset": Dataset.from_list([{"prompt": "x"}] * PROMPTS * steps),
        "processing_class": AutoTokenizer.from_pretrained(model, padding_side="left"),
    }
    if efficiency is None:
        trainer = GRPOTrainer(**arguments, rollout_func=rollouts(seed=0))
        trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Elsewhere(), 0
        return trainer
    samples = Samples(model / "samples.jsonl", 1, 0)
    replayed = lambda trainer: Replayed(trainer, rollouts(seed=0), scored=True)  # noqa: E731
    return GrpoTrainer(**arguments, samples=samples, efficiency=efficiency, sampler=replayed)


def build(folder: Path) -> None:
    """Save a small random Llama with a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.data.vocabulary import VocabularySpec
    from pipeline.data.vocabulary import build as vocabulary

    tokenizer = vocabulary(VocabularySpec(kind="words"), ["x"])
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2 * LONGEST}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape, **heads, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Seconds a step of every kind, and what they are against stock.

    Raises:
        RuntimeError: a kind did not train as stock did.
    """
    import torch

    from pipeline.training import setup

    setup.prepare()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        for _ in range(rounds):
            for kind, efficiency in KINDS.items():
                trainer, clock = trainer_of(efficiency, Path(name), steps), Clock(time.process_time)
                logs = watch(trainer, clock)
                trainer.train()
                seconds[kind] += [step["step"] for step in clock.steps]
                losses[kind] = [entry["grad_norm"] for entry in logs]
    for kind, norms in losses.items():
        if any(abs(ours / stock - 1) > 1e-3 for ours, stock in zip(norms, losses["stock"], strict=True)):
            raise RuntimeError(
                f"{kind} does not train as stock TRL does: gradient norms {norms}, not {losses['stock']}"
            )
    fastest = {kind: min(values) for kind, values in seconds.items()}
    return {
        "speedup": {kind: round(fastest["stock"] / value, 2) for kind, value in fastest.items()},
        "seconds_a_step": {kind: round(value, 3) for kind, value in fastest.items()},
        "gradient_norms": losses,
    }


def main() -> None:
    """Parse the command line, run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(options.steps, options.rounds)
    print(result["speedup"], result["seconds_a_step"])
    result |= {
        "settings": {
            "rollouts": f"{PROMPTS} x {GROUP}, micro-batches of {MICRO}, {ACCUMULATION} of them a step",
            "tokens": f"prompt {PROMPT}, completion median {MEDIAN}, longest {LONGEST}; half of the groups dead",
            "model": f"Llama, {LAYERS} layers of {WIDTH}, vocabulary {VOCABULARY}, float32",
        },
        "versions": versions(),
        "command": f"python -m benchmarks.grpo_replay --steps {options.steps} --rounds {options.rounds}",
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
