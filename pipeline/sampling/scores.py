"""Scores from judged samples: pass@1 with an interval, pass@k, cons@k, and what the samples looked like.

The unit is the problem. Samples of one problem resemble each other, so k samples of n problems are not k * n
independent trials; an interval that pretends they are is too narrow (Miller, arXiv 2411.00640).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.sampling.sampler import Group, Sample
from rewards import Item
from rewards.math import MathVerifier, same
from rewards.text import says_something
from rewards.verdict import PREFILL, Verdict

A = TypeVar("A")
Same = Callable[[Verdict, Verdict], bool | None]
Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


class UnjudgedError(ValueError):
    """Not a single sample of a task could be judged."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of `k` samples, drawn without replacement from `n`, is correct.

    Source: Chen et al., arXiv 2107.03374, equation 1: 1 - C(n - c, k) / C(n, k), the unbiased estimator.

    Raises:
        ValueError: unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {correct} correct among {n} samples is not defined")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def interval(means: Sequence[float], samples: int) -> tuple[float, float]:
    """A 95 % interval of the mean over problems.

    Wilson's score interval, which behaves at 0 and 1, with the effective number of trials n p (1 - p) / variance of the
    problems' means (Korn and Graubard 1998). With one sample a problem this is Wilson's interval itself; with several
    it is narrower, by as much as averaging over samples makes the problems' means less scattered.

    Args:
        means: each problem's share of correct samples.
        samples: samples a problem; there are never more effective trials than samples in all.
    """
    n, p = len(means), sum(means) / len(means)
    variance = sum((mean - p) ** 2 for mean in means) / n
    spread = p * (1 - p)
    if spread == 0:
        trials = float(n)
    elif variance == 0:
        trials = float(n * samples)
    else:
        trials = min(n * spread / variance, float(n * samples))
    centre = (p + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
    half = Z95 / (1 + Z95**2 / trials) * math.sqrt(spread / trials + Z95**2 / (4 * trials**2))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # at 0 and 1, rounding would part them


def majority_correct(
    answers: Sequence[tuple[A | None, bool]], same: Callable[[A, A], bool | None] | None = None
) -> float:
    """Credit of a majority vote over (answer, whether the grader accepts it): 1, 0, or a share where the vote is tied.

    Answers that say the same are one candidate, however they are spelt and whether they are right or wrong: `0.5`,
    `1/2` and `\\frac12` are three votes for one half. What the grader tells apart is two; what it accepts twice is one,
    unless the two are known to differ, as two answers that a gold of several allows. Samples without an answer do not
    vote. A tie is broken at random, so it counts with its chance.

    Args:
        answers: of each sample.
        same: whether two answers are one, `None` if that is not known; the equality of the reward `math`, for texts, if
            not given.
    """
    equal = same_text if same is None else same
    candidates: list[tuple[A | None, bool]] = []
    votes: Counter[int] = Counter()
    for answer, good in answers:
        if not (good or answer):
            continue
        place = next(
            (at for at, known in enumerate(candidates) if known[1] == good and _is_one(equal, known[0], answer, good)),
            len(candidates),
        )
        if place == len(candidates):
            candidates.append((answer, good))
        votes[place] += 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [candidates[place][1] for place, count in votes.items() if count == most]
    return sum(winners) / len(winners)


def _is_one(equal: Callable[[A, A], bool | None], known: A | None, answer: A | None, good: bool) -> bool:
    if not known or not answer:
        return good
    said = equal(known, answer)
    return said is not False if good else said is True


def same_text(first: Any, second: Any) -> bool | None:
    """Whether two answers are spelt alike, or equal by value."""
    return True if normalised(first) == normalised(second) else same(first, second)


def same_spelling(first: Verdict, second: Verdict) -> bool | None:
    """Whether the answers of two verdicts are spelt alike: all that is known where a grader says no more."""
    return True if normalised(first.extracted) == normalised(second.extracted) else None


def normalised(text: str | None) -> str:
    """An answer without what spelling may change: case, spaces, width of characters, a full stop at the end."""
    folded = unicodedata.normalize("NFKC", text or "").casefold()
    return re.sub(r"\s+", "", folded).rstrip(".")


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of the rewards that scores are made of; the language one may be missing."""

    accuracy: str
    language: str


def score(groups: Sequence[Group], k: int, labels: Labels, equal: Same = MathVerifier.same) -> dict[str, Any]:
    """The scores of one task.

    Args:
        groups: judged samples, one group a problem.
        k: samples a problem.
        labels: labels of the rewards.
        equal: whether the answers of two verdicts are one, for votes; the grader's own equality.

    Returns:
        `n` (problems that could be judged), `samples`, `pass@1` with `low` and `high`, `tokens`, `thinking`,
        `truncated`; with several samples also `pass@k`, `cons@k` and pass@ each power of two below k;
        `language` and `unjudged` where there is anything to say.

    Raises:
        UnjudgedError: not a single sample could be judged.
    """
    judged = [scored for group in groups if (scored := _judged(group.samples, labels.accuracy))]
    if not judged:
        raise UnjudgedError("not one sample could be judged: the gold answers or the grader are broken")
    correct = [(len(samples), sum(s.judgements[labels.accuracy].correct for s in samples)) for samples in judged]
    means = [good / n for n, good in correct]
    low, high = interval(means, k)
    samples = [sample for group in groups for sample in group.samples]
    result: dict[str, Any] = {
        "n": len(judged),
        "samples": k,
        "pass@1": _mean(means),
        "low": low,
        "high": high,
        "tokens": _mean([sample.tokens for sample in samples]),
        "thinking": _mean([_thinks(group.begun, sample) for group in groups for sample in group.samples]),
        "truncated": _mean([sample.truncated for sample in samples]),
    }
    if k > 1:
        result |= _several(correct, k)
        result["cons@k"] = _mean([majority_correct(_answers(samples, labels.accuracy), equal) for samples in judged])
    languages = [
        judgement.score
        for sample in samples
        if (judgement := sample.judgements.get(labels.language)) and judgement.score is not None
    ]
    if languages:
        result["language"] = _mean(languages)
    if unjudged := len(samples) - sum(n for n, _ in correct):
        result["unjudged"] = unjudged
    return result


def _answers(samples: Sequence[Sample], label: str) -> list[tuple[Verdict | None, bool]]:
    judgements = [sample.judgements[label] for sample in samples]
    return [(one.verdict() if one.extracted else None, one.correct) for one in judgements]


def _several(correct: Sequence[tuple[int, int]], k: int) -> dict[str, float]:
    result = {}
    for size in [2**power for power in range(1, k.bit_length()) if 2**power < k] + [k]:
        values = [pass_at_k(n, good, size) for n, good in correct if n >= size]
        if values:
            result["pass@k" if size == k else f"pass@{size}"] = _mean(values)
    return result


def _judged(samples: Sequence[Sample], label: str) -> list[Sample]:
    return [s for s in samples if label in s.judgements and s.judgements[label].score is not None]


def _thinks(begun: str, sample: Sample) -> bool:
    thought, _ = Item(sample.completion, columns={PREFILL: begun}).split()
    return says_something(thought or "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sentence(model: str, task: str, entry: Mapping[str, Any], sampling: Mapping[str, Any]) -> str:
    """One score in words that leave nothing out: n, interval and how it was sampled.

    Raises:
        KeyError: the score lacks one of them; a bare number is not printed.
    """
    text = (
        f"{model} on {task}: pass@1 {100 * entry['pass@1']:.1f} % [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
        f" (n={entry['n']}, {entry['samples']} samples each, temperature {sampling['temperature']},"
        f" top-p {sampling['top_p']}, up to {sampling['max_tokens']} tokens, {sampling['engine']})"
    )
    for name, words in (("pass@k", f"pass@{entry['samples']}"), ("cons@k", f"cons@{entry['samples']}")):
        if name in entry:
            text += f", {words} {100 * entry[name]:.1f} %"
    return text + f", {entry['tokens']:.0f} tokens, {100 * entry['truncated']:.0f} % truncated"
