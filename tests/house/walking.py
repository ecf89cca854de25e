"""A reader who pastes every block of a page into an empty folder, one after another.

| block | what is done with it |
|---|---|
| `yaml`, a whole recipe | written to the file that the text names, and planned (`zero2r1 plan`) |
| `yaml`, a part of one | put where it belongs in a recipe, which is then checked whole |
| `yaml`, an accelerate config | read as `accelerate launch` reads it |
| `python` | run; a session with `>>>` is held against what it prints; one for `torchrun` is compiled |
| `json` | parsed, line by line or as a whole, and written to the file that the text names |
| `sh` | each command: `zero2r1` parsed with its own parser, its recipes read, and run where that is cheap; |
|   | `python -m benchmarks…` parsed with its own parser; files, tests, make targets and extras must exist |
"""

from __future__ import annotations

import argparse
import doctest
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from typer.main import get_command
from typer.testing import CliRunner

from pipeline import recipe as recipes
from pipeline.cli import app
from pipeline.files.source import Source, read
from pipeline.stages.registry import KINDS, config_class

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"(?:Save (?:this|a function) as|and this as) `([\w.-]+)`[^`]*\Z")
FIRST = ROOT / "README.md"
"""Where the recipe stands that the pages call `recipe.yaml`."""
OTHERS = {"git", "ray", "cd", "export", "for", "done", ".", "apt-get", "sysctl", "vllm", "eval"}
"""Commands of other programs, which are not looked into."""
HEADER = {"name", "description", "seed", "jobs", "warm", "task", "tasks", "track", "defaults", "launch", "stages"}
CHEAP = {("plan",), ("cost",), ("new",), ("rewards", "list"), ("rewards", "show"), ("rewards", "try")}
"""Commands that are run as they stand; the others are parsed."""
MODELS = {"pretrain": "nano"}
MODEL = "import_model"
REFERRED = {"data": "rejection_sample", "from": "rejection_sample", "scores": "evaluate"}
"""Key of a recipe -> what kind of stage one means that is referred to there and is not shown."""
CORPUS = """
from pipeline.data.corpus import Corpus

class {}(Corpus):
    def documents(self, n, seed):
        yield from ("1 + 1 = 2" for _ in range(n))
"""


class ParsedError(Exception):
    """A program's arguments are right; it goes no further."""


