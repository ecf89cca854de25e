"""The shape of a decoder: its widths, and how many weights follow from them; see `config` for where they are read.

Everything here is counted exactly, biases and norms included, and compared in a test with transformers' own models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix of weights that every token, or `active` of every `copies` tokens, is multiplied with.

    Attributes:
        inputs, outputs: its widths.
        bias: whether a bias is added.
        copies: how many such matrices lie side by side (experts).
        active: how many of them one token meets.
    """

    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    active: int = 1

    @property
    def weights(self) -> int:
        """Weights of the matrices alone."""
        return self.copies * self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weights + (self.copies * self.outputs if self.bias else 0)

    @property
    def multiplied(self) -> int:
        """Weights that one token meets."""
        return self.active * self.inputs * self.outputs

    def lora(self, rank: int) -> int:
        """Weights of its adapter: A is rank x inputs, B is outputs x rank (Hu et al., arXiv 2106.09685)."""
        return self.copies * rank * (self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention: `kv_heads` pairs of keys and values serve `heads` queries of `width`."""

    heads: int
    kv_heads: int
    width: int
    bias: bool = False
    output_bias: bool = False
    norms: bool = False

    @property
    def query(self) -> int:
        """Width of all queries, and of what attention gives to its output projection."""
        return self.heads * self.width

    @property
    def score_width(self) -> int:
        """Multiply-adds of a pair of tokens: a head's score and its share of the value."""
        return 2 * self.heads * self.width

    @property
    def cached(self) -> int:
        """Numbers that a layer keeps of each token."""
        return 2 * self.kv_heads * self.width

    @property
    def norm_weights(self) -> int:
        """Weights of its own norms."""
        return 2 * self.width if self.norms else 0

    def linears(self, hidden: int) -> list[Linear]:
        """Its projections."""
        keys = self.kv_heads * self.width
        return [
            Linear(hidden, self.query, self.bias),
            Linear(hidden, keys, self.bias),
            Linear(hidden, keys, self.bias),
            Linear(self.query, hidden, self.output_bias),
        ]


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), in the names of its equations.

    Attributes:
        heads: H.
        nope, rope, value: widths of a head's query and key without and with rotation, and of its value.
        kv_rank: width of the latent that is cached.
        query_rank: width of the queries' latent; `None` where they are not compressed.
    """

    heads: int
    nope: int
    rope: int
    value: int
    kv_rank: int
    query_rank: int | None

    @property
    def query(self) -> int:
        """Width of all queries."""
        return self.heads * (self.nope + self.rope)

    @property
    def score_width(self) -> int:
        """Multiply-adds of a pair of tokens: a head's score and its share of the value."""
        return self.heads * (self.nope + self.rope + self.value)

    @property
    def cached(self) -> int:
        """Numbers that a layer keeps of each token: the latent and the key that all heads share."""
        return self.kv_rank + self.rope

    @property
    def norm_weights(self) -> int:
        """Weights of the norms of its latents."""
        return self.kv_rank + (self.query_rank or 0)

    def linears(self, hidden: int) -> list[Linear]:
        """Its projections."""
        queries = [Linear(hidden, self.query)]
        if self.query_rank is not None:
            queries = [Linear(hidden, self.query_rank), Linear(self.query_rank, self.query)]
        return [
            *queries,
            Linear(hidden, self.kv_rank + self.rope),
            Linear(self.kv_rank, self.heads * (self.nope + self.value)),
            Linear(self.heads * self.value, hidden),
        ]


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in place of a dense feed-forward part.

    Attributes:
        routed, active: experts to choose from, and how many see a token.
        shared: experts that see every token.
        width: of one expert.
        dense_layers: layers at the bottom that are dense all the same.
    """

    routed: int
    active: int
    shared: int
    width: int
    dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Parameters:
    """Weights by part; `mtp` blocks share embedding and head with the model."""

    embedding: int
    head: int
    attention: int
    dense: int
    routed: int
    shared: int
    router: int
    norms: int
    mtp: int
    idle: int = field(repr=False)
    """Routed experts that a token is not sent to."""

    @property
    def total(self) -> int:
        """All of the model's, without `mtp`, as published figures count them."""
        return sum(getattr(self, part.name) for part in fields(self) if part.name not in ("mtp", "idle"))

    @property
    def active(self) -> int:
        """Those that one token meets."""
        return self.total - self.idle


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder: `layers` of attention and a gated feed-forward part between an embedding and a head.

    Attributes:
        hidden: width of the residual stream.
        layers: number of layers.
        vocabulary: rows of the embedding.
        intermediate: width of the dense feed-forward part.
        attention: of each layer.
        experts: what takes the dense part's place, in the layers after `experts.dense_layers`.
        tied: whether embedding and head are one matrix.
        mlp_bias: whether the feed-forward part has biases.
        mtp: blocks of multi-token prediction on top.
        context: longest sequence that it was made for.
        model_type: transformers' name of the architecture.
    """

    hidden: int
    layers: int
    vocabulary: int
    intermediate: int
    attention: Attention | Latent
    experts: Experts | None = None
    tied: bool = False
    mlp_bias: bool = False
    mtp: int = 0
    context: int = 0
    model_type: str = ""

    @property
    def dense_layers(self) -> int:
        """Layers with a dense feed-forward part."""
        return self.layers if self.experts is None else min(self.layers, self.experts.dense_layers)

    @property
    def sparse_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers

    def dense(self) -> list[Linear]:
        """The matrices of a dense feed-forward part: gate, up, down."""
        return _gated(self.hidden, self.intermediate, self.mlp_bias)

    def routed(self) -> list[Linear]:
        """Those of the routed experts."""
        each = self.experts
        return [] if each is None else _gated(self.hidden, each.width, copies=each.routed, active=each.active)

    def shared(self) -> list[Linear]:
        """Those of the shared experts, which are one part as wide as all of them."""
        each = self.experts
        return [] if each is None or not each.shared else _gated(self.hidden, each.shared * each.width)

    def router(self) -> list[Linear]:
        """The gate's."""
        return [] if self.experts is None else [Linear(self.hidden, self.experts.routed)]

    def layer_linears(self) -> Iterator[tuple[int, Linear]]:
        """How many layers have a matrix, and the matrix; the router, which stays in high precision, aside."""
        for matrix in self.attention.linears(self.hidden):
            yield self.layers, matrix
        for matrix in self.dense():
            yield self.dense_layers, matrix
        for matrix in (*self.routed(), *self.shared()):
            yield self.sparse_layers, matrix

    @property
    def parameters(self) -> Parameters:
        """Weights by part."""
        return _counted(self)

    @property
    def linear_weights(self) -> int:
        """Weights of the matrices in the layers: what quantisation shrinks, and what all-linear adapters adapt."""
        return sum(layers * matrix.weights for layers, matrix in self.layer_linears())

    def lora(self, rank: int, experts: bool = True) -> int:
        """Weights of an adapter of this rank on every matrix of the layers (PEFT's `all-linear`).

        Args:
            rank: r.
            experts: whether routed experts are adapted, too.
        """
        routed = 0 if experts else self.sparse_layers * sum(matrix.lora(rank) for matrix in self.routed())
        return sum(layers * matrix.lora(rank) for layers, matrix in self.layer_linears()) - routed

    def kv_elements(self) -> int:
        """Numbers that the cache of a token holds."""
        return self.layers * self.attention.cached


