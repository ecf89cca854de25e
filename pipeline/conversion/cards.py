"""Model cards: what a model is, how it came to be, and what it scores, in the form that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline import artifacts
from pipeline.files import durable
from pipeline.schema.environment import names_only

Manifest = Mapping[str, Any]

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this card lies
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
chat = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=512)[0]))
```"""


def manifest(folder: Path) -> Manifest:
    """The manifest of an artifact's folder.

    Raises:
        durable.DamageError: it is not what was written.
    """
    return durable.read_record(folder / artifacts.MANIFEST, hash_required=False)


def lineage(folders: Sequence[Path]) -> list[Manifest]:
    """The manifests of artifacts and of everything they were made from, first things first.

    Args:
        folders: artifacts in their run's folder; inputs of theirs that are no longer there are left out.
    """
    found: dict[str, Manifest] = {}

    def visit(folder: Path) -> None:
        if not (folder / artifacts.MANIFEST).is_file():
            return
        entry = manifest(folder)
        for stage, fingerprint in entry["inputs"].items():
            if fingerprint not in found:
                visit(artifacts.folder(folder.parents[2], stage, fingerprint))
        found[entry["fingerprint"]] = entry

    for folder in folders:
        visit(folder)
    return list(found.values())


def evaluations(folder: Path) -> list[Manifest]:
    """The manifests of the evaluations in an artifact's run that scored this very artifact."""
    if not (folder / artifacts.MANIFEST).is_file():
        return []
    scored = manifest(folder)
    others = [manifest(path.parent) for path in sorted(folder.parents[1].glob(f"*/*/{artifacts.MANIFEST}"))]
    return [
        other
        for other in others
        if other["kind"] == "evaluate" and other["inputs"].get(scored["stage"]) == scored["fingerprint"]
    ]


def model_name(folder: Path | None, reference: str) -> str:
    """What a model is called in tables of scores, and so on its card: the stage that made it.

    Args:
        folder: of the model, if it is on this machine.
        reference: what the recipe calls it; its last part is the name of a model that no stage made.
    """
    if folder is not None and (folder.parent / artifacts.MANIFEST).is_file():
        return str(manifest(folder.parent)["stage"])
    return reference.removeprefix("@").rstrip("/").rpartition("/")[2]


def hub_base(stages: Sequence[Manifest]) -> str | None:
    """The hub id that the first imported model came from, if it came from a hub."""
    for stage in stages:
        source = stage["config"].get("model")
        if stage["kind"] == "import_model" and source.count("/") == 1 and not source.startswith((".", "/", "~")):
            return str(source)
    return None


@dataclass(frozen=True, slots=True)
class Card:
    """Everything a model card says.

    Attributes:
        name: the model's name, as the title.
        label: its name in evaluations, of which only its own rows are shown.
        description: a paragraph.
        license: identifier of the license.
        base_model: hub id of the base model.
        parameters: number of weights.
        precision: their type, such as `BF16`.
        stages: manifests of the stages that led to the model, in order.
        evaluations: manifests of `evaluate` stages.
        prompting: how the model is prompted beyond its chat template (see `pipeline.prompts.rendering`).
    """

    name: str
    label: str
    description: str
    license: str | None
    base_model: str | None
    parameters: int
    precision: str
    stages: Sequence[Manifest]
    evaluations: Sequence[Manifest]
    prompting: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The card as Markdown with a YAML head."""
        head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
        head |= {"license": self.license} if self.license else {}
        head |= {"base_model": self.base_model} if self.base_model else {}
        head["tags"] = ["zero2r1", "reasoning", *dict.fromkeys(stage["kind"] for stage in self.stages)]
        parts = [
            f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
            f"# {self.name}",
            self.description,
            f"{self.parameters:,} parameters, {self.precision}; trained with zero2r1.",
            "## Use",
            USE,
            self._prompting(),
            *self._scores(),
            "## Lineage",
            self._lineage(),
            "## Recipe",
            self._recipe(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _prompting(self) -> str:
        kwargs, prefill = self.prompting.get("chat_template_kwargs"), self.prompting.get("prefill")
        parts = [f"`apply_chat_template(…, **{kwargs!r})`"] if kwargs else []
        parts += [f"the text `{prefill!r}` behind each prompt"] if prefill else []
        return f"It was trained with other prompts than this makes: with {' and '.join(parts)}." if parts else ""

    def _scores(self) -> list[str]:
        parts: list[str] = []
        for evaluation in self.evaluations:
            metrics = evaluation["metrics"]
            rows = [
                [model, task, *_figures(entry)]
                for model, tasks in metrics["scores"].items()
                for task, entry in tasks.items()
                if model == self.label
            ]
            if not rows:
                continue
            columns = ["model", "task", "problems", "samples", "pass@1 (95 % interval)", "pass@k", "cons@k", "tokens"]
            sampling = ", ".join(f"{name} {value}" for name, value in metrics["sampling"].items())
            parts.append(f"{_table(columns, rows)}\n\nSampling: {sampling}.")
        return ["## Scores", *parts] if parts else []

    def _lineage(self) -> str:
        rows = [
            [
                stage["stage"],
                stage["kind"],
                f"`{stage['fingerprint'][: artifacts.SHORT]}`",
                ", ".join(stage["inputs"]) or "-",
                _rounded(stage, "seconds"),
                stage.get("device", "-"),
            ]
            for stage in self.stages
        ]
        return _table(["stage", "kind", "fingerprint", "made from", "seconds", "device"], rows)

    def _recipe(self) -> str:
        stages = {stage["stage"]: _given(stage["config"]) for stage in self.stages}
        return f"```yaml\n{yaml.safe_dump({'stages': stages}, sort_keys=False, allow_unicode=True)}```"


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is empty anyway."""
    named = names_only(config)
    return {name: value for name, value in named.items() if value not in (None, "", [], {}) and name != "launch"}


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _figures(entry: Mapping[str, Any]) -> list[Any]:
    interval = f"{entry['low']:.1%} to {entry['high']:.1%}"
    return [
        entry["n"],
        entry["samples"],
        f"{_percent(entry, 'pass@1')} ({interval})",
        _percent(entry, "pass@k"),
        _percent(entry, "cons@k"),
        _rounded(entry, "tokens"),
    ]


def _percent(entry: Mapping[str, Any], name: str) -> str:
    return f"{entry[name]:.1%}" if name in entry else "-"


def _rounded(entry: Mapping[str, Any], name: str) -> str:
    return f"{entry[name]:.0f}" if name in entry else "-"
