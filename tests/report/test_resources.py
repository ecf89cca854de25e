"""What stages took: from manifests and events, and nothing where nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.report.page import write_report
from pipeline.report.resources import gpu_hours, uses
from pipeline.report.run_data import read_run
from tests.report import nano_run
from tests.report.test_page import FEW, read


def test_time_memory_and_speed_of_a_stage(tmp_path: Path) -> None:
    events = [
        {"step": 10, "tokens_per_second": 100.0, "mfu": 0.3, "seconds/sampling": 1.0, "seconds/training": 3.0},
        {"step": 40, "tokens_per_second": 900.0, "mfu": 0.5, "seconds/sampling": 2.0, "seconds/training": 2.0},
        {"step": 50, "tokens_per_second": 300.0, "mfu": 0.4, "seconds/sampling": 1.0, "seconds/waiting": 0.001},
    ]
    run = nano_run.build(tmp_path / "run", FEW, events={"zero": events, "base": []})
    path = next((run / "stages" / "zero").glob("*/manifest.json"))
    manifest = json.loads(path.read_text())
    manifest |= {"work_seconds": 56.0, "gpus": ["GPU-1", "GPU-2"], "memory": {"host": 3.5e9, "gpu": 61.2e9}}
    path.write_text(json.dumps(manifest))
    found = {use.stage: use for use in uses(read_run(run))}
    zero = found["zero"]
    assert (zero.seconds, zero.work, zero.gpus) == (112.0, 0.5, 2)
    assert zero.gpu_hours == pytest.approx(2 * 112 / 3600) == gpu_hours(list(found.values()))
    assert (zero.host, zero.gpu, zero.tokens, zero.mfu) == (3.5e9, 61.2e9, 300.0, 0.4)
    assert zero.parts == pytest.approx({"training": 90 / 170, "sampling": 80 / 170}, abs=1e-4)
    base = found["base"]
    assert (base.gpus, base.gpu_hours, base.host, base.gpu, base.mfu, base.parts) == (None,) * 6
    write_report(run)
    text = " ".join(read(run).text.split())
    assert "GPU-hours0.0622" in text and "61.2 GB" in text and "40.0" in text
    assert "training 53 %, sampling 47 %" in text


def test_columns_of_what_nobody_measured_are_left_out(nano: Path) -> None:
    text = read(nano).text
    assert (
        "Tokens/s" in text
        and "GPU memory" not in text
        and "MFU" not in text.split("What it took")[1].split("Memory is")[0]
    )
