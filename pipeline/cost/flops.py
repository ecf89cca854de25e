"""Floating-point operations of a model, by part; a multiply-add counts as two, as in the papers.

Causal scores are counted for the pairs of tokens that attend (half of the square), as DeepSeek's "causal" MFU does
(arXiv 2505.09343, Table 4). Norms, rotary positions, softmax and activations are left out, as usual: together they are
below a per cent. A backward pass is two forward passes; what checkpointing computes twice counts as no model FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from pipeline.cost.shape import Linear, Shape

BACKWARD = 2
"""Forward passes that a backward pass takes: one product for the inputs' gradients, one for the weights'."""


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations by part.

    Attributes:
        attention: its projections.
        scores: scores and weighted values.
        dense, routed, shared, router: of the feed-forward parts.
        head: of the tokens whose distribution is wanted.
        mtp: matrices of the blocks of multi-token prediction.
        mtp_other: their scores, gates and heads.
    """

    attention: float = 0.0
    scores: float = 0.0
    dense: float = 0.0
    routed: float = 0.0
    shared: float = 0.0
    router: float = 0.0
    head: float = 0.0
    mtp: float = 0.0
    mtp_other: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return float(sum(astuple(self)))

    @property
    def low_precision(self) -> float:
        """Those of DeepSeek-V3's FP8: all matrices of the layers but the gate (arXiv 2412.19437, section 3.3.1)."""
        return self.attention + self.dense + self.routed + self.shared + self.mtp

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Flops:
        return Flops(*(factor * part for part in astuple(self)))

    __rmul__ = __mul__


def forward(shape: Shape, length: int, scored: int | None = None, before: int = 0, mtp: bool = False) -> Flops:
    """A forward pass over one sequence.

    Args:
        shape: the model.
        length: tokens that are computed.
        scored: tokens whose distribution over the vocabulary is computed; all if not given.
        before: tokens before them that are cached, and that they attend to.
        mtp: whether the blocks of multi-token prediction are computed, too.
    """
    pairs = length * (length + 1) / 2 + length * before
    wanted = length if scored is None else scored

    def of(matrices: Iterable[Linear], layers: int = 1) -> float:
        return 2.0 * length * layers * sum(matrix.multiplied for matrix in matrices)

    sparse, blocks = shape.sparse_layers, shape.mtp if mtp else 0
    attention = of(shape.attention.linears(shape.hidden))
    scores = 2.0 * shape.attention.score_width * pairs
    head = 2.0 * wanted * shape.hidden * shape.vocabulary
    upper = (*shape.routed(), *shape.shared()) if shape.experts is not None else shape.dense()
    joined = Linear(2 * shape.hidden, shape.hidden)  # DeepSeek-V3, equation 21
    return Flops(
        attention=shape.layers * attention,
        scores=shape.layers * scores,
        dense=of(shape.dense(), shape.dense_layers),
        routed=of(shape.routed(), sparse),
        shared=of(shape.shared(), sparse),
        router=of(shape.router(), sparse),
        head=head,
        mtp=blocks * (attention + of((joined, *upper))),
        mtp_other=blocks * (scores + head + of(shape.router())),
    )


def a_token(shape: Shape, length: int, mtp: bool = False) -> Flops:
    """A forward pass, averaged over the tokens of a sequence of this length."""
    return forward(shape, length, mtp=mtp) * (1 / length)


def passes(frozen: bool) -> int:
    """Forward passes that a training pass takes: three, or two where the weights are frozen beneath an adapter.

    What the adapter itself takes is left out: of a rank of 32, a few per cent.
    """
    return BACKWARD if frozen else 1 + BACKWARD


def training(
    shape: Shape,
    lengths: Iterable[int],
    scored: Iterable[int] | None = None,
    mtp: bool = False,
    frozen: bool = False,
) -> Flops:
    """Forward and backward passes over sequences.

    Args:
        shape: the model.
        lengths: tokens of each sequence.
        scored: tokens of each whose distribution is computed; all if not given.
        mtp: whether the blocks of multi-token prediction are trained, too.
        frozen: whether an adapter is trained in place of the weights.
    """
    lengths = list(lengths)
    wanted = lengths if scored is None else list(scored)
    total = Flops()
    for length, tokens in zip(lengths, wanted, strict=True):
        total += forward(shape, length, tokens, mtp=mtp)
    return passes(frozen) * total


def generation(shape: Shape, prompts: Iterable[int], completions: Iterable[int]) -> Flops:
    """Reading prompts once each and writing a completion to each, with a cache.

    Args:
        shape: the model.
        prompts: tokens of the prompt of each completion; 0 where another completion has had it read.
        completions: tokens of each completion.
    """
    total = Flops()
    for prompt, completion in zip(prompts, completions, strict=True):
        if prompt:
            total += forward(shape, prompt, scored=1)
        total += forward(shape, completion, before=prompt)
    return total


def grpo_step(
    shape: Shape, prompt: float, completion: float, rollouts: int, passes_without_gradient: int = 0
) -> dict[str, float]:
    """Model FLOPs of one GRPO step by phase, for rollouts of mean lengths: what utilisation is measured against.

    Args:
        shape: the policy.
        prompt, completion: mean tokens of a prompt and of a completion.
        rollouts: completions a step.
        passes_without_gradient: forward passes besides the training pass (old log-probabilities, reference).
    """
    whole, written = max(1, round(prompt + completion)), max(1, round(completion))
    one = forward(shape, whole, scored=written).total
    return {
        "generation": rollouts * generation(shape, [round(prompt)], [written]).total,
        "scoring": rollouts * passes_without_gradient * one,
        "training": rollouts * (1 + BACKWARD) * one,
    }
