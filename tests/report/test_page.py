"""The page as text: the right numbers in the right cells, hostile output tamed, nothing asked of a network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.report import page
from pipeline.report.curves import overlay, stage_curves
from pipeline.report.run_data import Run, read_run
from pipeline.report.samples import (
    TEXT_LIMIT,
    Story,
    problems_through_models,
    samples_by_reason,
    samples_while_training,
    thought_and_answer,
)
from pipeline.report.scores import build_table
from tests.report import nano_run

FEW = {name: nano_run.STAGES[name] for name in ("base", "zero", "score")}
VOID = {"meta", "link", "img", "br", "input", "hr", "wbr"}


class Reader(HTMLParser):
    """Collects tags, attributes, text by class, and the score table; complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.ids: list[str] = []
        self._table = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append((tag, known))
        self.ids += [known["id"]] if known.get("id") else []  # type: ignore[list-item]
        self._table = self._table or (tag == "table" and known.get("class") == "scores")
        if self._table and tag == "tr":
            self.rows.append([])
        if self._table and tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._table = self._table and tag != "table"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.text += data
        if self._table and self.rows and self.rows[-1]:
            self.rows[-1][-1] += " " + data.strip()


def read(run: Path) -> Reader:
    reader = Reader()
    reader.feed((run / "report.html").read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_score_table_in_the_papers_shape(nano: Path) -> None:
    rows = [[" ".join(cell.split()) for cell in row] for row in read(nano).rows]
    assert rows[0] == ["Task, metric", "base", "zero", "dev1", "dev2", "dev3", "r1", "student", "student_rl"]
    assert rows[1] == [
        "chain/test n = 400 problems × 4 samples; transformers, temperature 0.6, top-p 0.95, max tokens 96, seed 0"
    ]
    by_name = {row[0]: row[1:] for row in rows[2:]}
    assert list(by_name)[:4] == ["pass@1, %", "pass@2, %", "pass@4, %", "cons@4, %"]
    assert by_name["pass@1, %"][:2] == ["27.0 22.9–31.6", "81.2 77.1–84.8"]
    assert by_name["pass@4, %"] == ["35.0", "89.2", "74.0", "90.8", "87.0", "93.2", "84.2", "49.0"]
    assert by_name["mean tokens"] == ["14.2", "30.1", "26.8", "29.4", "28.8", "31", "28.1", "17.5"]
    html = (nano / "report.html").read_text()
    assert len(re.findall(r'<td[^>]*class="best"', html)) == 4  # r1 in pass@1, pass@2, pass@4, cons@4
    assert re.search(r'class="best"><span class="value">85.2<', html)


def test_page_says_where_it_comes_from(nano: Path) -> None:
    text = read(nano).text
    for fact in (
        "nano-r1",
        "CPU x86_64, 2 cores",
        "torch 2.13.0",
        "9 min 41 s",
        "2026-03-01 09:00 UTC",
        "0c15f2e4a1b2",
    ):
        assert fact in text
    for stage in nano_run.STAGES:
        assert nano_run.fingerprint(stage) in text
    assert "dropped: mixed language" in text and "2,400" in text and "50.2 %" in text


def test_nothing_outside_is_named_in_the_page(nano: Path, hostile: Path) -> None:
    for run in (nano, hostile):
        reader = read(run)
        for tag, attributes in reader.tags:
            assert tag not in ("iframe", "object", "embed", "form", "base", "audio", "video")
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
            for name in ("src", "href", "xlink:href", "action", "srcset", "poster"):
                assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
        assert [tag for tag, _ in reader.tags].count("script") == 1
        assert len(reader.ids) == len(set(reader.ids))
        style = re.search(r"<style>(.*?)</style>", (run / "report.html").read_text(), re.DOTALL)
        assert style and "url(" not in style[1] and "@import" not in style[1]


def test_page_is_light_and_quick(nano: Path) -> None:
    assert (nano / "report.html").stat().st_size < 1_000_000
    assert float((nano.parent / "cpu_seconds").read_text()) < 5


def test_same_run_same_page_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = nano_run.build(tmp_path / "run", FEW)
    before = page.write_report(run).read_bytes()
    assert page.write_report(run).read_bytes() == before
    monkeypatch.setattr(page, "build_page", lambda run: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".report-*"))


