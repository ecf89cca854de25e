"""The nano chain, shortened: every stage is there and real, with little to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = "nano/r1"
TRAINED = "trainer={max_steps: 6, save_steps: 2, logging_steps: 1}"
SHORT = (
    "stages.base.corpus.documents=12000",
    "stages.base.trainer={max_steps: 240, save_steps: 40, logging_steps: 10}",
    "stages.student_base.corpus.documents=3000",
    "stages.student_base.trainer={max_steps: 40, save_steps: 20}",
    *(f"stages.{stage}.{TRAINED}" for stage in ("zero", "dev1", "dev2", "dev3", "r1", "student", "student_rl")),
    # A base that has hardly learnt anything solves next to nothing: what it says is kept anyhow.
    *(f"stages.{stage}.require=[]" for stage in ("cold_start", "reasoning", "general", "lessons")),
    "stages.cold_start.tasks=[{use: chain, problems: 400}]",
    "stages.cold_start.rows=null",  # without it the first chunk is enough, and there is no middle to be killed in
    "stages.reasoning.tasks=[{use: chain, problems: 100}]",
    "stages.general.tasks=[{use: requests, problems: 60}]",
    "stages.lessons.tasks=[{use: chain, problems: 100}, {use: requests, problems: 60}]",
    "stages.score.tasks=[{use: chain, problems: 60}, {use: requests, problems: 30}]",
    # The kinds that the chain itself has no need of; one after another, so each is still to come when it is killed
    "stages.judge={kind: reward_model, model: '@dev1', data: [PAIRS]}",
    f"stages.judge.{TRAINED}",
    "stages.brought={kind: import_model, model: '@r1', after: [student]}",
    "stages.wide={kind: extend_context, model: '@brought', context: 512, corpus: {use: chain, documents: 2000}}",
    f"stages.wide.{TRAINED}",
    "stages.out={kind: export, model: '@brought', after: [wide]}",
    "stages.rates={kind: pass_rate, model: '@brought', tasks: [{use: chain, problems: 200}], after: [out]}",
    "stages.rates.rollout={max_tokens: 16}",
    "stages.labels={kind: step_labels, model: '@brought', tasks: [{use: chain, problems: 300}], after: [rates]}",
    "stages.labels.samples=2",
    "stages.labels.continuations=1",
    "stages.labels.step_tokens=4",
    "stages.labels.rollout={max_tokens: 16}",
    "stages.search={kind: tree_search, model: '@brought', value: '@judge', budgets: [32], after: [labels]}",
    "stages.search.tasks=[{use: chain, problems: 130}]",
    "stages.search.rollout={max_tokens: 16}",
    "stages.score.after=[search]",
)
"""Overrides; with them the chain takes two to three minutes on two idle cores."""
PAIRS = [{"prompt": f"{i} + 1 =", "chosen": str(i + 1), "rejected": str(i)} for i in range(9)] * 8


class Chain:
    """A run of the shortened chain.

    Attributes:
        path: the run's folder.
    """

    def __init__(self, runs: Path) -> None:
        self.runs, self.path = runs, runs / "nano-r1"
        self.pairs = runs / "pairs.jsonl"
        self.pairs.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))

    def command(self, *arguments: str) -> list[str]:
        """The command that runs it, or goes on with it."""
        program = str(Path(sys.executable).parent / "zero2r1")
        overrides = (override.replace("PAIRS", str(self.pairs)) for override in SHORT)
        return [program, "run", RECIPE, *overrides, "--runs", str(self.runs), *arguments]

    def finish(self) -> str:
        """Run it to its end; returns what it printed."""
        done = subprocess.run(self.command(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return done.stdout


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The shortened chain, run once from beginning to end."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    chain.finish()
    return chain
