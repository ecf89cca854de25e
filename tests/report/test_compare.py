"""Several runs on one page: their differences, with intervals, and what was set differently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.report.compare_page import write_comparison
from pipeline.report.comparison import compare, labels, leaves
from pipeline.report.curves import compared
from tests.report import nano_run
from tests.report.test_browser import (
    COVERED,
    LEAST_CONTRAST,
    NARROW,
    OVERLAPS,
    SEEN_TEXT,
    WIDE,
    browse,
    complaints,
    detail,
    enter,
    show,
)
from tests.report.test_page import read

STAGES: dict[str, dict[str, Any]] = {name: nano_run.STAGES[name] for name in ("base", "zero", "score")}


def evaluated(wrong: set[int], sampling: dict[str, Any] | None = None, problems: int = 60) -> dict[str, Any]:
    """Metrics and samples of an evaluation in which `zero` gets some problems wrong, and `base` the even ones."""
    rows = [
        {
            "task": "chain", "id": f"p{at}", "question": f"question {at}", "answer": str(at % 7), "model": model,
            "completion": f"<think>so {at}</think>{at % 7}", "extracted": str(at % 7), "tokens": 9, "finish": "stop",
            "status": "wrong" if at in gone else "correct", "score": float(at not in gone),
            "rewards": {"accuracy": float(at not in gone)},
        }
        for model, gone in (("base", set(range(0, problems, 2))), ("zero", wrong)) for at in range(problems)
    ]  # fmt: skip
    scores = {}
    for model in ("base", "zero"):
        right = sum(row["score"] for row in rows if row["model"] == model) / problems
        low, high = nano_run.wilson(right, problems)
        entry = {"n": problems, "samples": 1, "pass@1": right, "low": low, "high": high, "tokens": 9.0}
        scores[model] = {"chain/test": entry}
    given = {"engine": "vllm", "temperature": 0.6, "seed": 0} | (sampling or {})
    return {"metrics": {"score": {"sampling": given, "scores": scores}}, "samples": {"score": rows}}


def two_runs(folder: Path) -> tuple[Path, Path]:
    """One with a faster learning rate, in which `zero` solves what it does not solve in the other, but for two."""
    first, second = set(range(0, 60, 3)), {0, 1}
    other = STAGES | {"zero": STAGES["zero"] | {"trainer": {"num_generations": 8, "learning_rate": 1e-5}}}
    slow = nano_run.build(folder / "slow", STAGES, **evaluated(first))
    fast = nano_run.build(folder / "fast", other, **evaluated(second, {"seed": 1}))
    return slow, fast


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return two_runs(tmp_path_factory.mktemp("pair"))


def test_the_same_problems_are_paired_and_the_difference_has_an_interval(pair: tuple[Path, Path]) -> None:
    found = compare(pair)
    rows = {row.model: row for row in found.rows}
    assert list(rows) == ["base", "zero"] and found.labels == ["slow", "fast"]
    (change,) = rows["zero"].differences
    assert change is not None and change.paired and change.problems == 60 and change.clear(2)
    assert change.value == pytest.approx(18 / 60) and 0.15 < change.low < 0.3 < change.high < 0.45
    (none,) = rows["base"].differences
    assert none is not None and none.value == 0 and not none.clear() and 0 < none.high < 0.05
    (words,) = found.words()
    assert words.startswith(
        "`fast` against `slow`: of 2 scores, 1 clearly higher and 0 clearly lower. The largest difference is 30.0"
        " points more for `zero` on chain/test (95 % interval "
    )


def test_differing_settings_are_named_leaf_by_leaf(pair: tuple[Path, Path]) -> None:
    found = {setting.name: setting.values for setting in compare(pair).settings}
    assert found == {
        "name": ["slow", "fast"],
        "stages.zero.trainer.num_generations": ["16", "8"],
        "stages.zero.trainer.learning_rate": [None, "1e-05"],
    }
    assert compare(pair).surroundings == []
    assert dict(leaves({"a": {"b": [1, 2]}, "c": [{"d": 1}, "e"], "f": {}})) == {
        "a.b": "[1, 2]", "c.0.d": "1", "c.1": "e", "f": "{}",
    }  # fmt: skip


def test_other_sampling_and_missing_scores_are_said(tmp_path: Path) -> None:
    first = nano_run.build(tmp_path / "a", STAGES, **evaluated({0}))
    second = nano_run.build(tmp_path / "b", STAGES, **evaluated({0}, {"temperature": 1.0}, problems=40))
    third = nano_run.build(tmp_path / "c", STAGES, waiting=("score",))
    found = compare([first, second, third])
    zero = next(row for row in found.rows if row.model == "zero")
    assert zero.remark == "sampled differently: temperature 0.6 / 1.0 / –"
    assert zero.differences[0] is not None and not zero.differences[0].paired and zero.differences[1] is None
    assert found.words()[1] == "`c` and `a` have no score in common."
    assert [row.model for row in compare([third, first]).rows] == ["base", "zero"]


def test_curves_lie_over_each_other(pair: tuple[Path, Path]) -> None:
    found = compare(pair)
    drawn = {stage.stage: stage.panels for stage in compared(list(zip(found.labels, found.runs, strict=True)))}
    assert list(drawn) == ["base", "zero"]
    reward = next(panel for panel in drawn["zero"] if panel.title == "Reward")
    assert "slow ends at" in reward.svg and "fast ends at" in reward.svg


def test_runs_of_one_name_are_told_apart_by_their_folders() -> None:
    assert labels([Path("/a/x/r1"), Path("/a/y/r1")]) == ["x/r1", "y/r1"]
    with pytest.raises(ValueError, match="twice"):
        labels([Path("/a/r1"), Path("/a/../a/r1")])


def test_the_command_writes_one_folder(pair: tuple[Path, Path], tmp_path: Path) -> None:
    slow, fast = map(str, pair)
    command = CliRunner()
    done = command.invoke(app, ["report", slow, fast, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    text = " ".join(read(tmp_path / "out").text.split())
    assert "stages.zero.trainer.num_generations" in text and "+30.0" in text and "Nothing differs in machine" in text
    assert {path.name.split("-")[0] for path in (tmp_path / "out" / "report-data").iterdir()} == {"index", "texts"}
    told = json.loads(command.invoke(app, ["report", slow, fast, "--json"]).stdout)
    assert told["settings"]["stages.zero.trainer.num_generations"] == ["16", "8"]
    assert told["differences"][1]["difference"][0]["paired"] is True
    for arguments, expected in (
        ([slow, fast], "--out"),
        ([slow, slow, "--out", str(tmp_path / "x")], "given twice"),
        ([slow, str(tmp_path), "--out", str(tmp_path / "x")], "is not the folder of a run"),
        ([slow, fast, "--watch"], "--watch"),
    ):
        refused = command.invoke(app, ["report", *arguments])
        assert refused.exit_code == 2 and expected in refused.output, (arguments, refused.output)
    alone = command.invoke(app, ["report", slow, "--out", str(tmp_path / "alone")])
    assert alone.exit_code == 0 and (tmp_path / "alone" / "report.html").is_file()
    assert write_comparison(pair, tmp_path / "out").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_runs_are_compared_on_any_screen(
    browser: webdriver.Chrome, pair: tuple[Path, Path], tmp_path: Path, scheme: str, width: int
) -> None:
    write_comparison(pair, tmp_path)
    show(browser, tmp_path, scheme, width)
    browse(browser)
    assert enter(browser, "text", "so 3")[1] == "44 of 250 samples"
    assert enter(browser, "stage", "fast · score")[1] == "22 of 250 samples"
    enter(browser, "model", "zero")
    browser.find_element(By.CSS_SELECTOR, ".row").click()
    assert "fast · zero" in detail(browser, "right answer")
    others = Select(browser.find_element(By.ID, "browse-against"))
    assert {option.text[:-2] for option in others.options[1:]} == {"slow · base", "slow · zero", "fast · base"}
    others.select_by_visible_text(next(option.text for option in others.options if "slow · zero" in option.text))
    detail(browser, "difference")
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script(OVERLAPS, COVERED) == []
    assert [entry for entry in browser.execute_script(SEEN_TEXT) if entry[0] < LEAST_CONTRAST] == []
    assert complaints(browser) == []
