"""A plain function in a recipe's file is read and not run; it is checked as if it had been imported."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from pipeline.checks import needs
from pipeline.recipe import RecipeError, load
from rewards import registry, unrun

PLAIN = {
    "a function": ("def f(completion, answer, *rest, limit=200, note=-1.5, **more) -> float:\n    return 1.0\n", "f"),
    "annotations": (
        "import typing as t\ndef f(completion: t.Any, a: 'no.such' = None) -> t.Any:\n    return 1.0\n",
        "f",
    ),
    "positional only": ("def f(completion, /, answer=(1, 'a')):\n    return 1.0\n", "f"),
    "a mark": ("from rewards import reward\n@reward('brevity')\ndef f(completion):\n    return 1.0\n", "brevity"),
    "a coroutine": ("async def f(completions, **more):\n    return [1.0]\n", "f"),
    "a generator": ("def f(completions):\n    yield 1.0\n", "f"),
    "nothing returned": ("def f(completion):\n    'Says nothing.'\n    completion.strip()\n", "f"),
    "inner names": ("def f(completion):\n    def g():\n        return completion\n    return float(len(g()))\n", "f"),
}
"""Sources that tell all, and what is asked for."""
HIDDEN = {
    "a class": ("class f:\n    def __init__(self, x=1): ...\n", "f"),
    "a decorator": ("import functools\n@functools.cache\ndef f(completion): return 1.0\n", "f"),
    "a computed default": ("X = 3\ndef f(completion, x=X): return 1.0\n", "f"),
    "bound twice": ("def f(completion): return 1.0\nf = lambda completions, x: [1.0]\n", "f"),
    "bound in a branch": ("def f(completion): return 1.0\nif True:\n    def f(completions, x): return [1.0]\n", "f"),
    "everything imported": ("from os.path import *\ndef f(completion): return 1.0\n", "f"),
    "globals": ("def f(completion): return 1.0\nglobals()['f'] = len\n", "f"),
    "an import": ("from os.path import join as f\n", "f"),
    "another name": ("def g(completion): return 1.0\n", "f"),
    "no Python": ("def f(:\n", "f"),
}
"""Sources that do not."""


@pytest.mark.parametrize("source", PLAIN)
def test_what_is_read_is_what_an_import_gives(source: str, tmp_path: Path) -> None:
    text, wanted = PLAIN[source]
    path = tmp_path / "own.py"
    path.write_text(text)
    read = unrun.function(path, wanted)
    assert read is not None
    imported = registry.find(f"{path}:{wanted}")
    assert read[0] == imported.name
    ours, theirs = (inspect.signature(target) for target in (read[1], imported.target))
    parameters = [(p.name, p.kind, p.default) for p in ours.parameters.values()]
    assert parameters == [(p.name, p.kind, p.default) for p in theirs.parameters.values()]
    assert inspect.iscoroutinefunction(read[1]) == inspect.iscoroutinefunction(imported.target)
    assert registry.never_returns(read[1]) == registry.never_returns(imported.target)
    assert read[1].__doc__ == imported.target.__doc__


@pytest.mark.parametrize("source", HIDDEN)
def test_what_the_source_does_not_tell_is_not_guessed(source: str, tmp_path: Path) -> None:
    text, wanted = HIDDEN[source]
    (tmp_path / "own.py").write_text(text)
    assert unrun.function(tmp_path / "own.py", wanted) is None


RECIPE = "name: r\nstages:\n  a: {kind: grpo, model: some/model, tasks: [arithmetic], rewards: ['own.py:f']}\n"
LOUD = "from pathlib import Path\nPath(__file__).with_name('has run').touch()\n"


def test_a_check_runs_no_function_and_a_run_imports_it_first(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    own = tmp_path / "own.py"
    own.write_text(LOUD + "def f(completion):\n    return 1.0\n")
    recipe = load(tmp_path / "recipe.yaml")
    assert needs.unmet(recipe, ["a"]) == []
    assert not (tmp_path / "has run").exists()
    assert needs.unmet(recipe, ["a"], run=True) == []
    assert (tmp_path / "has run").exists()


def test_faults_are_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    own = tmp_path / "own.py"
    own.write_text(LOUD + "def f(completion, trainer_state):\n    return 1.0\n")
    with pytest.raises(RecipeError, match="only functions of a whole batch"):
        load(tmp_path / "recipe.yaml")
    assert not (tmp_path / "has run").exists()


def test_a_file_that_cannot_be_imported_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("own.py", "broken.py"))
    (tmp_path / "broken.py").write_text("import no_such_package\ndef f(completion):\n    return 1.0\n")
    (told,) = needs.unmet(load(tmp_path / "recipe.yaml"), ["a"], run=True)
    assert told.startswith("stages.a.rewards.0.use: ")
    assert "no_such_package" in told
