from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from pipeline.report.page import write_report
from tests.browser import chromium
from tests.report import nano_run


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished nano chain, with its report written; `cpu_seconds` beside it says how long that took."""
    run = nano_run.build(tmp_path_factory.mktemp("runs") / "nano-r1")
    started = time.process_time()
    write_report(run)
    (run.parent / "cpu_seconds").write_text(str(time.process_time() - started))
    return run


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose models, tasks and texts try everything to break the page, with its report written."""
    run = nano_run.hostile(tmp_path_factory.mktemp("runs") / "hostile")
    write_report(run)
    return run


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 20,000 samples of its evaluation, with its report written."""
    stages = {name: nano_run.STAGES[name] for name in ("base", "zero", "score")}
    samples = {"score": nano_run.many_samples(20_000), "zero": []}
    run = nano_run.build(tmp_path_factory.mktemp("runs") / "large", stages, samples=samples)
    write_report(run)
    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        started.get("about:blank")
        yield started
