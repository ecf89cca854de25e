"""`rewards.audit` and the commands `zero2r1 rewards ...`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.commands.rewards import app
from rewards import verify
from rewards.audit import audit
from rewards.hostile import attacks

ROWS = [{"problem": "q", "answer": gold} for gold in ["7", r"\frac{1}{2}", r"2\sqrt{3}", "(1,2)", r"\text{Tuesday}"]]


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What `zero2r1 rewards audit math rows.jsonl --json` prints for sound data."""
    data = tmp_path_factory.mktemp("audit") / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in [*ROWS, {"answer": None}]))
    result = run("audit", "math", str(data), "--limit", "5", "--json", "-o", "deadline_s=60")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_a_sound_reward_passes(report):
    assert report["ok"] is True
    assert report["rows"] == 5
    checks = {finding["check"]: finding for finding in report["findings"]}
    assert (checks["golds accept themselves"]["passed"], checks["golds accept themselves"]["total"]) == (5, 5)
    assert checks["hostile completions"]["passed"] == checks["hostile completions"]["total"]
    assert checks["agrees with math-verify"]["total"] == 10


def test_no_hostile_completion_is_right_by_chance():
    """Braces, signs and marks around a 1 are an answer where the gold is 1."""
    names = {"nested braces", "nested brackets", "combining characters", "directional overrides", "signs"}
    items = [
        {"completion": completion, "answer": gold}
        for gold in ("1", "3", "-1")
        for name, completion in attacks(gold)
        if name in names
    ]
    assert len(items) == 15
    assert {verdict.score for verdict in verify("math", items)} == {0.0}


def test_unusable_golds_fail_the_audit_and_are_named(tmp_path):
    (tmp_path / "strict.py").write_text(
        textwrap.dedent(
            """
            from rewards import Verdict

            class Strict:
                def perfect_completion(self, row):
                    return row["answer"]

                def verify(self, items):
                    return [Verdict.graded(float(i.completion == i.answer and i.answer.isdigit())) for i in items]
            """
        )
    )
    report = audit(f"{tmp_path}/strict.py:Strict", [{"answer": "7"}, {"answer": "seven"}])
    assert not report.ok
    (finding,) = [f for f in report.findings if f.check == "golds accept themselves"]
    assert finding.examples == (("row 1", "wrong: 'seven'"),)
    assert [line[1] for line in report.table() if line[0] == finding.check] == ["FAILED"]
    assert all(len(line) == 4 for line in report.table())


def test_a_gullible_reward_fails_the_audit(tmp_path):
    (tmp_path / "bad.py").write_text(
        textwrap.dedent(
            """
            def gullible(completion, answer):
                return float(str(answer) in completion)

            def brittle(completion, answer):
                return 1.0 / len(completion)
            """
        )
    )
    gullible = audit(f"{tmp_path}/bad.py:gullible", ROWS)
    assert not gullible.ok
    assert any("hedge" in case for case, _ in gullible.findings[0].examples)
    brittle = audit(f"{tmp_path}/bad.py:brittle", ROWS)
    assert not brittle.ok
    assert "ZeroDivisionError" in brittle.findings[0].examples[0][1]


def test_attacks_never_state_the_gold_as_their_answer():
    names = [name for name, _ in attacks("42")]
    assert len(names) == len(set(names)) >= 50


def test_list_and_show():
    listed = json.loads(run("list", "--json").stdout)
    assert "math" in {line["name"] for line in listed}
    assert all(line["summary"] for line in listed)
    shown = json.loads(run("show", "math", "--json").stdout)
    assert "lenient" in shown["options"]
    assert "final answer" in run("show", "math").stdout


@pytest.mark.parametrize(
    ("completion", "answer", "code", "status"),
    [(r"\boxed{0.5}", r"\frac12", 0, "correct"), (r"\boxed{3}", "2", 1, "wrong"), (r"\boxed{3}", "", 2, "bad_gold")],
)
def test_try_says_what_happened_by_exit_status_too(completion, answer, code, status):
    result = run("try", "math", "--completion", completion, "--answer", answer, "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout)["status"] == status


def test_try_reads_files_and_options(tmp_path):
    file = tmp_path / "completion.txt"
    file.write_text("There were nine eggs and she sold all of them but 7.\nNothing else happened to them.")
    strict = run("try", "math", "--completion", f"@{file}", "--answer", "7")
    lenient = run("try", "math", "--completion", f"@{file}", "--answer", "7", "-o", "lenient=true")
    assert (strict.exit_code, lenient.exit_code) == (1, 0)


def test_errors_are_for_people():
    result = run("try", "maths", "--completion", "x")
    assert result.exit_code == 2
    assert "did you mean" in result.output
    assert run("audit", "math", "absent.jsonl").exit_code == 2


def test_rows_may_have_any_character_and_a_broken_one_is_named(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"1 +\u2028{n}", "answer": str(1 + n)} for n in range(2)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data.write_text(text)
    assert json.loads(run("audit", "math", str(data), "--json", "-o", "deadline_s=60").stdout)["rows"] == 2
    data.write_text(text + '{"question":')
    failed = run("audit", "math", str(data))
    assert failed.exit_code == 2
    assert "rows.jsonl:3isnotJSON" in "".join(failed.output.replace("│", "").split())  # it stands in a box
