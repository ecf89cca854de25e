"""Data files in every format: the same rows come out, each with its place; and what is broken is named."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import os
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import csv, ipc, parquet

from pipeline.data.mixture import DataError, DataSource, asked, shaped
from pipeline.files import formats
from pipeline.files.columns import FieldError, lookup, passes
from pipeline.files.rows import RowError
from pipeline.prompts.messages import conversation
from pipeline.recipe import RecipeError
from pipeline.recipe import load as load_recipe
from pipeline.tasks.base import TaskError, load

ROWS = [{"question": '1 + 1,\n"so"?', "answer": "2"}, {"question": "Ü", "answer": "007"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TABLE = pa.Table.from_pylist(ROWS)


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


def arrow(path: Path) -> None:
    with ipc.new_stream(str(path), TABLE.schema) as sink:
        sink.write_table(TABLE)


FORMATS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_bytes(LINES),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "rows.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "rows.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "rows.jsonl.zst": lambda path: path.write_bytes(zstd(LINES)),
    "lines.json": lambda path: path.write_bytes(LINES),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "within.json": lambda path: path.write_text(json.dumps({"version": "1", "data": ROWS}, indent=1)),
    "list.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "table.parquet": lambda path: parquet.write_table(TABLE, path),
    "table.csv": lambda path: csv.write_csv(TABLE, path),
    "table.tsv": lambda path: csv.write_csv(TABLE, path, csv.WriteOptions(delimiter="\t")),
    "table.arrow": arrow,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    found = list(formats.read(tmp_path / name))
    assert [row for _, row in found] == ROWS
    assert all(name in place for place, _ in found)
    problems = load("jsonl", {"path": str(tmp_path / name), "test_share": 0}).problems("train")
    assert {(p.question, p.answer) for p in problems} == {(row["question"], row["answer"]) for row in ROWS}


def test_patterns_and_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        parquet.write_table(pa.Table.from_pylist([{"question": name, "answer": 1}]), tmp_path / f"train-{name}.parquet")
    (tmp_path / "test.jsonl").write_text('{"question": "c", "answer": 1}\n')
    (tmp_path / "README.md").write_text("Not a row.")
    read = lambda path, **more: [row["question"] for _, row in formats.read(path, **more)]  # noqa: E731
    assert read(tmp_path / "*.parquet") == ["a", "b"]
    assert read(tmp_path) == ["a", "b"]
    assert read(tmp_path, split="test") == ["c"]
    with pytest.raises(RowError, match="has no split 'dev'; it has: train, test"):
        read(tmp_path, split="dev")
    with pytest.raises(RowError, match="there is no file or folder"):
        read(tmp_path / "*.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match="holds no data files"):
        read(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(RowError, match="is a pipe or a device"):
        read(tmp_path / "pipe.jsonl")


def test_what_stands_in_quotes_divides_no_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('"question, asked";answer\n1 + 1;2\n')
    assert [row for _, row in formats.read(tmp_path / "rows.csv")] == [{"question, asked": "1 + 1", "answer": "2"}]


@pytest.mark.parametrize("where", ["data: [PATH]", "data: [rows.jsonl], model: PATH", "tasks"])
@pytest.mark.parametrize("path", ["pipe.jsonl", "/dev/zero"])
def test_a_recipe_waits_for_no_pipe_and_reads_no_device(where: str, path: str, tmp_path: Path) -> None:
    """Neither ends, and what a process substitution such as `<(zcat rows.gz)` gives could be read once only."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    stage = f"{{kind: sft, model: some/model, {where.replace('PATH', path)}}}"
    if where == "tasks":
        stage = f"{{kind: evaluate, model: some/model, tasks: [{{use: jsonl, options: {{path: {path}}}}}]}}"
    elif "model" in where:
        stage = stage.replace("model: some/model, ", "")
    (tmp_path / "recipe.yaml").write_text(f"name: pipes\nstages:\n  one: {stage}\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "recipe.yaml")
    assert [issue for issue in error.value.issues if "is a pipe or a device" in str(issue)], str(error.value)
    assert len(error.value.issues) == 1


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_in_a_models_folder_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / name)
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: pipes\nstages:\n  one: {kind: sft, model: model, data: [rows.jsonl],"
        " trainer: {model_init_kwargs: {dtype: float32}}}\n"
        "  two: {kind: evaluate, models: ['@one', model], tasks: [gsm8k]}\n"
    )
    with pytest.raises(RecipeError, match=f"{name} is a pipe or a device, and not read"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "cannot read .*rows.jsonl.gz"),
        ("rows.jsonl.gz", LINES, "Not a gzipped file"),
        ("rows.jsonl.zst", zstd(LINES)[:-4], "cannot read .*rows.jsonl.zst"),
        ("rows.jsonl.xz", lzma.compress(LINES)[:20], "cannot read .*rows.jsonl.xz"),
        ("table.parquet", b"PAR1 nonsense", "cannot read .*table.parquet"),
        ("table.csv", b"a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("table.csv", b"a,a\n1,2\n", "two columns have the same name"),
        ("table.csv", b"", "cannot read .*Empty CSV"),
        ("table.csv", "a,b\n1,2\n".encode("utf-16"), "table.csv is encoded in UTF-16: save it as UTF-8"),
        ("table.csv", "Größe,b\n1,2\n".encode("latin-1"), "cannot read .*table.csv: 'utf-8' codec can't decode"),
        (
            "list.json",
            b'[{"a": 1}, {"a": "\\ud800"}]',
            r"list.json, row 2 is not text: '\\ud800' is half of a character",
        ),
        ("table.xlsx", b"PK\x03\x04", "table.xlsx is in none of the formats that are read: .jsonl"),
        ("deep.jsonl", b'{"a": ' + b"[" * 99_999, "deep.jsonl:1 is nested too deeply"),
        ("deep.json", b"[" * 99_999, "deep.json is nested too deeply"),
        ("list.json", b"[1]", "list.json, row 1: is not a JSON object"),
        ("list.json", b"[{", "cannot read .*list.json"),
        ("table.arrow", b"nonsense", "cannot read .*table.arrow"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_what_is_broken_is_one_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowError, match=words) as caught:
        list(formats.read(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "lines.json", "list.json", "table.csv"])
def test_the_mark_that_some_editors_put_before_a_text_is_no_part_of_it(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    content = (tmp_path / name).read_bytes()
    marked = gzip.compress(codecs.BOM_UTF8 + LINES) if name.endswith(".gz") else codecs.BOM_UTF8 + content
    (tmp_path / name).write_bytes(marked)
    assert [row for _, row in formats.read(tmp_path / name)] == ROWS


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.csv.gz", "table.csv.zst"])
@pytest.mark.parametrize("sign", [";", "\t", ","], ids=["semicolon", "tab", "comma"])
def test_columns_are_divided_by_what_divides_the_first_line(name: str, sign: str, tmp_path: Path) -> None:
    """As spreadsheets write them where the comma belongs to numbers; further down, other signs are text."""
    pack = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)
    lines = codecs.BOM_UTF8 + f'question{sign}answer\r\n"1{sign} 2; 3, 4"{sign}5\r\n'.encode()
    (tmp_path / name).write_bytes(pack(lines))
    assert [row for _, row in formats.read(tmp_path / name)] == [{"question": f"1{sign} 2; 3, 4", "answer": "5"}]


def test_gold_answers_of_a_parquet_file_that_are_numbers_or_stand_within_maps(tmp_path: Path) -> None:
    maps = pa.array([[("gold", "7")]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"question": ["a"], "number": [Decimal("5.50")], "within": maps})
    parquet.write_table(table, tmp_path / "rows.parquet")
    for answer, gold in {"number": "5.50", "within.gold": "7"}.items():
        options = {"path": str(tmp_path / "rows.parquet"), "test_share": 0, "answer": answer}
        assert [problem.answer for problem in load("jsonl", options).problems("train")] == [gold]


def test_columns_are_a_list(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    with pytest.raises(TaskError, match=r"columns is a list of fields, or a mapping: write \[level\]"):
        load("jsonl", {"path": str(tmp_path / "rows.jsonl"), "columns": "level"})


def test_fields_within_fields_and_filters() -> None:
    row = {"a.b": 1, "reward": {"truth": [3, 4]}, "level": "5", "tags": ["x", "y"], "rate": None}
    assert (lookup(row, "a.b"), lookup(row, "reward.truth.1")) == (1, 4)
    for name, words in {
        "reward.thruth": "no field reward.thruth (did you mean 'reward.truth'?); reward has: truth",
        "reward.truth.2": "no field reward.truth.2; reward.truth is a list of 2, counted from 0",
        "level.x": "no field level.x; level is '5', which has no fields",
        "levl": "no field levl (did you mean 'level'?); the row has: a.b, reward, level, tags, rate",
    }.items():
        with pytest.raises(FieldError, match=re.escape(words)):
            lookup(row, name)
    assert passes(row, {"level": [3, 5], "tags": "x", "a.b": 1})
    assert not passes(row, {"level": [6, 9]})
    assert not passes(row, {"rate": [0, 1]}), "what is empty is in no range"
    assert passes(row, {"level": ["4", "5"], "tags": ["y", "z"]})


USER, BOT = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "S"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, [USER, BOT]),
        (
            {
                "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
                "system": "Be short.",
            },
            [{"role": "system", "content": "Be short."}, USER, BOT],
        ),
        ({"conversations": [USER, BOT], "id": 7}, [USER, BOT]),
        (
            {
                "conversations": [
                    {"from": "human", "value": "2 + 2?"},
                    {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
                    {"from": "observation", "value": "4"},
                    {"from": "gpt", "value": "4"},
                ]
            },
            [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "4"}, BOT],
        ),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, [USER, BOT]),
        (
            {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "S", "history": [["2 + 2?", "4"]]},
            [{"role": "system", "content": "S"}, USER, BOT, {"role": "user", "content": "Add.\n\n2 and 2"}, BOT],
        ),
        ({"prompt": [USER], "completion": [BOT]}, [USER, BOT]),
        ({"prompt": [USER], "completion": "4"}, [USER, BOT]),
        ({"prompt": "2 + 2?", "completion": BOT}, [USER, BOT]),
        ({"messages": [{"from": "Human ", "value": "2 + 2?"}, {"from": "GPT", "value": "4"}]}, [USER, BOT]),
        ({"conversation": [{"role": "user", "value": "2 + 2?"}, BOT]}, [USER, BOT]),
        ({"conversations": {"from": ["human", "gpt"], "value": ["2 + 2?", "4"]}}, [USER, BOT]),
        ({"messages": json.dumps([USER, BOT])}, [USER, BOT]),
        ({"messages": [USER, BOT], "system": "S"}, [SYSTEM, USER, BOT]),
        ({"messages": [SYSTEM, USER, BOT], "system": "S"}, [SYSTEM, USER, BOT]),
        ({"messages": [USER, BOT], "system": None, "instruction": "x", "output": "y"}, [USER, BOT]),
    ],
)
def test_chats_in_the_shapes_that_people_have(row: dict[str, Any], messages: list[Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (found,) = shaped(DataSource.model_validate({"from": str(tmp_path / "rows.jsonl")}), Path)
    chat = conversation(found)
    assert chat is not None and chat.messages == messages
    assert "2 + 2?" in asked(found)


WHOLE = [USER, {"role": "assistant", "content": "5"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": [USER, BOT], "rejected": WHOLE, "score_chosen": 9.0},
        {"prompt": [USER], "chosen": [USER, BOT], "rejected": WHOLE},
        {"chosen": [USER, BOT], "rejected": WHOLE},
        {
            "conversations": [{"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {"chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5"},
        {"question": "2 + 2?", "chosen": "4", "rejected": "5"},
    ],
)
def test_pairs_in_the_shapes_that_people_have(row: dict[str, Any], tmp_path: Path) -> None:
    from pipeline.data.pairs import _items

    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    columns = {"prompt": "question", "chosen": "chosen", "rejected": "rejected"} if "question" in row else {}
    (found,) = shaped(DataSource.model_validate({"from": str(tmp_path / "rows.jsonl"), "columns": columns}), Path)
    for item, said in zip(_items(found, found.place, None), ("4", "5"), strict=True):
        assert (item.prompt.strip(), item.completion) == ("2 + 2?", said)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"conversations": [{"from": "narrator", "value": "x"}]},
            r"rows.jsonl:1: conversations\[0\].from is 'narrator'",
        ),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, r"conversations\[0\].value is a call of a tool"),
        ({"conversations": "x"}, "conversations is a list of turns"),
        ({"instruction": "x", "output": 3}, "output is a text"),
        ({"prompt": "other", "chosen": [USER, BOT], "rejected": WHOLE}, "do not begin with the prompt"),
        ({"messages": [SYSTEM, USER, BOT], "system": "T"}, r"system is another prompt than that of messages\[0\]"),
        ({"messages": "[{"}, "messages is a list of turns"),
    ],
)
def test_a_turn_that_no_chat_has_names_its_row(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=words):
        list(shaped(DataSource.model_validate({"from": str(tmp_path / "rows.jsonl")}), Path))