@dataclass
class Reader:
    """One page's reader.

    Attributes:
        folder: where everything is pasted; the working directory.
        names: variables of the Python blocks so far.
        shell: variables of the shell.
    """

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    shell: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (block,) = [text for kind, text in BLOCK.findall(FIRST.read_text(encoding="utf-8")) if kind == "yaml"]
        (self.folder / "recipe.yaml").write_text(block, encoding="utf-8")
        self.shell["PWD"] = str(self.folder)
        for name in ("my-model", "my-data"):
            (self.folder / name).mkdir()

    def page(self, text: str) -> None:
        """Paste every block of a page."""
        for match in BLOCK.finditer(text):
            kind, block = match.groups()
            saved = SAVED.search(text[: match.start()])
            place = f"line {text.count(chr(10), 0, match.start()) + 1}"
            try:
                self.paste(kind, block, saved[1] if saved else None)
            except Exception as error:
                raise AssertionError(f"{place}: {type(error).__name__}: {error}\n{block}") from error

    def paste(self, kind: str, block: str, name: str | None) -> None:
        """Paste one block; `name` is the file that it is to be saved as."""
        if name is not None:
            (self.folder / name).write_text(block, encoding="utf-8")
        if kind == "yaml":
            self.yaml(block, name)
        elif kind == "python":
            self.python(block)
        elif kind == "json":
            for line in block.splitlines():
                json.loads(line)
        elif kind == "sh":
            for command in commands(block):
                self.command(command)
        else:
            assert kind == "text", "a block names its language; text, if it has none"

    def python(self, block: str) -> None:
        """Run a block."""
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, self.names, "block", None, 0)
            assert doctest.DocTestRunner().run(test).failed == 0
            return
        code = compile(block, "block", "exec")
        if not block.startswith("# torchrun"):
            exec(code, self.names)

    def yaml(self, block: str, name: str | None) -> None:
        """Plan a whole recipe; complete a part of one, and check it."""
        data = yaml.load(block, Loader=yaml.SafeLoader)
        if {"name", "stages"} <= data.keys():
            file = self.folder / (name or f"{data['name']}.yaml")
            file.write_text(block, encoding="utf-8")
            self.zero2r1(["plan", str(file)])
        elif "compute_environment" in data:
            assert name is not None, "an accelerate config is saved as a file"
            load_config_from_file(str(self.folder / name))
        else:
            file = self.folder / "part.yaml"
            file.write_text(block, encoding="utf-8")
            self._check_part(read(file))

    def _check_part(self, part: Source) -> None:
        data: dict[str, Any] = part.data
        header = {key: value for key, value in data.items() if key in HEADER and key != "stages"}
        stages: dict[str, Any] = dict(data.get("stages", {}))
        rest = {key: value for key, value in data.items() if key not in HEADER}
        if rest and all(isinstance(value, dict) and "kind" in value for value in rest.values()):
            stages |= rest
        elif rest:
            kind = next(
                kind for kind in ("grpo", *sorted(KINDS)) if rest.keys() <= config_class(kind).model_fields.keys()
            )
            stages["part"] = {"kind": kind, **self._needed(kind, rest), **rest}
        if "launch" in header and not stages:
            stages["part"] = {"kind": "grpo", **self._needed("grpo", {})}
        if not stages:
            stages["part"] = {"kind": "grpo", "model": "some/model", "tasks": list(header.get("tasks", ["gsm8k"]))}
        for stage in stages.values():
            for key, value in self._needed(stage["kind"], stage).items():
                stage.setdefault(key, value)
        for name, key in dict(references(stages)).items():
            stages.setdefault(name, {"tasks": ["gsm8k/train"], "model": "some/model", "kind": REFERRED.get(key, MODEL)})
            if stages[name]["kind"] == MODEL:
                stages[name].pop("tasks", None)
        self._files(stages)
        recipes.check(Source(part.path, {"name": "part", **header, "stages": stages}, part.lines))

    def _needed(self, kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Fields without which a stage of this kind is none, and which a part of a recipe may leave out."""
        wanted = {"model": MODELS.get(kind, "some/model"), "tasks": ["gsm8k/train"]}
        fields = config_class(kind).model_fields
        if kind == "pretrain" and "corpus" not in given:
            wanted |= {"corpus": {"use": "chain", "documents": 100}, "vocabulary": {"kind": "words"}}
        return {
            key: value
            for key, value in wanted.items()
            if key not in given and key in fields and (fields[key].is_required() or key in ("corpus", "vocabulary"))
        }

    def _files(self, value: Any) -> None:
        """Make the data files that a part of a recipe names."""
        if isinstance(value, dict):
            for each in value.values():
                self._files(each)
        elif isinstance(value, list):
            for each in value:
                self._files(each)
        elif isinstance(value, str) and re.search(r"\.(jsonl|parquet)(\.zst)?$", value):
            path = self.folder / value.replace("*", "0")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        elif isinstance(value, str) and (own := re.fullmatch(r"(my_corpus\.py):(\w+)", value)):
            (self.folder / own[1]).write_text(CORPUS.format(own[2]), encoding="utf-8")

    def command(self, command: str) -> None:
        """Check one command of a shell, and run it if that is cheap."""
        words = shlex.split(Template(command).safe_substitute(self.shell), comments=True)
        while words and re.match(r"[A-Za-z_]\w*=", words[0]):
            name, _, value = words.pop(0).partition("=")
            self.shell[name] = value
        if words[:1] == ["for"]:
            self.shell[words[1]] = words[3]
        if not words or words[0] in OTHERS:
            return
        program, arguments = Path(words[0]).name, words[1:]
        if program == "uv" and arguments[:2] == ["run", "--no-sync"]:
            program, arguments = arguments[2], arguments[3:]
        if program == "zero2r1":
            self.zero2r1(arguments)
        elif program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert all(word in targets for word in arguments if "=" not in word), arguments
        elif program == "pip":
            self.pip(arguments)
        elif program in ("docker", "pipx", "uv"):
            named = re.findall(r"\b(?:constraints|docker)/[\w./-]+", " ".join(arguments))
            assert named or "run" in arguments or program == "pipx"
            assert all((ROOT / path).is_file() for path in named), named
        elif program == "pytest":
            paths = [word for word in arguments if word.startswith("tests/")]
            assert paths and all((ROOT / path).exists() for path in paths), paths
        elif program in ("sh", "sbatch"):
            assert (ROOT / arguments[0]).is_file(), arguments[0]
        elif program == "python" and arguments[0] == "-c":
            compile(arguments[1], "-c", "exec")
        elif program == "python" and arguments[0] == "-m":
            module(arguments[1], arguments[2:])
        else:
            assert program == "python" and (ROOT / arguments[0]).is_file(), f"nobody knows {program}"

    @staticmethod
    def pip(arguments: Sequence[str]) -> None:
        """What is installed is this project with extras that it has, or something that it asks for."""
        optional = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert arguments[0] == "install"
        if "--target" in arguments:
            return  # other projects, to be compared with
        words = iter(arguments[1:])
        for word in words:
            if word in ("-c", "-e", "--editable"):
                word = next(words) if word == "-c" else word
                assert word.startswith("-") or (ROOT / word).is_file(), word
            elif named := re.fullmatch(r"\.(?:\[(.+)\])?", word):
                assert set((named[1] or "dev").split(",")) <= optional.keys(), word
            else:
                assert word in {line for extra in optional.values() for line in extra}, word

    def zero2r1(self, arguments: list[str]) -> None:
        """Parse the arguments, read the recipes that they name, and run the command if that is cheap."""
        names, given = parsed(arguments)
        self._recipe(given)
        whole = names == ("new",) and not {"--model", "--data", "--hardware", "--goal"} <= set(arguments)
        if names in CHEAP and not whole and not {"--probe", "--like"} & set(arguments):  # these need a GPU, and a run
            if names == ("new",):
                Path(given["file"]).unlink(missing_ok=True)
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
        if names == ("export",):
            Path(given["folder"] or "pushed").mkdir(exist_ok=True)

    def _recipe(self, given: Mapping[str, Any]) -> None:
        """The recipe of a command is there, with the stages that a run is asked for."""
        if (name := given.get("recipe")) is not None:
            recipes.load(name, given.get("overrides") or [])
        for value in (given.get("run"), given.get("model")):
            run, _, stage = str(value or "").partition("@")
            if run.startswith("runs/") and run != "runs/my-run":
                names_of = {recipes.load(each).name: each for each in [*recipes.shipped(), *self._own()]}
                known = names_of[run.removeprefix("runs/")]
                stage, _, checkpoint = stage.partition(":")
                assert not stage or stage in recipes.load(known).stages, f"{known} has no stage {stage}"
                assert not checkpoint or re.fullmatch(r"step-\d+|last|best", checkpoint), checkpoint

    def _own(self) -> Iterator[str]:
        for file in self.folder.glob("*.yaml"):
            if "stages" in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) and file.name != "part.yaml":
                yield str(file)


def references(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every `@stage` in a part of a recipe, with the key that it stands under."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from references(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from references(each, key)
    elif isinstance(value, str) and value.startswith("@"):
        yield value[1:], key


def parsed(arguments: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The command that the arguments of `zero2r1` name, and what they give it; anything unknown is an error."""
    command: Any = get_command(app)
    words, names = list(arguments), []
    while hasattr(command, "commands") and words != ["--help"]:
        names.append(words.pop(0))
        command = command.commands[names[-1]]
    return tuple(names), {} if words == ["--help"] else command.make_context(names[-1], words).params


def commands(block: str) -> Iterator[str]:
    """The commands of a shell block, continued lines joined."""
    for line in block.replace("\\\n", " ").splitlines():
        for command in re.split(r" && |; do$", line.strip()):
            if command:
                yield command


def module(name: str, arguments: Sequence[str]) -> None:
    """Parse a module's arguments with its own parser, and go no further."""
    if name == "mkdocs":
        return
    program = importlib.import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        parse = argparse.ArgumentParser.parse_args

        def parsed(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
            parse(self, *args, **kwargs)
            raise ParsedError

        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        with pytest.raises(ParsedError):
            program.main()
