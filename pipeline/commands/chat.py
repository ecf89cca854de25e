"""Talking to a checkpoint: one question, or a conversation, with the answer streamed as it is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.prompts.rendering import Renderer
from pipeline.prompts.templates import Chat, prompt_template
from pipeline.rollout.base import Sampling
from pipeline.rollout.context_limit import ContextLimit, context_of
from pipeline.rollout.stops import Stops


class Conversation:
    """A chat with one model, on the GPU if there is one.

    Args:
        path: folder or hub id.
        template: prompt template that wraps every question; `plain` leaves it as it is.
        sampling: how to sample; `n` does not apply.
        template_kwargs, prefill: see `pipeline.prompts.rendering.Renderer`.
        shorten: let an answer have fewer than `sampling.max_tokens` where the model's context has no room for more.

    Raises:
        RolloutError: the model's context has no room for `sampling.max_tokens`.
    """

    def __init__(
        self,
        path: str,
        template: str,
        sampling: Sampling,
        template_kwargs: Mapping[str, Any] | None = None,
        prefill: str | None = None,
        shorten: bool = False,
    ) -> None:
        from pipeline.training import setup

        setup.prepare()
        import torch
        from transformers import AutoTokenizer

        from model.modeling import load

        self.template, self.sampling = prompt_template(template), sampling
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self.model = load(path, dtype="auto").to(self.device).eval()
        self.stops = Stops.of(self.tokenizer, sampling.stop)
        self.limit, self.shorten = ContextLimit(context_of(path), 1 if shorten else sampling.max_tokens), shorten
        self.renderer = Renderer(self.tokenizer, template_kwargs, prefill)
        self.chat: Chat = []
        torch.manual_seed(sampling.seed)

    def ask(self, question: str) -> Iterator[str]:
        """Put a question; yields the answer piece by piece and remembers both.

        Raises:
            TemplateError: the model has no chat template.
            RuntimeError: sampling failed, or the chat leaves no room for an answer in the model's context.
        """
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        from pipeline.rollout.transformers import AtStops

        turn = self.template(question)
        self.chat += [message for message in turn if message["role"] != "system" or not self.chat]
        (prompt,) = self.renderer.prompts([self.chat])
        self.limit.fitting(self.tokenizer, [prompt.text], [{"task": "the chat", "question": question}])
        inputs = self.tokenizer(prompt.text, add_special_tokens=False, return_tensors="pt").to(self.device)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        answer = ""
        with ThreadPoolExecutor(1) as pool:
            at_stops = StoppingCriteriaList([AtStops(self.stops, inputs["input_ids"].size(1))])
            asked = {
                **inputs,
                **self._settings(inputs["input_ids"].size(1)),
                "stopping_criteria": at_stops,
                "streamer": streamer,
            }
            sampled = pool.submit(self.model.generate, **asked)
            sampled.add_done_callback(lambda _: streamer.end())  # a failure ends the answer, too
            for piece in streamer:
                answer += piece
                yield piece
        sampled.result()
        self.chat.append({"role": "assistant", "content": prompt.begun + answer})

    def forget(self) -> None:
        """Start over with an empty conversation."""
        self.chat = []

    def _settings(self, prompt: int) -> dict[str, Any]:
        sampling, most = self.sampling, self.sampling.max_tokens
        if self.shorten and self.limit.context is not None:
            most = min(most, self.limit.context - prompt)
        pad = self.tokenizer.pad_token_id
        settings: dict[str, Any] = {
            "max_new_tokens": most,
            "do_sample": sampling.temperature > 0,
            "pad_token_id": self.tokenizer.eos_token_id if pad is None else pad,
        }
        if sampling.temperature > 0:
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        return settings


@contextmanager
def opened_model(name: str) -> Iterator[str]:
    """The folder or hub id of what a user calls a model, for as long as this lasts; also `runs/nano-r1@zero:step-200`.

    Raises:
        LookupError: see `model_path` and `pipeline.commands.checkpoint_names.opened`.
    """
    from pipeline.commands import checkpoint_names

    run, at, stage = name.rpartition("@")
    stage, colon, which = stage.partition(":")
    if not (at and colon and Path(run).is_dir()) or Path(name).is_dir():
        yield model_path(name)
        return
    with checkpoint_names.opened(Path(run), _stage(Path(run), stage), which) as folder:
        yield str(folder)


def model_path(name: str) -> str:
    """What a user calls a model: `runs/nano-r1@zero` (a stage of a run), a folder, or a hub id.

    Raises:
        LookupError: the run cannot be read or has no such stage, or the stage has not published a model.
    """
    from pipeline import artifacts
    from pipeline.commands import checkpoint_names
    from pipeline.files import durable

    run, at, stage = name.rpartition("@")
    if Path(name).is_dir():
        return _folder(name)
    if not at:
        return name
    if not Path(run).is_dir():
        raise LookupError(artifacts.no_run(run, f"@{stage}"))
    entry = _stage(Path(run), stage)
    artifact = artifacts.find(Path(run), stage, entry["fingerprint"])
    if artifact is None or not (artifact.path / "model").is_dir():
        found = checkpoint_names.listed(checkpoint_names.available(Path(run), entry))
        more = f"; its checkpoints are {found}: {name}:{checkpoint_names.LAST}" if found else ""
        raise LookupError(f"the stage {stage!r} of {run} has not published a model{more}")
    if faults := artifacts.damage(artifact, "model/"):
        told = durable.describe(faults)
        raise LookupError(f"{name} is damaged ({told}): `zero2r1 doctor --run {run}` says what to do")
    return str(artifact.path / "model")


def _stage(run: Path, stage: str) -> dict[str, Any]:
    """What a run's record says of a stage.

    Raises:
        LookupError: the run cannot be read, or has no such stage.
    """
    from pipeline import artifacts
    from rewards.registry import nearest

    try:
        stages = {entry["name"]: entry for entry in artifacts.record(run)["stages"]}
    except FileNotFoundError:
        raise LookupError(artifacts.no_run(str(run), f"@{stage}")) from None
    except artifacts.RecordError as error:
        raise LookupError(str(error)) from error
    if stage not in stages:
        raise LookupError(f"{run} has no stage {stage!r}{nearest(stage, list(stages))}. Stages: {', '.join(stages)}")
    return dict(stages[stage])


def _folder(name: str) -> str:
    """A folder that is a whole model.

    Raises:
        LookupError: it is a run, or no model.
    """
    from pipeline import artifacts
    from pipeline.conversion import folder

    if (Path(name) / artifacts.RUN_RECORD).is_file():
        try:
            stages = artifacts.current(Path(name))
        except artifacts.RecordError as error:
            raise LookupError(str(error)) from error
        models = [stage for stage, one in stages.items() if one is not None and (one.path / "model").is_dir()]
        raise LookupError(
            f"{name} is a run; write {name}@STAGE for one of its models: {', '.join(models) or 'none yet'}"
        )
    if absent := folder.lacking(Path(name)):
        raise LookupError(f"{name} is not a whole model: it has no {', and no '.join(absent)}")
    return name
