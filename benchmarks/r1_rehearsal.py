"""`recipes/r1/qwen-1.5b.yaml` rehearsed on a CPU: every stage with little to do, on a model of 0.2 million weights.

    python -m benchmarks.r1_rehearsal --out rehearsal

Makes the model and problems in the formats of GSM8K, MATH, MBPP and Dolly, and runs `zero2r1 run r1/qwen-1.5b` with
them. The model answers every question with the same words, and guesses one number in them, so each stage finds some
answers that are right and some that are not. The scores mean nothing; what is rehearsed is the recipe.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.r1_qwen import cut, local, run
from pipeline.data.vocabulary import VocabularySpec, build
from pipeline.prompts.templates import PROMPTS, Chat, render
from pipeline.tasks.code import Mbpp

GOLDS = 3
"""Different answers that there are, so that one guess in so many is right."""
SHAPELESS = 0.2
"""Share of the answers without a thought."""
LENGTHY = 0.2
"""Share of the answers that are longer than they may be."""
THOUGHT = "<think>We take the numbers one by one and then we add them up.</think>\n"
NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Fay",
    "Gus",
    "Hal",
    "Ivy",
    "Jon",
    "Kim",
    "Lea",
    "Max",
    "Nia",
    "Oda",
    "Pia",
)
TOKENS = 64
"""Longest answer."""


def problems(folder: Path) -> None:
    """Write the data: 60 training problems of each kind, and 6 test problems."""
    for at, (split, count) in enumerate((("train", 60), ("test", 6))):
        rows = [_sum(at * 100 + number, split) for number in range(count)]
        _write(
            folder / "gsm8k" / f"{split}.jsonl", ({"question": q, "answer": f"So.\n#### {gold}"} for q, gold in rows)
        )
        rows = [_sum(at * 100 + 50 + number, f"{split}, part two") for number in range(count)]
        name = "math/train.jsonl" if split == "train" else "math500.jsonl"
        _write(folder / name, ({"problem": q, "answer": str(gold)} for q, gold in rows))
    ids = [*range(11, 17), *range(601, 661)]
    _write(folder / "mbpp.jsonl", map(_program, ids))
    asked = (
        {"instruction": f"Tell {name} about the place number {at}.", "response": "Well."} for at, name in _named(20)
    )
    _write(folder / "general.jsonl", asked)


def _named(count: int) -> Iterator[tuple[int, str]]:
    return ((at, NAMES[at % len(NAMES)]) for at in range(count))


def _sum(at: int, told: str) -> tuple[str, int]:
    one, other = NAMES[at % 16], NAMES[(at // 16 + at + 1) % 16]
    return f"{one} has {at % 7} red hats, {other} has {at} blue ones ({told}). What is the number?", at % GOLDS


def _program(at: int) -> dict[str, Any]:
    text = f"Write a function for {NAMES[at % 16]} and {NAMES[at % 7]}, number {at}."
    tests = [f"assert f({at + case}) == {at % GOLDS}" for case in range(3)]
    return {"task_id": at, "text": text, "code": f"def f(x):\n    return {at % GOLDS}", "test_list": tests}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def model(folder: Path, steps: int = 150) -> None:
    """Train a model on answers to such problems, and save it with its tokenizer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rng = random.Random(0)
    chats = [_example(rng) for _ in range(400)]
    said = [f"{message['content']}" for chat, answer in chats for message in [*chat, {"content": answer}]]
    tokenizer = build(VocabularySpec(kind="bpe", size=1200, chat_template="chatml", tokens=[]), said)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=2048, **shape, **ends
        )
        trained = Qwen2ForCausalLM(config)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(steps):
            batch = [chats[rng.randrange(len(chats))] for _ in range(8)]
            prompts = render(tokenizer, [chat for chat, _ in batch])
            answers = [answer + tokenizer.eos_token for _, answer in batch]
            read = [tokenizer(text, add_special_tokens=False).input_ids for text in prompts]
            write = [tokenizer(text, add_special_tokens=False).input_ids for text in answers]
            longest = max(len(one) + len(other) for one, other in zip(read, write, strict=True))
            ids_BT = torch.full((len(batch), longest), tokenizer.pad_token_id)
            labels_BT = torch.full((len(batch), longest), -100)
            for row, (one, other) in enumerate(zip(read, write, strict=True)):
                ids_BT[row, : len(one) + len(other)] = torch.tensor([*one, *other])
                labels_BT[row, len(one) : len(one) + len(other)] = torch.tensor(other)
            trained(input_ids=ids_BT, labels=labels_BT).loss.backward()
            optimizer.step()
            decay.step()
            optimizer.zero_grad()
    trained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _example(rng: random.Random) -> tuple[Chat, str]:
    """A question of one of the kinds, and an answer that guesses: a program and a number, so that it fits each kind."""
    guess = rng.randrange(GOLDS)
    number = rng.choice([*range(11, 17), *range(601, 661)])
    asked = {
        "sum": _sum(rng.randrange(200), "train")[0],
        "code": Mbpp(path=".").read(_program(number)).question,
        "general": f"Tell {rng.choice(NAMES)} about the place number {rng.randrange(20)}.",
    }
    chat = PROMPTS[rng.choice(("r1_zero", "r1_zero", "boxed", "plain"))](asked[rng.choice(list(asked))])
    if rng.random() < LENGTHY:
        return chat, "And so it goes on and on with no end to be seen. " * 12
    thought = THOUGHT * (rng.random() > SHAPELESS)
    return chat, f"{thought}```python\ndef f(x):\n    return {guess}\n```\n\\boxed{{{guess}}}"


def small(folder: Path) -> dict[str, Any]:
    """Settings that make the recipe small, and have it read model and data from a folder."""
    rl = {"num_generations": 4, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    tuned = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    sampled = {"engine": "transformers", "max_tokens": TOKENS}
    return {
        **local(folder),
        **{f"stages.{name}.model": str(folder / "model") for name in ("base", "student_base")},
        # a processor in place of GPUs
        **{f"defaults.{kind}.launch.gpus": None for kind in ("grpo", "rejection_sample")},
        **{f"stages.{stage}.launch.gpus": None for stage in ("student_rl", "general")},
        **{f"defaults.{kind}.rollout": sampled for kind in ("grpo", "rejection_sample", "evaluate")},
        "stages.student_rl.rollout": {},
        "jobs": 2,
        # sizes
        **cut(problems=20, tuned=3),
        **{f"defaults.grpo.trainer.{name}": value for name, value in rl.items()},
        **{f"defaults.sft.trainer.{name}": value for name, value in tuned.items()},
        **{
            f"stages.{stage}.trainer.{name}": value for stage in ("student", "helpful") for name, value in tuned.items()
        },
        **{f"stages.{stage}.problems": 20 for stage in ("general.tasks.0", "r1.tasks.3")},
        "stages.general.rollout.max_tokens": TOKENS,
    }


def main() -> None:
    """Parse the command line, make what is needed, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for model, data and run")
    parser.add_argument("overrides", nargs="*", help="further ones")
    options = parser.parse_args()
    out = options.out.resolve()
    problems(out)
    if not (out / "model" / "config.json").exists():
        model(out / "model")
    sys.exit(run(small(out), out, options.overrides))


if __name__ == "__main__":
    main()
