"""What stages share that train on plain text: where the text comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.context import StageContext
from pipeline.data import corpus as corpora
from pipeline.data.filters import Contamination
from pipeline.schema.pieces import DataRef, Fault, Strict


class CorpusSpec(Strict):
    """Text to train on: generated, or rows with the key `text`.

    Attributes:
        use: a corpus (see `pipeline.data.corpus`): a built-in name, or `file.py:Class`.
        documents: how many documents to generate.
        options: arguments of the corpus.
        source: `@stage` or a JSONL file, instead of `use`; `from` in a recipe.
    """

    use: str | None = None
    documents: Annotated[int, Field(gt=0)] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    source: DataRef | None = Field(default=None, alias="from")

    @model_validator(mode="after")
    def _one_kind(self) -> CorpusSpec:
        if (self.use is None) == (self.source is None):
            raise ValueError("a corpus has either `use` (generated) or `from` (rows)")
        if (self.use is None) != (self.documents is None):
            raise ValueError("`documents` says how many a generated corpus (`use`) makes")
        return self


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


CorpusField = Annotated[list[CorpusSpec], Field(min_length=1), BeforeValidator(_list)]
"""Corpora in a recipe: one, or a list of several."""


def faults(corpus: Sequence[CorpusSpec], base: Path) -> Iterator[Fault]:
    """A generated corpus that does not exist, or has no such option."""
    for index, spec in enumerate(corpus):
        if spec.use is not None:
            try:
                corpora.check(spec.use, spec.options, base)
            except corpora.CorpusError as error:
                yield ("corpus", index), str(error)


def texts(
    corpus: Sequence[CorpusSpec], context: StageContext[Any], unclean: Contamination | None = None
) -> Iterator[str]:
    """The documents of all corpora, one corpus after another; without those that ask what a test set asks.

    Raises:
        DataError: a row without a text, or a file that cannot be read.
        CorpusError: an impossible option of a generated corpus.
    """
    for document in _documents(corpus, context):
        if unclean is None or unclean.clean([document], str):
            yield document


def _documents(corpus: Sequence[CorpusSpec], context: StageContext[Any]) -> Iterator[str]:
    from pipeline.data import mixture

    for spec in corpus:
        if spec.use is not None and spec.documents is not None:
            made = corpora.load(spec.use, context.resolved(spec.options), context.base)
            yield from made.documents(spec.documents, context.seed)
        elif spec.source is not None:
            for row in mixture.read(context.data_path(spec.source)):
                if not isinstance(row.get("text"), str):
                    raise mixture.DataError(f"{spec.source}: a row without a text: {str(row)[:200]}")
                yield row["text"]