def test_hostile_output_is_shown_as_text(hostile: Path) -> None:
    reader = read(hostile)
    assert "<script>window.pwned = 1</script>" in reader.text
    for attack in (
        "</style><style>body",
        "{{ 7 * 7 }} {% raw %} ${1 + 1} $\\frac{1}{0}$",
        "onload='window.pwned = 1'>",
    ):
        assert attack in reader.text
    raw = (hostile / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ufffe]", raw)
    assert len(raw) < 1_000_000


def test_long_samples_are_cut_in_the_middle(hostile: Path) -> None:
    run = read_run(hostile)
    problems = problems_through_models(run, build_table(run).models)
    shown = [text for p in problems for s in p.samples for text in (s.thought or "", s.answer, s.extracted)]
    assert shown and max(map(len, shown)) < TEXT_LIMIT + 100


def test_chosen_problems_tell_a_story(nano: Path) -> None:
    run = read_run(nano)
    models = build_table(run).models
    problems = problems_through_models(run, models)
    assert [problem.story for problem in problems][:3] == [Story.LEARNED.value] * 3
    assert {problem.story for problem in problems} >= {Story.LEARNED.value, Story.STILL_WRONG.value}
    for problem in problems:
        assert [sample.title for sample in problem.samples] == list(models)
        first, last = problem.samples[0].good, problem.samples[models.index("r1")].good
        assert (first, last) == {"learned": (False, True), "still wrong": (False, False), "lost": (True, False)}[
            problem.story
        ]
        assert problem.samples[0].thought is None and problem.samples[1].thought
        assert all(sample.extracted in sample.answer and sample.tokens for sample in problem.samples)


def test_samples_of_one_problem_over_the_steps(nano: Path) -> None:
    stages = read_run(nano).stages
    shown = samples_while_training(stages["zero"])
    assert shown is not None and shown.id == "chain-train-3"
    assert [sample.title for sample in shown.samples] == ["step 1", "step 20", "step 60", "step 80"]
    assert shown.question and not any(sample.question for sample in shown.samples)
    assert samples_while_training(stages["base"]) is None
    differing = samples_while_training(stages["r1"])
    assert differing is not None and not differing.question and all(sample.question for sample in differing.samples)


def test_a_thought_that_the_prompt_has_opened_is_a_thought() -> None:
    assert thought_and_answer({"completion": "cut off", "begun": "<think>\n"}) == ("cut off", "")
    assert thought_and_answer({"completion": "so</think>4", "begun": "<think>\n"}) == ("so", "4")
    assert thought_and_answer({"completion": "no thought"}) == (None, "no thought")
    assert thought_and_answer({"completion": None, "begun": 3}) == (None, "")


def test_one_sample_of_each_reason(nano: Path) -> None:
    shown = samples_by_reason(read_run(nano).stages["samples"])
    assert shown is not None
    assert [s.title for s in shown.samples] == ["kept", "wrong", "duplicate", "mixed language", "too long"]


def part(run: Path, *names: str) -> Run:
    """The run as if it had only these stages: drawing takes its time."""
    whole = read_run(run)
    return replace(whole, stages={name: whole.stages[name] for name in names})


def test_curves_of_every_kind(nano: Path) -> None:
    run = part(nano, "base", "zero", "score")
    drawn = {curves.stage: [panel.title for panel in curves.panels] for curves in stage_curves(run)}
    assert drawn["base"] == ["Loss", "Token accuracy"]
    assert drawn["zero"] == [
        "Reward", "Accuracy while training", "Completion length, tokens", "Loss", "KL to the reference",
        "Entropy, nats a token", "Signs of trouble",
    ]  # fmt: skip
    assert "score" not in drawn
    for panel in overlay(read_run(nano)):
        assert all(f">{stage}</text>" in panel.svg for stage in ("zero", "dev2", "r1", "student_rl"))


