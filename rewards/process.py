"""A process reward: a model says after every step of an answer how likely it is to come out right.

    - {use: process, options: {model: "@prm", reduce: min}}

The model is a reward model that learnt from step labels (a `reward_model` stage with `learns: steps`): its logit behind
a step is that of the chance that an answer which begins so is right. The score of an answer is the least of its steps'
chances (as in Math-Shepherd, arXiv 2312.08935), their mean, or the last one.

R1's authors tried such rewards and dropped them, since a policy learns to please the model instead of being right, and
training the model anew costs more than it gives. docs/results/failed-attempts.md shows what happens at nano's size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from rewards.bounds import AtLeastOne, Text
from rewards.preference import check_classifier
from rewards.steps import STEP_END, STEP_TOKENS, StepRule
from rewards.verdict import PREFILL, Item, Status, Verdict

Reading = tuple[list[int], list[int]]
"""Token ids of a prompt and the steps of an answer, and where among them each step has its last token."""
REDUCTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": fmean,
    "last": lambda chances: chances[-1],
}
SURE = 0.5
"""Chance above which an answer counts as right."""


class StepReader:
    """What a process reward model is shown, in training and afterwards.

    Each step is tokenised apart from the others, so that steps that are given as texts are read as those that are cut.

    Args:
        tokenizer: the model's own.
        rule: how answers are cut.
    """

    def __init__(self, tokenizer: Any, rule: StepRule | None = None) -> None:
        self._tokenizer, self._rule = tokenizer, rule or StepRule()

    def steps(self, completion: str) -> list[str]:
        """The steps of an answer, as texts."""
        ids = self._tokenizer(completion, add_special_tokens=False)["input_ids"]
        return [self.decode(step) for step in self._rule.cut(ids, self.decode)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def asked(self, prompt: str | Sequence[Mapping[str, Any]], begun: str = "") -> str:
        """The text before the first step.

        Args:
            prompt: text, or chat messages.
            begun: what the assistant was made to begin with, which the chat template may have written already.
        """
        if not self._tokenizer.chat_template:
            text = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
        else:
            chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            text = str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        there = next(length for length in range(len(begun), -1, -1) if text.endswith(begun[:length]))
        return text + begun[there:]

    def read(self, asked: str, steps: Sequence[str]) -> Reading:
        """Token ids, and the place of each step's last one."""
        ids = list(self._tokenizer(asked, add_special_tokens=not self._tokenizer.chat_template)["input_ids"])
        ends = []
        for step in steps:
            ids += self._tokenizer(step, add_special_tokens=False)["input_ids"]
            ends.append(len(ids) - 1)
        return ids, ends


