"""The numbers: what is shown, what is withheld, and which artifact counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.report.run_data import parameters, read_run
from pipeline.report.scores import build_table
from pipeline.report.summary import summarise, terminal_table
from tests.report import nano_run

TWO = {
    "base": {"kind": "import_model", "model": "some/model"},
    "zero": {"kind": "grpo", "model": "@base"},
    "score": {"kind": "evaluate", "models": ["@base", "@zero"]},
}
ENTRY = {"n": 100, "samples": 2, "pass@1": 0.5, "low": 0.4, "high": 0.6}


def scored(path: Path, scores: dict[str, Any], **more: Any) -> Path:
    metrics = {"sampling": {"engine": "vllm", "temperature": 0.6}, "scores": scores, **more}
    return nano_run.build(path, TWO, metrics={"score": metrics})


def test_summary_holds_every_finished_stage_and_score(nano: Path) -> None:
    found = summarise(nano)
    assert set(found["stages"]) == set(nano_run.STAGES)
    assert found["stages"]["zero"]["kind"] == "grpo" and found["stages"]["zero"]["seconds"] == 112.0
    assert found["stages"]["samples"]["metrics"]["dropped"]["duplicate"] == 611
    assert list(found["table"]) == ["base", "zero", "dev1", "dev2", "dev3", "r1", "student", "student_rl"]
    entry = found["table"]["zero"]["chain/test"]
    assert (entry["pass@1"], entry["n"], entry["samples"]) == (0.8125, 400, 4)
    assert entry["sampling"]["temperature"] == 0.6
    json.dumps(found, allow_nan=False)


def test_importing_and_summarising_draws_nothing(nano: Path) -> None:
    code = (
        "import sys, pathlib; from pipeline.report.summary import summarise;"
        f"summarise(pathlib.Path({str(nano)!r})); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "numpy", "jinja2", "torch", "transformers", "trl"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "entry",
    [
        {key: value for key, value in ENTRY.items() if key != "n"},
        {key: value for key, value in ENTRY.items() if key != "samples"},
        ENTRY | {"n": 0},
        ENTRY | {"n": -3},
        ENTRY | {"n": "many"},
        ENTRY | {"n": True},
    ],
)
def test_a_score_without_n_is_withheld(tmp_path: Path, entry: dict[str, Any]) -> None:
    run = scored(tmp_path / "run", {"base": {"t": entry}, "zero": {"t": ENTRY}})
    assert list(summarise(run)["table"]) == ["zero"]
    (group,) = build_table(read_run(run)).groups
    assert group.scores["base"].values == {} and "without" in group.scores["base"].withheld


def test_a_score_without_sampling_settings_is_withheld(tmp_path: Path) -> None:
    run = scored(tmp_path / "run", {"base": {"t": ENTRY}}, sampling=None)
    assert summarise(run)["table"] == {}


def test_broken_scores_break_nothing(tmp_path: Path) -> None:
    scores = {"base": None, "zero": {"t": 3, "u": ENTRY | {"pass@1": float("nan"), "tokens": "long"}}}
    found = summarise(scored(tmp_path / "run", scores))
    assert found["table"] == {
        "zero": {"u": {**ENTRY, "pass@1": None, "tokens": "long", "sampling": found["table"]["zero"]["u"]["sampling"]}}
    }


def test_best_is_marked_among_equals_and_only_for_scores(tmp_path: Path) -> None:
    scores = {
        name: {"t": ENTRY | {"pass@1": value, "tokens": 10 * value}}
        for name, value in (("base", 0.5), ("zero", 0.7), ("x/hub", 0.7))
    }
    table = build_table(read_run(scored(tmp_path / "run", scores)))
    (group,) = table.groups
    assert table.models == ("x/hub", "base", "zero")  # strangers first, then the chain
    marked = {metric.key: group.best(metric) for metric in group.metrics()}
    assert marked == {"pass@1": {"zero", "x/hub"}, "tokens": set()}


def test_scores_sampled_in_different_ways_do_not_share_a_row(tmp_path: Path) -> None:
    stages = TWO | {"greedy": {"kind": "evaluate", "model": "@zero"}, "again": {"kind": "evaluate", "model": "@zero"}}
    at = {"engine": "vllm", "temperature": 0.6}
    run = nano_run.build(
        tmp_path / "run",
        stages,
        metrics={
            "score": {"sampling": at, "scores": {"base": {"t": ENTRY}, "zero": {"t": ENTRY}}},
            "greedy": {"sampling": at | {"temperature": 0}, "scores": {"zero": {"t": ENTRY | {"pass@1": 0.9}}}},
            "again": {"sampling": at, "scores": {"zero": {"t": ENTRY | {"pass@1": 0.8}}}},
        },
    )
    groups = build_table(read_run(run)).groups
    assert [set(group.scores) for group in groups] == [{"base", "zero"}, {"zero"}, {"zero"}]
    zero = summarise(run)["table"]["zero"]
    assert {task: entry["pass@1"] for task, entry in zero.items()} == {"t": 0.5, "t (greedy)": 0.9, "t (again)": 0.8}


def test_only_the_artifact_of_the_current_fingerprint_counts(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", TWO)
    old = run / "stages" / "zero" / ("0" * 12)
    (run / "stages" / "zero" / nano_run.fingerprint("zero")[:12]).rename(old)
    assert set(summarise(run)["stages"]) == {"base", "score"}
    assert read_run(run).stages["zero"].state == "waiting"


def test_halved_run_says_what_is_missing(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", unfinished=("r1",), waiting=("score",))
    found = summarise(run)
    assert set(nano_run.STAGES) - set(found["stages"]) == {"r1", "score"} and found["table"] == {}
    printed = terminal(run)
    assert (
        "10 of 12 stages finished" in printed and "r1 began and did not finish yet. score did not begin yet." in printed
    )


def test_terminal_shows_scores_with_n_and_interval(nano: Path) -> None:
    lines = terminal(nano).splitlines()
    heading = next(line for line in lines if line.startswith("model"))
    assert heading.split()[:4] == ["model", "n", "samples", "pass@1"]
    zero = [line.split() for line in lines if line.startswith("zero")][-1]
    assert zero[:5] == ["zero", "400", "4", "81.2", "[77.1–84.8]"]


def test_terminal_reads_no_markup_in_foreign_words(tmp_path: Path) -> None:
    run = scored(tmp_path / "run", {"[bold]x[/oops]": {"[red]t": ENTRY}})
    assert "[bold]x[/oops]" in terminal(run)


def test_parameters_are_counted_from_weight_files(nano: Path) -> None:
    stages = read_run(nano).stages
    assert parameters(stages["base"]) == 1_020_000 and parameters(stages["student"]) == 310_000
    assert parameters(stages["samples"]) is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        summarise(tmp_path)


def terminal(run: Path) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(terminal_table(run))
    return console.export_text()
