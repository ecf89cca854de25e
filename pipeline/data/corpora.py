"""What stages share that train on plain text: where the text comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.context import StageContext
from pipeline.data import corpus as corpora
from pipeline.data.cleaning import Cleaner, Seen
from pipeline.files.columns import FieldError, lookup
from pipeline.schema.hub import RowsRef
from pipeline.schema.pieces import Fault
from pipeline.schema.strict import Strict


class CorpusSpec(Strict):
    """Text to train on: generated, or rows with the key `text`.

    Attributes:
        use: a corpus (see `pipeline.data.corpus`): a built-in name, or `file.py:Class`.
        documents: how many documents to generate.
        options: arguments of the corpus.
        source: `@stage`, files or `{hub: …}`, instead of `use`; `from` in a recipe.
        text: the field with the text of a row, of rows.
    """

    use: str | None = None
    documents: Annotated[int, Field(gt=0)] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    source: RowsRef | None = Field(default=None, alias="from")
    text: str = "text"

    @model_validator(mode="after")
    def _one_kind(self) -> CorpusSpec:
        if (self.use is None) == (self.source is None):
            raise ValueError("a corpus has either `use` (generated) or `from` (rows)")
        if (self.use is None) != (self.documents is None):
            raise ValueError("`documents` says how many a generated corpus (`use`) makes")
        if self.use is not None and self.text != "text":
            raise ValueError("`text` names a field of rows (`from`)")
        return self


def _list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


CorpusField = Annotated[list[CorpusSpec], Field(min_length=1), BeforeValidator(_list)]
"""Corpora in a recipe: one, or a list of several."""


def faults(corpus: Sequence[CorpusSpec], base: Path) -> Iterator[Fault]:
    """A generated corpus that does not exist, or has no such option; of a built-in one also an impossible value.

    A user's corpus may be costly to build, and its options may name stages that have not run: it is built when used.
    """
    for index, spec in enumerate(corpus):
        if spec.use is not None:
            look = corpora.load if spec.use in corpora.BUILTIN else corpora.check
            try:
                look(spec.use, spec.options, base)
            except corpora.CorpusError as error:
                yield ("corpus", index), str(error)


def texts(corpus: Sequence[CorpusSpec], context: StageContext[Any], cleaner: Cleaner | None = None) -> Iterator[str]:
    """The documents of all corpora, one corpus after another; without those that ask what a test set asks, and rows
    that came before.

    Raises:
        DataError: a row without a text, or a file that cannot be read.
        CorpusError: an impossible option of a generated corpus.
    """
    seen = Seen()
    for spec in corpus:
        found = _generated(spec, context) if spec.source is None else documents(spec, context.data_path)
        for place, document in found:
            if cleaner is None or cleaner.keeps(document, place, seen=None if spec.use else seen):
                yield document


def _generated(spec: CorpusSpec, context: StageContext[Any]) -> Iterator[tuple[str, str]]:
    made = corpora.load(str(spec.use), context.resolved(spec.options), context.base)
    for number, document in enumerate(made.documents(spec.documents or 0, context.seed), start=1):
        yield f"{spec.use}, document {number}", document


def documents(spec: CorpusSpec, locate: Callable[[str], Path]) -> Iterator[tuple[str, str]]:
    """The documents of a corpus of rows, each with its place; see `texts` for the errors."""
    from pipeline.data import mixture

    for row in mixture.raw(spec.source or "", locate):
        try:
            text = lookup(row, spec.text)
        except FieldError as error:
            raise mixture.DataError(f"{row.place}: {error}") from error
        if not isinstance(text, str):
            raise mixture.DataError(f"{row.place}: a row without a text: {str(row)[:200]}")
        yield row.place, text