class StepScorer:
    """Reads answers with a process reward model, all steps of one in one pass.

    Args:
        model: folder or hub id of a sequence classifier with one label.
        device: such as `cuda:1`; a GPU if there is one.
        batch_size: answers in one pass.

    Attributes:
        tokens: read so far.

    Raises:
        ValueError: the folder holds no such model.
    """

    def __init__(self, model: str, device: str | None = None, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is 1 or more, not {batch_size}")
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        check_classifier(model, config)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        loaded = AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=False)
        self._model = loaded.to(self._device).eval()
        self.longest = int(getattr(config.get_text_config(), "max_position_embeddings", 0)) or None
        self._batch_size = 1 if config.get_text_config().pad_token_id is None else batch_size
        self._pad = config.get_text_config().pad_token_id or 0
        self.tokens = 0

    def chances(self, readings: Sequence[Reading]) -> list[list[float]]:
        """The chance behind each step that the answer comes out right; `nan` behind what is too long to be read."""
        import torch

        found: list[list[float]] = [[math.nan] * len(ends) for _, ends in readings]
        fits = [row for row, (ids, _) in enumerate(readings) if self.longest is None or len(ids) <= self.longest]
        order = sorted(fits, key=lambda row: len(readings[row][0]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            longest = len(readings[rows[-1]][0])
            self.tokens += sum(len(readings[row][0]) for row in rows)
            ids_BT = torch.tensor([padded(readings[row][0], longest, self._pad) for row in rows])
            lengths_B = torch.tensor([len(readings[row][0]) for row in rows])
            mask_BT = (torch.arange(longest) < lengths_B[:, None]).long()
            with torch.inference_mode():
                chances_BT = logits_everywhere(
                    self._model, input_ids=ids_BT.to(self._device), attention_mask=mask_BT.to(self._device)
                ).sigmoid()
            for row, chances_T in zip(rows, chances_BT.float().cpu().tolist(), strict=True):
                found[row] = [chances_T[end] for end in readings[row][1]]
        return found


def logits_everywhere(model: Any, **inputs: Any) -> Any:
    """The logit behind every token (B, T) of a sequence classifier, which itself returns only that of the last one.

    Args:
        model: a classifier whose head is called `score`, as transformers' are for causal models; it may be wrapped.
        inputs: of its forward pass.
    """
    heads = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "score"]
    if len(heads) != 1:
        raise ValueError(f"{type(model).__name__} has {len(heads)} heads called score; a reward model has one")
    seen: list[Any] = []
    handle = heads[0].register_forward_hook(lambda module, given, logits: seen.append(logits))
    try:
        model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return seen[0].squeeze(-1)


def padded(ids: Sequence[int], length: int, pad: int) -> list[int]:
    """Token ids with padding behind them."""
    return [*ids, *[pad] * (length - len(ids))]


class Process:
    """The chance that a process reward model gives the steps of each answer; correct above one half.

    Args:
        model: folder (or hub id) of a model that learnt from step labels.
        reduce: what becomes of the steps' chances: the least (`min`), their `mean`, or the `last`.
        step_end: text at which a step of a thought ends; what follows a thought is one step.
        step_tokens: most tokens of a step.
        batch_size: answers in one forward pass.
        device: such as `cuda:1`; a GPU if there is one.

    Raises:
        ValueError: the folder holds no reward model, or an option has no sense.
    """

    def __init__(
        self,
        model: str,
        reduce: Literal["min", "mean", "last"] = "min",
        step_end: Text = STEP_END,
        step_tokens: AtLeastOne = STEP_TOKENS,
        batch_size: AtLeastOne = 64,
        device: str | None = None,
    ) -> None:
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce is {', '.join(map(repr, REDUCTIONS))}, not {reduce!r}")
        rule = StepRule(step_end, step_tokens)
        from transformers import AutoTokenizer

        self._reduce = REDUCTIONS[reduce]
        self._scorer = StepScorer(model, device, batch_size)
        self._reader = StepReader(AutoTokenizer.from_pretrained(model, trust_remote_code=False), rule)

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item; an empty answer has no step and scores 0, and one that is too long is `infra`."""
        started = time.perf_counter()
        readings = [self._reading(item) for item in items]
        chances = self._scorer.chances(readings)
        ms = (time.perf_counter() - started) * 1000 / max(len(items), 1)
        return [self._verdict(of_steps, ms) for of_steps in chances]

    def _reading(self, item: Item) -> Reading:
        asked = self._reader.asked(item.messages or item.prompt, str(item.columns.get(PREFILL) or ""))
        return self._reader.read(asked, self._reader.steps(item.completion))

    def _verdict(self, chances: Sequence[float], ms: float) -> Verdict:
        if not chances:
            return Verdict.of(Status.NO_ANSWER, ms=ms)
        if not all(map(math.isfinite, chances)):
            return Verdict.of(Status.INFRA, detail=f"an answer is longer than {self._scorer.longest} tokens", ms=ms)
        score = self._reduce(chances)
        shown = " ".join(f"{chance:.2f}" for chance in chances)
        return Verdict(Status.CORRECT if score > SURE else Status.WRONG, score, shown, ms)
