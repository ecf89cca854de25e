"""Which mathematical verifiers pay wrong answers, and which refuse right ones: the corpus, judged by all of them.

    python -m benchmarks.verifiers                       # ours, math-verify, TRL
    pip install --no-deps --target peers verl lm_eval    # optional: further peers, from their wheels as they are
    python -m benchmarks.verifiers --peers peers
    python -m benchmarks.verifiers speed --data train.jsonl           # golds of MATH: ours beside math-verify, in turns
    python -m benchmarks.verifiers speed                              # the same on golds of olympiads

Every verifier gets the same completions and golds, each in the form that its own documentation asks for, in killable
processes, since some of them evaluate what the model wrote. A verifier that raises or passes its deadline has refused.
This command makes the table in `docs/results/rewards.md`; `benchmarks/results/verifiers.json` has counts by family.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards import Item
from rewards.corpus import Pair, boxed, load
from rewards.corpus.paraphrase import REWRITES, generate
from rewards.math import MathVerifier, gold_text
from rewards.pool import Fate, Pool

RESULTS = Path(__file__).parent / "results"
PEERS = "ZERO2R1_PEERS"  # the environment tells the pool's processes where the unpacked wheels are
DEADLINE_S = 20.0
ROUND = 50
"""Comparisons that one judge makes before it is the other's turn."""


def math_verify(completion: str, gold: str) -> bool:
    """math-verify, default configuration, gold in a box."""
    from rewards.peers import math_verify as judge

    return judge(completion, gold)


def trl_raw(completion: str, gold: str) -> bool:
    """TRL's accuracy_reward, with the gold as data sets have it."""
    from trl.rewards import accuracy_reward

    logging.disable(logging.WARNING)
    return accuracy_reward([[{"role": "assistant", "content": completion}]], [gold])[0] == 1.0


def trl_dollars(completion: str, gold: str) -> bool:
    """TRL's accuracy_reward, with the gold in dollar signs."""
    return trl_raw(completion, f"${gold}$")


def verl_math(completion: str, gold: str) -> bool:
    """verl's math_reward, the string comparison of the MATH authors."""
    return _file("verl/utils/reward_score/math_reward.py").compute_score(completion, gold) == 1.0


def verl_dapo(completion: str, gold: str) -> bool:
    """verl's math_dapo with strict boxes."""
    return bool(_file("verl/utils/reward_score/math_dapo.py").compute_score(completion, gold, True)["acc"])


def lm_eval_math(completion: str, gold: str) -> bool:
    """lm-evaluation-harness: hendrycks_math's is_equiv on the last box."""
    module = _file("lm_eval/tasks/hendrycks_math/utils.py")
    box = module.last_boxed_only_string(completion)
    return box is not None and bool(module.is_equiv(module.remove_boxed(box), gold))


def _file(name: str) -> ModuleType:
    """One file of an unpacked wheel, without the package around it and what that imports."""
    path = Path(os.environ[PEERS]) / name
    package = f"peer_{path.parent.name}_{path.stem}"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, path)
        assert spec is not None and spec.loader is not None
        sys.modules[package] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[package]


VERIFIERS: dict[str, Callable[[str, str], bool]] = {
    "math-verify 0.9, gold boxed": math_verify,
    "TRL accuracy_reward, raw gold": trl_raw,
    "TRL accuracy_reward, gold in $": trl_dollars,
}
FROM_WHEELS: dict[str, Callable[[str, str], bool]] = {
    "verl math_reward": verl_math,
    "verl math_dapo, strict box": verl_dapo,
    "lm-eval hendrycks_math": lm_eval_math,
}


def ours(pairs: Sequence[Pair]) -> list[bool]:
    """The reward `math` as it is by default."""
    verifier = MathVerifier()
    try:
        return [v.score == 1.0 for v in verifier.verify([Item(pair.completion, pair.gold) for pair in pairs])]
    finally:
        verifier.close()


def peer(judge: Callable[[str, str], bool], pairs: Sequence[Pair]) -> list[bool] | None:
    """Another verifier's judgements; what raises or hangs is a refusal. `None` if it always raises: not installed."""
    with_pool = Pool(f"{Path(__file__).resolve()}:{judge.__name__}", deadline_s=DEADLINE_S, rss_mib=4096)
    try:
        outcomes = with_pool.map([(pair.completion, gold_text(pair.gold)) for pair in pairs])
    finally:
        with_pool.close()
    failed = [outcome.detail for outcome in outcomes if outcome.fate is not Fate.DONE]
    if failed:
        logging.info("%s: %d of %d failed, first: %s", judge.__name__, len(failed), len(pairs), failed[0])
    if len(failed) == len(pairs):
        return None
    return [outcome.fate is Fate.DONE and bool(outcome.value) for outcome in outcomes]


def count(pairs: Sequence[Pair], judged: Sequence[bool]) -> dict[str, Any]:
    """False accepts and false refusals, in all and by family."""
    accepts = [pair.family for pair, yes in zip(pairs, judged, strict=True) if yes and not pair.equal]
    refusals = [pair.family for pair, yes in zip(pairs, judged, strict=True) if not yes and pair.equal]
    families = {name: [accepts.count(name), refusals.count(name)] for name in sorted({*accepts, *refusals})}
    return {"false_accepts": len(accepts), "false_refusals": len(refusals), "by_family": families}


