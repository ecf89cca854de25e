"""Preference rewards: a sequence-classification reward model from a Hugging Face folder.

R1's last stage of RL has two of them (arXiv 2501.12948): helpfulness looks only at the final summary, so that the
model may think as it likes; harmlessness looks at the whole response, because harm may hide in the thought::

    - {use: preference, name: helpful, options: {model: models/helpful, scope: summary}, weight: 0.5}
    - {use: preference, name: harmless, options: {model: models/harmless, scope: whole}, weight: 0.5}

The score is the model's logit, as it is: use `clip` in the recipe to bound it. Long training against such a model
teaches its weaknesses rather than its taste: the paper used it for the last 400 of 1,700 steps.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from rewards.bounds import AtLeastOne
from rewards.verdict import Item, Status, Verdict

_PROBE = "<think>THOUGHT</think>SUMMARY"


class Preference:
    """The logit of a reward model for each response, read in its own chat template; correct above 0.

    A chat prompt is shown as its messages, a text prompt as one message of the user. Special tokens that the policy
    wrote are taken out, since they could end its turn and praise it in the name of the user. An empty response is
    shown to the model like any other: no constant would be safely below everything that the model can say.

    Args:
        model: folder (or hub id) of a sequence classifier with one label, with its tokenizer.
        scope: `"summary"` shows what follows the thought, `"whole"` all of the response.
        backend: `"transformers"`, or `"vllm"` (in this process, on a GPU).
        batch_size: responses in one forward pass (transformers).
        device: such as `cuda:1` (transformers); a GPU if there is one.
        max_tokens: longest conversation; what is longer is cut.
        truncation: the side that is cut; the default keeps the end, where the response is.
        engine_options: further fields of vLLM's `EngineArgs`, such as `gpu_memory_utilization`.

    Raises:
        ValueError: the folder holds no such model, an option has no sense, or the template drops thoughts that
            `scope: whole` wants to show.
    """

    def __init__(
        self,
        model: str,
        scope: Literal["summary", "whole"] = "summary",
        backend: Literal["transformers", "vllm"] = "transformers",
        batch_size: AtLeastOne = 16,
        device: str | None = None,
        max_tokens: AtLeastOne = 4096,
        truncation: Literal["left", "right"] = "left",
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value, known in (
            ("scope", scope, ("summary", "whole")),
            ("backend", backend, ("transformers", "vllm")),
            ("truncation", truncation, ("left", "right")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {' or '.join(map(repr, known))}, not {value!r}")
        if batch_size < 1 or max_tokens < 1:
            raise ValueError("batch_size and max_tokens are at least 1")
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        check_classifier(model, config)
        self._truncation = truncation
        self._max_tokens = min(max_tokens, getattr(config.get_text_config(), "max_position_embeddings", max_tokens))
        self._reader = ConversationReader(
            AutoTokenizer.from_pretrained(model, trust_remote_code=False), scope, config.pad_token_id
        )
        self._scorer: _Scorer = (
            _Transformers(model, device, batch_size, config.pad_token_id)
            if backend == "transformers"
            else _Vllm(model, self._max_tokens, engine_options or {})
        )

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item, with the model's logit as its score; a logit that is no number is `infra`."""
        started = time.perf_counter()
        scores = self._scorer.scores([self._cut(self._reader.ids(item)) for item in items])
        ms = (time.perf_counter() - started) * 1000 / max(len(items), 1)
        return [_verdict(score, ms) for score in scores]

    def _cut(self, ids: list[int]) -> list[int]:
        return ids[-self._max_tokens :] if self._truncation == "left" else ids[: self._max_tokens]


class ConversationReader:
    """What a reward model is shown of a prompt and a response, in training and afterwards.

    Args:
        tokenizer: the reward model's own; without a chat template, prompt and response are joined as they are.
        scope: `"summary"` or `"whole"`.
        pad: the padding token that the model knows.

    Raises:
        ValueError: the chat template drops thoughts that the scope wants to show.
    """

    def __init__(self, tokenizer: Any, scope: Literal["summary", "whole"], pad: int | None) -> None:
        self._tokenizer, self._scope, self._pad = tokenizer, scope, pad
        self._special = sorted(_special_tokens(tokenizer), key=len, reverse=True)
        if scope == "whole" and "THOUGHT" not in self.text(Item(_PROBE, prompt="?")):
            raise ValueError("the chat template drops the thought, so scope 'whole' would not judge it")

    def text(self, item: Item) -> str:
        """The conversation as text."""
        response = item.completion if self._scope == "whole" else item.split()[1].strip()
        for token in self._special:
            response = response.replace(token, " ")
        if not self._tokenizer.chat_template:
            return item.prompt + response + (self._tokenizer.eos_token or "")
        asked = item.messages or [{"role": "user", "content": item.prompt}]
        messages = [*asked, {"role": "assistant", "content": response}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))

    def ids(self, item: Item) -> list[int]:
        """The conversation as token ids."""
        bare = not self._tokenizer.chat_template
        ids: list[int] = self._tokenizer(self.text(item), add_special_tokens=bare)["input_ids"]
        # The classifiers of transformers read the last token that is not padding, in training too.
        while len(ids) > 1 and ids[-1] == self._pad:
            ids.pop()
        return ids


class _Scorer(Protocol):
    def scores(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        """One logit for each sequence of token ids."""


class _Transformers:
    def __init__(self, model: str, device: str | None, batch_size: int, pad: int | None) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = (
            AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=False).to(self._device).eval()
        )
        # Without a padding token, the model itself cannot tell where a row of a batch ends.
        self._batch_size, self._pad = (1, 0) if pad is None else (batch_size, pad)

    def scores(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        import torch

        scores = [math.nan] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            longest = len(prompts[rows[-1]])
            ids_BT = torch.tensor([[*prompts[row], *[self._pad] * (longest - len(prompts[row]))] for row in rows])
            lengths_B = torch.tensor([len(prompts[row]) for row in rows])
            mask_BT = torch.arange(longest) < lengths_B[:, None]
            with torch.inference_mode():
                logits_B1 = self._model(ids_BT.to(self._device), attention_mask=mask_BT.to(self._device)).logits
            for row, score in zip(rows, logits_B1[:, 0].float().tolist(), strict=True):
                scores[row] = score
        return scores


class _Vllm:
    def __init__(self, model: str, max_tokens: int, options: Mapping[str, Any]) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM

        self._llm = LLM(model=model, runner="pooling", max_model_len=max_tokens, **options)

    def scores(self, prompts: Sequence[Sequence[int]]) -> list[float]:
        from vllm import PoolingParams, TokensPrompt

        texts = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        params = PoolingParams(use_activation=False)  # the logit itself, not its sigmoid
        outputs = self._llm.classify(texts, pooling_params=params, use_tqdm=False)
        return [float(output.outputs.probs[0]) for output in outputs]


def _verdict(score: float, ms: float) -> Verdict:
    if not math.isfinite(score):
        return Verdict.of(Status.INFRA, detail=f"the reward model gave {score}", ms=ms)
    return Verdict(Status.CORRECT if score > 0 else Status.WRONG, score, ms=ms)


def check_classifier(model: str, config: Any) -> None:
    """transformers would give any language model a random classifier's head, with a warning only."""
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        what = ", ".join(architectures) or "no architecture"
        raise ValueError(f"{model} is not a sequence classifier: its config names {what}")
    if config.num_labels != 1:
        raise ValueError(f"{model} has {config.num_labels} labels; a reward model has one")


def _special_tokens(tokenizer: Any) -> set[str]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)