@lru_cache(maxsize=256)
def _counted(shape: Shape) -> Parameters:

    def count(matrices: list[Linear]) -> int:
        return sum(matrix.parameters for matrix in matrices)

    attention, sparse = count(shape.attention.linears(shape.hidden)), shape.sparse_layers
    routed, shared, router = count(shape.routed()), count(shape.shared()), count(shape.router())
    each = shape.experts
    a_block = attention + shape.attention.norm_weights + 5 * shape.hidden + 2 * shape.hidden**2
    a_block += routed + shared + router if each is not None else count(shape.dense())
    matrix = shape.vocabulary * shape.hidden
    return Parameters(
        embedding=matrix,
        head=0 if shape.tied else matrix,
        attention=shape.layers * attention,
        dense=shape.dense_layers * count(shape.dense()),
        routed=sparse * routed,
        shared=sparse * shared,
        router=sparse * router,
        norms=shape.layers * (2 * shape.hidden + shape.attention.norm_weights) + shape.hidden,
        mtp=shape.mtp * a_block,
        idle=sparse * routed * (each.routed - each.active) // each.routed if each is not None else 0,
    )


def _gated(hidden: int, width: int, bias: bool = False, copies: int = 1, active: int = 1) -> list[Linear]:
    into, back = (hidden, width), (width, hidden)
    return [Linear(*each, bias, copies, active) for each in (into, into, back)]
