"""Generated text to pre-train on: a corpus yields documents, as many as are asked for.

A corpus is one module beside this one, or `file.py:Class` in a recipe::

    corpus: {use: my_corpus.py:Sums, documents: 20000, options: {digits: 2}}
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rewards.registry import RewardError, check_options, check_types, find, nearest

BUILTIN: Mapping[str, str] = {
    "chain": "pipeline.corpora.chain:ChainCorpus",
    "needle": "pipeline.corpora.needle:NeedleCorpus",
}
"""Built-in corpora: name -> module:class."""


class CorpusError(ValueError):
    """A corpus that does not exist, or an option that it does not have."""


class Corpus(ABC):
    """Base of all corpora. Constructor arguments are the options that a recipe may set; all have defaults."""

    @abstractmethod
    def documents(self, n: int, seed: int) -> Iterator[str]:
        """The first `n` documents in the order that the seed gives, without any end-of-sequence token."""


def load(use: str, options: Mapping[str, Any], base: Path | None = None) -> Corpus:
    """Build a corpus.

    Args:
        use: a built-in name, `package.module:Class`, or `file.py:Class`.
        options: constructor arguments.
        base: folder against which a relative file path is read.

    Raises:
        CorpusError: unknown corpus or option.
    """
    found = check(use, options, base)
    try:
        corpus, fault = found(**options), None
    except (TypeError, AttributeError) as error:
        corpus, fault = None, error
    try:
        check_types(f"corpus {use!r}", found, options)
    except RewardError as error:
        raise CorpusError(str(error)) from error
    if corpus is None:
        raise CorpusError(f"corpus {use!r}: {fault}") from fault
    return corpus


def check(use: str, options: Mapping[str, Any], base: Path | None = None) -> type[Corpus]:
    """Find a corpus's class and make sure that it has these options; see `load` for the arguments and errors."""
    if ":" not in use and use not in BUILTIN:
        raise CorpusError(
            f"there is no corpus {use!r}{nearest(use, BUILTIN)}. Known: {', '.join(sorted(BUILTIN)) or 'none'};"
            " a corpus of your own is named by 'file.py:Class'"
        )
    try:
        found = find(BUILTIN.get(use, use), base).target
        check_options(f"corpus {use!r}", found, options)
    except RewardError as error:
        raise CorpusError(str(error)) from error
    if not (inspect.isclass(found) and issubclass(found, Corpus)):
        raise CorpusError(f"{use!r} is not a subclass of pipeline.data.corpus.Corpus")
    return found