def test_what_is_constant_up_to_rounding_is_a_number_and_no_curve(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", FEW, unfinished=("zero",), waiting=("score",))
    rows = [
        {"step": step, "loss": (-1) ** step * 1e-7, "kl": 0.25 + step * 1e-9, "entropy": 0.01 * step,
         "completions/clipped_ratio": 0.0, "groups/all_failed": 0.5}
        for step in range(9)
    ]  # fmt: skip
    events = next((run / "scratch").glob("zero-*")) / "events.jsonl"
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = next(curves for curves in stage_curves(read_run(run)) if curves.stage == "zero").panels
    said = {panel.title: panel.note for panel in panels if not panel.svg}
    assert said["Loss"] == "0 in all logged steps" and said["KL to the reference"] == "0.25 in all logged steps"
    assert said["Signs of trouble"].startswith("all failed 50.0 %; cut off 0.0 % in all logged steps")
    assert [panel.title for panel in panels if panel.svg] == ["Entropy, nats a token"]
    page.write_report(run)
    assert "0 in all logged steps" in read(run).text


def test_unknown_kinds_get_their_first_series_drawn(hostile: Path) -> None:
    (curves,) = stage_curves(read_run(hostile))
    assert [panel.title for panel in curves.panels] == ["<script>loss</script>", "$x_{", "big"]


def test_how_old_rollouts_were_is_drawn_and_what_that_left_of_them(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", FEW, unfinished=("zero",), waiting=("score",))
    ages = [{"rollout/staleness": step / 2, "rollout/staleness_max": step} for step in range(3)]
    rows = [{"step": step, "sampling/effective_sample_size": 1 - step / 10, **age} for step, age in enumerate(ages)]
    events = next((run / "scratch").glob("zero-*")) / "events.jsonl"
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = next(curves for curves in stage_curves(read_run(run)) if curves.stage == "zero").panels
    assert [panel.title for panel in panels] == ["Age of tokens, optimizer steps", "Effective sample size, share"]
    assert "oldest" in panels[0].svg and "80 %" in panels[1].svg


def test_held_out_scores_are_drawn_with_their_intervals(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", FEW, unfinished=("zero",), waiting=("score",))
    looks = [{"step": at, "watch/sums/test/pass@1": at / 10, "watch/sums/test/n": 12} for at in range(0, 10, 3)]
    bounds = [{"watch/sums/test/low": look["step"] / 20, "watch/sums/test/high": look["step"] / 8} for look in looks]
    rows = [look | bound for look, bound in zip(looks, bounds, strict=True)]
    events = next((run / "scratch").glob("zero-*")) / "events.jsonl"
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (panel,) = next(curves for curves in stage_curves(read_run(run)) if curves.stage == "zero").panels
    assert panel.title == "Held-out scores (pass@1)"
    assert "sums/test ends at 0.9" in panel.svg
    assert panel.svg.count("fill-opacity: 0.16") == 1, "the interval lies behind the line"


def test_resumed_steps_count_once_and_broken_lines_are_passed_over(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", FEW, unfinished=("zero",), waiting=("score",))
    events = next((run / "scratch").glob("zero-*")) / "events.jsonl"
    events.write_bytes(
        b'{"step": 1, "loss": 3}\n{"step": 2, "loss": 9}\n{"step": 2, "loss": 2}\n\xff{\nnull\n{"step": 3, "lo'
    )
    from pipeline.report.curves import series

    assert series(read_run(run).stages["zero"]) == {"loss": ([1.0, 2.0], [3.0, 2.0])}
    page.write_report(run)


def test_unfinished_stage_shows_the_end_of_its_log(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", FEW, unfinished=("zero",), waiting=("score",))
    page.write_report(run)
    text = read(run).text
    assert "Not finished: zero" in text and "RuntimeError: out of <memory> & time" in text


def test_nothing_has_run_yet(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", waiting=tuple(nano_run.STAGES))
    page.write_report(run)
    assert "0 of 12 stages finished." in read(run).text
