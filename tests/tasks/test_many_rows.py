"""Rows that do not fit into memory: reading and tokenising them does not depend on how many there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet


def test_two_hundred_thousand_rows_stay_on_disk(tmp_path: Path) -> None:
    """Reading and tokenising them takes hardly more memory than 2,000 rows do, and none of what lies in their texts."""
    few, many, unread = 2000, 200_000, "x" * 1500
    schema = pa.schema([(name, pa.string()) for name in ("problem", "solution", "source")])
    for name, count in (("few", few), ("many", many)):
        with parquet.ParquetWriter(tmp_path / f"{name}.parquet", schema) as sink:
            for start in range(0, count, few):
                said = [" ".join(str(n)) for n in range(start, start + few)]
                columns = {"problem": [f"say {n}" for n in said], "solution": said}
                sink.write_table(pa.table({**columns, "source": [f"{unread} {n}" for n in said]}, schema))
    command = [sys.executable, "-m", "tests.tasks.streamed", str(tmp_path), "few.parquet", "many.parquet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    digits = [sum(len(str(n)) for n in range(count)) for count in (few, many)]
    for found, count, number in zip((first, second), (few, many), digits, strict=True):
        assert found["rows"] == count - 1  # 17 is in a test set
        assert found["tokens"] == 2 * (number - 2) + 2 * (count - 1)  # `say`, the digits twice, the end
    more, text = second["peak"] - first["peak"], many * len(unread)
    assert more < text / 3, f"{more / 2**20:.0f} MiB more for {many:,} rows, whose texts have {text / 2**20:.0f} MiB"
