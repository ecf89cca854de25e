"""Does a model end its turns in its chat template? Tried, since no file tells what a model has learnt.

A template whose end of turn the model was never taught (an instruct model with another template than its own, say)
makes it go on until the longest allowed length: nothing is finished, and little can be learnt from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline.prompts.messages import Conversation
from pipeline.prompts.rendering import Renderer
from pipeline.prompts.templates import encode
from pipeline.rollout.base import Finish, Sampling
from pipeline.rollout.context_limit import context_of
from pipeline.rollout.transformers import TransformersEngine

QUESTIONS = (("What is 1 + 1?", "2"), ("Name a colour.", "Blue."), ("Say hello to me.", "Hello!"))
"""Questions, with answers that are complete."""
SAMPLES = 4
"""Answers that are sampled to each question."""
TOKENS = 128
"""Their longest length, in tokens: more than such an answer takes, and seconds on a processor."""
ENDS_OFTEN = 0.25
"""Share of sampled answers that end within `TOKENS` from which on a model knows how to."""
ENDS_SURELY = 0.5
"""Probability of the end behind a complete answer from which on it does, too: it may think for longer than `TOKENS`."""


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """How a model ends its turns.

    Attributes:
        sampled: share of the sampled answers that ended.
        answered: probability of an end token right behind a complete answer, on average.
        tokens: longest length of a sampled answer, in tokens.
    """

    sampled: float
    answered: float
    tokens: int

    @property
    def learnt(self) -> bool:
        """Whether the model knows how to end a turn."""
        return self.sampled >= ENDS_OFTEN or self.answered >= ENDS_SURELY


def probe_turn_ends(path: str) -> TurnEnds:
    """Ask a model, as its tokenizer prompts it.

    Raises:
        MessageError, TemplateError: the chat template cannot take a question with its answer.
    """
    engine = TransformersEngine(path, batch_size=SAMPLES * len(QUESTIONS))
    try:
        renderer = Renderer(engine.tokenizer)
        chats = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in QUESTIONS
        ]
        prompts = encode(engine.tokenizer, [prompt.text for prompt in renderer.prompts([chat[:1] for chat in chats])])
        context = context_of(path)
        longest = TOKENS if context is None else max(1, min(TOKENS, context - max(map(len, prompts))))
        groups = engine.generate(prompts, Sampling(n=SAMPLES, max_tokens=longest, seed=0))
        ended = [rollout.finish is Finish.STOP for group in groups for rollout in group]
        turns = [turn for chat in chats for turn in renderer.turns(Conversation(chat, [1]))]
        answered = [_end_probability(engine, before, said) for before, said in turns]
        return TurnEnds(sum(ended) / len(ended), sum(answered) / len(answered), longest)
    finally:
        engine.close()


def _end_probability(engine: TransformersEngine, before: str, said: str) -> float:
    """Probability of an end token where a turn of this text ends."""
    (prompt,), (turn,) = encode(engine.tokenizer, [before]), encode(engine.tokenizer, [said])
    ids_1T = torch.tensor([prompt + turn[:-1]], device=engine.device)
    with torch.inference_mode():
        logits_V = engine.model(ids_1T, use_cache=False).logits[0, -1].float()
    return float(logits_V.softmax(-1)[engine.end_ids].sum())
