"""Reads and tokenises rows of files for fine-tuning, as a stage does, in a process of its own: see `test_many_rows`.

    python -m tests.tasks.streamed FOLDER few.parquet many.parquet

Prints for each file what became of its rows, and the process's peak of memory so far. The peak is `VmHWM`, which the
kernel keeps for this program alone: what `getrusage` says begins with that of the process that started this one.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from pipeline.context import StageContext
from pipeline.data import examples, mixture
from pipeline.data.vocabulary import VocabularySpec, build
from pipeline.schema.pieces import StageConfig
from pipeline.stages.registry import config_class
from pipeline.training.decontaminate import contamination


def peak() -> int:
    """Bytes that this program has had in memory at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Read the files that the command line names."""
    folder = Path(sys.argv[1])
    tokenizer = build(VocabularySpec(kind="words"), ["say 0 1 2 3 4 5 6 7 8 9"])
    (folder / "test.jsonl").write_text(json.dumps({"question": "Say 1 7", "answer": "17"}) + "\n")
    for name in sys.argv[2:]:
        source = {"from": name, "columns": {"prompt": "problem", "completion": "solution"}}
        test = {"use": "jsonl", "options": {"path": "test.jsonl", "test_share": 1}}
        config: StageConfig = config_class("sft").model_validate(
            {"kind": "sft", "model": "m", "data": [source], "decontaminate": [test]}
        )
        context = StageContext("sft", config, {}, folder, folder, folder, 0, folder / "events.jsonl")
        cleaner = contamination(context.config.decontaminate, context, False)
        rows = mixture.mixed(context.config.data, context, cleaner)
        dataset, account = examples.completions(tokenizer, rows, 64, "error", file=folder / "examples.arrow")
        print(json.dumps({"rows": len(dataset), "tokens": account.tokens, "peak": peak()}), flush=True)


if __name__ == "__main__":
    main()