def speed(data: Path | None, golds: int) -> dict[str, Any]:
    """Comparisons a second of ours and of math-verify, in turns: each gold with itself in another notation, where there
    is one, and with the next gold as answers.

    Without data the golds are `OLYMPIAD`, in the style of competitions: formulas with variables, sums, sets, intervals.
    Every round has pairs that were not judged before. Both run in this process, and ours with its pool; `cpu_times` is
    the ratio of CPU time in this process, which what else the machine does changes less.
    """
    if data is not None:
        found = dict.fromkeys(gold_text(str(json.loads(line)["answer"])) for line in data.read_text().splitlines())
        chosen = [gold for gold in found if gold][:golds]
    else:
        chosen = list(OLYMPIAD)
    rng = random.Random(0)
    dressed = [rng.choice(REWRITES)(gold) for gold in chosen]
    answers = [*zip(chosen, dressed, strict=True), *zip(chosen, [*chosen[1:], chosen[0]], strict=True)]
    items = [Item(boxed(answer), gold) for gold, answer in answers]
    verifier = MathVerifier()
    verifier.verify([Item(boxed("1"), r"\lim_{x \to 0} \frac{\sin x}{x}")])  # the pool and its libraries are warm
    math_verify(boxed("1"), "1")
    seconds, cpu, paid = ({"ours": zero, "math-verify": zero} for zero in (0.0, 0.0, 0))
    for start in range(0, len(items), ROUND):
        batch = items[start : start + ROUND]
        for name in seconds:
            started, started_cpu = time.perf_counter(), time.process_time()
            if name == "ours":
                paid[name] += sum(verdict.score == 1.0 for verdict in verifier.verify(batch))
            else:
                paid[name] += sum(math_verify(item.completion, item.answer) for item in batch)
            seconds[name] += time.perf_counter() - started
            cpu[name] += time.process_time() - started_cpu
    verifier.close()
    return {
        "comparisons": len(items),
        "paid": paid,
        "per_second": {name: round(len(items) / spent, 1) for name, spent in seconds.items()},
        "times": round(seconds["math-verify"] / seconds["ours"], 1),
        "cpu_times": round(cpu["math-verify"] / cpu["ours"], 1),
    }


OLYMPIAD = (
    r"\frac{n(n+1)}{2}", r"2^{n-1}", r"\{1,2,4\}", r"(1,8,19),(2,7,13),(4,5,7)", r"x \le -2 \text{ or } x > 3",
    r"[0,\frac{1}{2}]", r"f(x)=x+1", r"\frac{2\sqrt{5}}{5}", r"n!+1", r"2\cdot 3^{2022}", r"\frac{\pi}{6}+k\pi",
    r"\binom{2n}{n}", r"\log_2 3", r"\sqrt[3]{2}+\sqrt[3]{4}", r"\left\lfloor \frac{n}{2}\right\rfloor",
    r"\sum_{k=1}^{n} k^2", r"a^2+b^2+c^2", r"\frac{a+b}{1-ab}", r"3.0\times 10^{8}\text{ m/s}", r"\pm 2",
    r"p=2,q=5", r"(x+y)^2=25", r"\arctan 2", r"e-e^{-1}", r"\frac{2^n-(-1)^n}{3}", r"45^\circ", r"10:13:18",
    r"(-\infty,2)\cup(3,\infty)", r"\frac{1}{2}\ln 3", r"2\pi-4\arctan 2", r"T=\frac{2\pi}{\omega}", r"mg\sin\theta",
    r"\frac{GMm}{r^2}", r"\sqrt{\frac{2h}{g}}", r"\frac{1}{n^2}", r"-1+\sqrt{3}i", r"\cos\frac{2\pi}{7}", r"1,3,7,9",
    r"\int_0^1 \sqrt{x}\,dx", r"x^{1/3}y^{2/3}", r"2^{1009}", r"|a-b|",
)  # fmt: skip


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", nargs="?", choices=("corpus", "speed"), default="corpus")
    parser.add_argument("--data", type=Path, help="speed: JSON lines with `answer`; golds of olympiads if not given")
    parser.add_argument("--golds", type=int, default=500, help="speed: golds of the data that are used")
    parser.add_argument("--peers", type=Path, help="folder into which verl and lm_eval were unpacked")
    parser.add_argument("--paraphrases", type=int, default=0, help="paraphrases of each pair, instead of the corpus")
    options = parser.parse_args()
    if options.what == "speed":
        report = speed(options.data, options.golds)
        print(json.dumps(report, indent=1))
        name = "verifiers-speed-olympiad" if options.data is None else "verifiers-speed"
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return
    pairs = generate(load(), options.paraphrases, 0) if options.paraphrases else load()
    judges = dict(VERIFIERS)
    if options.peers:
        os.environ[PEERS] = str(options.peers.resolve())
        judges |= FROM_WHEELS
    right = sum(pair.equal for pair in pairs)
    table = {"ours": count(pairs, ours(pairs))}
    for name, judge in judges.items():
        judged = peer(judge, pairs)
        if judged is not None:
            table[name] = count(pairs, judged)
    print(f"| verifier | wrong answers paid, of {len(pairs) - right} | right answers refused, of {right} |")
    print("|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['false_accepts']} | {row['false_refusals']} |")
    versions = {"python": platform.python_version()}
    for package in ("math-verify", "trl", "verl", "lm_eval"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    report = {"pairs": len(pairs), "right": right, "versions": versions, "verifiers": table}
    (RESULTS / "verifiers.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
