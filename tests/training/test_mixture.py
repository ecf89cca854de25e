"""Sources of rows: what is taken, how often, and what is wrong with a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.data.mixture import DataError, DataSource, mixed, read
from tests.stages.driving import context_of


def source(folder: Path, name: str, rows: int) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(rows)))
    return path.name


def drawn(folder: Path, *sources: dict[str, object], seed: int = 1) -> Counter[str]:
    config = {"kind": "sft", "model": "nowhere", "data": list(sources)}
    context = context_of(folder, f"mix-{seed}-{len(list(folder.iterdir()))}", config, {}, seed)
    return Counter(row["text"] for row in mixed(context.config.data, context))


def test_weights_repeat_rows_and_take_limits_them(tmp_path: Path) -> None:
    one, two = source(tmp_path, "one", 10), source(tmp_path, "two", 8)
    rows = drawn(tmp_path, {"from": one, "weight": 2.5}, {"from": two, "take": 3})
    counts = Counter(count for text, count in rows.items() if text.startswith("one"))
    assert counts == {2: 5, 3: 5}
    assert sum(count for text, count in rows.items() if text.startswith("two")) == 3


def test_the_seed_chooses_what_is_taken(tmp_path: Path) -> None:
    rows = {"from": source(tmp_path, "many", 100), "take": 10}
    assert drawn(tmp_path, rows, seed=1) == drawn(tmp_path, rows, seed=1)
    assert drawn(tmp_path, rows, seed=1) != drawn(tmp_path, rows, seed=2)


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"few.jsonl has 2 rows, fewer than the 3"):
        drawn(tmp_path, {"from": source(tmp_path, "few", 2), "take": 3})
    with pytest.raises(DataError, match=r"none.jsonl has no rows"):
        drawn(tmp_path, {"from": source(tmp_path, "none", 0)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n[1]\n", ":2 is not a JSON object"),
        ("{}\n\n{", ":3 is not JSON"),
        ('{}\n{"text": "\\ud800"}', r":2 is not text: '\\ud800' is half of a character"),
        ('{"messages": [{"role": "user", "content": "\\uDE00\\uD83D"}]}', r":1 is not text: '\\ude00'"),
        ('{"\\udfff": 1}', ":1 is not text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        list(read(tmp_path / "bad.jsonl"))


def test_escaped_characters_are_read(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text('{"text": "\\ud83d\\ude00 \\u00e9 \\\\ud800"}')
    assert list(read(tmp_path / "good.jsonl")) == [{"text": "😀 é \\ud800"}]


def test_a_source_may_be_a_plain_string() -> None:
    from pipeline.stages.sft import SftConfig

    config = SftConfig.model_validate({"model": "m", "data": ["@samples"]})
    assert config.data == [DataSource.model_validate({"from": "@samples"})]
