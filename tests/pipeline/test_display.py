"""A run as people see it: on a terminal of 80 columns, and line by line in a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from pipeline.artifacts import Artifact
from pipeline.commands import display, pace
from pipeline.recipe import load
from pipeline.runner import graph
from pipeline.runner.observer import NOTE, PUBLISHING, Failure

GRPO = {
    "loss": 0.00123,
    "grad_norm": 1.5,
    "learning_rate": 1e-6,
    "reward": 0.8125,
    "reward_std": 0.1,
    "rewards/accuracy/score": 0.84375,
    "completions/mean_length": 1432.25,
    "completions/clipped_ratio": 0.02,
    "frac_reward_zero_std": 0.25,
    "kl": 0.0004,
    "tokens_per_second": 18250.0,
}
STAGES = 14


@pytest.fixture
def nodes(tmp_path: Path) -> list[graph.Node]:
    stages = [f"  s{n}: {{kind: import_model, model: some/model}}\n" for n in range(STAGES - 1)]
    stages.append("  reasoning-oriented-rl: {kind: grpo, model: '@s0', tasks: [countdown], rewards: [accuracy]}\n")
    (tmp_path / "r.yaml").write_text("name: r\nstages:\n" + "".join(stages))
    return list(graph.build(load(tmp_path / "r.yaml")).values())


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    at = [1000.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: at[0])
    return at


def finished(seconds: float) -> Artifact:
    return Artifact(Path("x"), {"seconds": seconds, "metrics": {"parameters": 1000}})


def follow(observer: display.Observer, nodes: list[graph.Node], now: list[float]) -> graph.Node:
    """Two of fourteen stages are done, one begins and makes three steps of forty seconds each."""
    by_name = {node.name: node for node in nodes}
    observer.planned([graph.Step(node, graph.State.NEW, "has not run yet") for node in nodes])
    for name in ("s0", "s1"):
        observer.started(by_name[name], graph.State.NEW)
        observer.finished(by_name[name], finished(30.0))
    node = by_name["reasoning-oriented-rl"]
    observer.started(node, graph.State.NEW)
    for step in (800, 801, 802):
        now[0] += 40
        observer.event(node, {"step": step, "total": 1600, "time": now[0], "epoch": 0.1, **GRPO})
    return node


def test_a_terminal_of_80_columns_shows_bar_count_time_left_three_numbers_and_the_run(
    nodes: list[graph.Node], now: list[float]
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)
    observer = display.TerminalObserver(console)  # drawn once, not live
    follow(observer, nodes, now)
    with console.capture() as captured:
        console.print(observer.progress.get_renderable())
    run, stage = (Text.from_ansi(line).plain for line in captured.get().splitlines())
    assert len(run) <= 80
    assert len(stage) <= 80
    assert "2/14" in run
    assert run.rstrip().endswith("stage 3 of 14, about 8:57:30 left"), run  # 798 steps of 40 s, and eleven times 30 s
    assert "━" in stage
    for part in ("reasoning…", "802/1600", "-8:52:00", "reward 0.812", "acc 0.844", "len 1,432"):
        assert part in stage, stage
    assert "…" not in stage.partition("reasoning…")[2]


def test_a_step_in_a_log_is_one_short_line(nodes: list[graph.Node], now: list[float]) -> None:
    console = Console(file=io.StringIO(), width=120)
    follow(display.PlainObserver(console, {"reasoning-oriented-rl": 42.5}), nodes, now)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[:2] == ["14 stages, 14 to run", "s0: started  stage 1 of 14"]
    assert lines[-5:-3] == [
        "reasoning-oriented-rl: started  stage 3 of 14",
        "reasoning-oriented-rl: a step: 128 rollouts of at most 1,024 tokens (8 groups of 16), trained on once;"
        " a step takes 8 passes of 16. All problems are asked once. A step should take about 42.5 s",
    ]
    assert lines[-3:] == [
        "reasoning-oriented-rl: 800/1600  reward 0.812  acc 0.844  len 1,432",
        "reasoning-oriented-rl: 801/1600  reward 0.812  acc 0.844  len 1,432  8:52:40 left",
        "reasoning-oriented-rl: 802/1600  reward 0.812  acc 0.844  len 1,432  8:52:00 left",
    ]


def test_one_stage_is_no_stages(nodes: list[graph.Node]) -> None:
    assert pace.Course().planned([graph.Step(nodes[0], graph.State.NEW, "")]) == "1 stage, 1 to run"
    assert pace.Course().planned([graph.Step(nodes[0], graph.State.FRESH, "")]) == "1 stage, which is fresh"
    assert (
        pace.Course().planned([graph.Step(node, graph.State.FRESH, "") for node in nodes]) == "all 14 stages are fresh"
    )


def test_what_other_stages_log_is_shown_as_well() -> None:
    assert (
        display.metrics_text({"step": 3, "time": 1.0, "loss": 2.5, "tokens_per_second": 812.5}) == "loss 2.5  tok/s 812"
    )
    assert display.metrics_text({"step": 3, "scored": 12, "text": "x", "a/b": 0.25}) == "scored 12  b 0.25"


def told(nodes: list[graph.Node], *happened: str) -> list[str]:
    """What a log says of what happened, told in the order in which the runner tells it."""
    console, by_name = Console(file=io.StringIO(), width=120), {node.name: node for node in nodes}
    with display.observer(console, as_json=False) as observer:
        for what, name in map(str.split, happened):
            node = by_name[name]
            if what == "starts":
                observer.started(node, graph.State.NEW)
            elif what == "ends":
                observer.event(node, {"step": 0, PUBLISHING: True})
            elif what == "published":
                observer.finished(node, finished(30.0))
            elif what == "placed":
                observer.event(node, {"step": 0, NOTE: "on GPU 1"})
            elif what == "fails":
                observer.failed(node, "no")
            else:
                observer.event(node, {"step": 1, "total": 2, "loss": 0.5})
    return [line.partition("  ")[0] for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_stage_is_told_to_have_started_after_the_one_before_it_is_finished(nodes: list[graph.Node]) -> None:
    one_by_one = ["s0: started", "s0: finished in 30.0 s", "s1: started", "s1: on GPU 1", "s1: 1/2"]
    assert told(nodes, "starts s0", "ends s0", "published s0", "starts s1", "placed s1", "works s1") == one_by_one
    assert told(nodes, "starts s0", "ends s0", "starts s1", "placed s1", "published s0", "works s1") == one_by_one
    two = told(nodes, "starts s0", "starts s1", "ends s0", "ends s1", "starts s2", "published s1", "published s0")
    assert two[2:] == ["s1: finished in 30.0 s", "s0: finished in 30.0 s", "s2: started"]


def test_what_works_while_another_is_published_is_told_with_the_reason(nodes: list[graph.Node]) -> None:
    busy = told(nodes, "starts s0", "ends s0", "starts s1", "starts s2", "works s1", "published s0")
    done = "s0: done; its files are hashed and published"
    assert busy == ["s0: started", done, "s1: started", "s1: 1/2", "s0: finished in 30.0 s", "s2: started"]
    failed = told(nodes, "starts s0", "ends s0", "starts s1", "fails s1", "published s0")
    assert failed == ["s0: started", done, "s1: started", "s1: failed", "s0: finished in 30.0 s"]
    quick = told(nodes, "starts s0", "ends s0", "starts s1", "ends s1", "published s0", "published s1")
    assert quick == ["s0: started", done, "s1: started", "s0: finished in 30.0 s", "s1: finished in 30.0 s"]


def test_a_stage_that_is_started_again_says_why_it_ended() -> None:
    log = "; the end of log.txt:\nTraceback (most recent call last):\nValueError: too little memory is free\n\n"
    why = "it goes on from its last checkpoint. The end of its log: ValueError: too little memory is free"
    assert Failure("own", "ended with exit code 1", log).again == f"ended with exit code 1; {why}"
    known = Failure("zero", "failed on rank 1 (KeyError: 'a')", "; the end of its error:\nKeyError: 'a'")
    assert known.again == "failed on rank 1 (KeyError: 'a'); it goes on from its last checkpoint"
