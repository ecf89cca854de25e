"""The reference page says what configs and docstrings say, and they say something of every field."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.data.corpus import BUILTIN as CORPORA
from pipeline.data.corpus import check as corpus_class
from pipeline.stages.registry import KINDS
from pipeline.tasks.base import BUILTIN as TASKS
from pipeline.tasks.base import check as task_class
from rewards.registry import BUILTIN as REWARDS
from rewards.registry import find
from scripts import write_reference as reference

FEWEST_WORDS = 3
PARTS = {part for kind in KINDS for part in reference.parts(kind)} | {
    p for many in reference.SHARED.values() for p in many
}


def fields() -> Iterator[tuple[str, str]]:
    """Every field of a recipe's parts, and every option of tasks, corpora and rewards, with what is said of it."""
    for part in PARTS:
        yield from ((f"{part.__name__}.{name}", reference.sentence(part, name)) for name in part.model_fields)
    for name in TASKS:
        yield from ((f"task {name}: {o}", told) for o, _, told in reference.options(task_class(name, {})))
    for name in CORPORA:
        yield from ((f"corpus {name}: {o}", told) for o, _, told in reference.options(corpus_class(name, {})))
    for name in REWARDS:
        yield from ((f"reward {name}: {o}", told) for o, _, told in reference.options(find(name).target))


def test_the_reference_is_up_to_date() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python scripts/write_reference.py"


def test_every_field_and_option_has_a_sentence() -> None:
    assert len(dict(fields())) > 250
    assert not [name for name, told in fields() if len(told.split()) < FEWEST_WORDS]


@pytest.mark.parametrize("part", sorted(PARTS, key=lambda part: part.__name__), ids=lambda part: part.__name__)
def test_every_field_stands_in_the_page_with_its_default(part: type) -> None:
    """A field has a row under its own part, or under the base from which the part has it unchanged."""
    page = reference.PAGE.read_text(encoding="utf-8")
    for name, field in part.model_fields.items():
        row = f"| `{field.alias or name}` | {reference.default(field)} | "
        assert row in page, f"{part.__name__}: {row}"
