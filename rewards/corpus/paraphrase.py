r"""Other ways to write the answers of the corpus: same label, another dress.

    python -m rewards.corpus.paraphrase --per-pair 3 --seed 0 > paraphrases.jsonl

Every rewrite changes only what carries no meaning: fraction styles, stretched brackets, spaces, Unicode signs, dollar
signs, and how the completion presents its final answer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

from rewards.corpus import Pair, load

_PAIRED = re.compile(r"^\((.*)\)$", re.DOTALL)

REWRITES: tuple[Callable[[str], str], ...] = (
    lambda text: text.replace(r"\frac{", r"\dfrac{"),
    lambda text: text.replace(r"\frac{", r"\tfrac{"),
    lambda text: text.replace(r"\sqrt{", r"\sqrt {"),
    lambda text: text.replace(r"\cdot", r"\times"),
    lambda text: text.replace(r"\infty", "∞"),
    lambda text: text.replace(r"\le ", "≤ ").replace(r"\ge ", "≥ "),
    lambda text: text.replace(r"\cup", r"\,\cup\,"),
    lambda text: text.replace(r"\text{", r"\mbox{"),
    lambda text: _PAIRED.sub(r"\\left(\1\\right)", text),
    lambda text: f" {text} ",
    lambda text: rf"\displaystyle {text}",
    lambda text: f"{{{text}}}",
    lambda text: f"${text}$" if "$" not in text else text,
    lambda text: text.replace("-", "−") if not re.search(r"[a-zA-Z]-[a-zA-Z]", text) else text,
)
"""Rewrites of the answer itself."""

PRESENTATIONS: tuple[str, ...] = (
    r"We get $\boxed{%s}$.",
    r"Therefore the answer is \[\boxed{%s}\]",
    "<think>Let me see. It could be 0.</think>\nSo it is $\\boxed{%s}$, as required.",
    "<think>1 + 1 = 2</think><answer>%s</answer>",
    "<think>\\boxed{123456}</think>\n<answer> \\boxed{%s} </answer>",
    r"**Answer**" + "\n\n" + r"\boxed{%s}",
    r"$$\fbox{%s}$$",
)
"""Ways to present a final answer."""


def paraphrases(pair: Pair, count: int, rng: random.Random) -> Iterator[Pair]:
    """Up to `count` other spellings of one pair; none if the pair is about the whole completion."""
    if pair.answer is None or pair.family == "injection":
        return
    seen = {pair.completion}
    for _ in range(4 * count):
        answer = pair.answer
        for rewrite in rng.sample(REWRITES, k=rng.randint(0, 2)):
            answer = rewrite(answer)
        completion = rng.choice(PRESENTATIONS) % (answer,)
        if completion not in seen:
            seen.add(completion)
            yield replace(pair, completion=completion, answer=answer)
        if len(seen) > count:
            return


def generate(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Paraphrases of a corpus, the same ones for the same seed."""
    rng = random.Random(seed)
    return [paraphrase for pair in pairs for paraphrase in paraphrases(pair, count, rng)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write paraphrases of the mathematics corpus to standard output, as JSON lines."""
    parser = argparse.ArgumentParser(description="Paraphrase the corpus of labelled answers.")
    parser.add_argument("--per-pair", type=int, default=3, help="paraphrases of each pair")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for pair in generate(load(), options.per_pair, options.seed):
        sys.stdout.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
