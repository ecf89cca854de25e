"""The pieces of a recipe as pydantic models: a stage's config, references, rewards, tasks, rollouts.

This is the floor of `pipeline`: nothing here or beside it imports another room. A stage kind subclasses `StageConfig`.
Fields that name another stage carry a `Ref`, so that recipes are checked whole before anything runs::

    class SftConfig(StageConfig):
        model: ModelRef          # "@base", a hub id, or a local folder
        data: list[DataRef]      # "@samples", or a JSONL file
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.schema import trainer_numbers
from pipeline.schema.health import Health
from pipeline.schema.launch import Launch, ProcessSpec
from pipeline.schema.stops import StopsField
from pipeline.schema.strict import EntryError, Strict


class Product(StrEnum):
    """What a stage publishes, and so what a reference to it may stand for."""

    MODEL = "model"
    """`model/`: a Hugging Face folder with weights, config, tokenizer."""
    DATASET = "dataset"
    """`data.jsonl`: one JSON object a row."""
    METRICS = "metrics"
    """Numbers only; they lie in the manifest."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Marks a config field that may say `@stage`; the stage must publish this product."""

    product: Product


@dataclass(frozen=True, slots=True)
class InputFile:
    """Marks a config field that may name a file or folder; its content is part of the stage's fingerprint."""

    required: bool = True


ModelRef = Annotated[str, Ref(Product.MODEL), InputFile(required=False)]
"""`@stage`, a hub id, or a local folder (relative to the recipe)."""
DataRef = Annotated[str, Ref(Product.DATASET), InputFile()]
"""`@stage`, or a JSONL file (relative to the recipe)."""


TENSOR_PARALLEL = "tensor_parallel_size"
PARALLEL = (TENSOR_PARALLEL, "pipeline_parallel_size", "data_parallel_size")
"""Options of vLLM whose product is the number of GPUs of an engine."""
SFT_CONFIG = "trl.trainer.sft_config:SFTConfig"
"""The `trainer_class` of stages that TRL's SFTTrainer trains."""
Dtype = Literal["float32", "bfloat16", "float16"]
"""What weights are stored in."""
Precision = Literal["trainer", "fp8"]
"""What a training stage multiplies in: what `trainer:` says (`bf16`, `tf32`), or FP8, block by block (`model.fp8`)."""


STALL_SECONDS = 600.0
"""Longer than writing or reading the largest file of weights in one call."""
SERVER_STALL_SECONDS = 3600.0
"""Longer than a server takes for the completions of a step."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy's generator takes, which transformers seeds along with torch's and Python's."""

Fault = tuple[tuple[str | int, ...], str]
"""Where in a stage's config something is wrong, and what."""


class StageConfig(Strict):
    """Fields that every stage has.

    Attributes:
        kind: the stage kind.
        after: stages that must be finished first although none of their products is used.
        seed: seed of this stage; the recipe's seed if not given.
        launch: how its process is started.
    """

    version: ClassVar[int] = 1
    """Bumped when the kind's behaviour changes, so that old artifacts become stale."""
    product: ClassVar[Product] = Product.METRICS
    trainer_class: ClassVar[str | None] = None
    """`module:class` of the config that `trainer:` is passed to; its fields are checked without importing it."""
    distributed: ClassVar[bool] = False
    """Whether several processes may share the work, as `launch: {accelerate: …}` makes them do."""
    shared: ClassVar[bool] = False
    """Whether hosts of a cluster may share the sampling; see `pipeline.context.Share`."""
    default_split: ClassVar[Literal["train", "test"]] = "train"
    """Split of the recipe's `task:` that a stage without `tasks` uses."""
    reserved: ClassVar[Mapping[str, str]] = {}
    """Trainer fields that a recipe may not set -> the reason, or what to set instead."""
    trainer_defaults: ClassVar[Mapping[str, Any]] = {}
    """Trainer fields of the stage kind's own, beneath those of a recipe."""
    choices: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Trainer fields of which the trainer takes a few texts, and its config class any -> those."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """Fields of `rollout` that the stage itself reads, whichever engine samples."""

    @classmethod
    def trainer_class_of(cls, values: Mapping[str, Any]) -> str | None:
        """The `trainer_class` of a stage with these fields, before they are validated."""
        return cls.trainer_class

    @classmethod
    def launch_fields(cls) -> set[str]:
        """The fields of `launch` that mean something to stages of this kind."""
        fields = set(Launch.model_fields)
        if not cls.distributed:
            fields -= {"accelerate", "stall"} | (set() if "rollout" in cls.model_fields else {"gpus"})
            fields -= set() if cls.shared else {"nodes"}
        return fields

    kind: str
    after: list[str] = Field(default_factory=list)
    seed: Seed | None = None
    launch: Launch = Launch()

    def outlook(self, processes: int) -> str:
        """What the stage is about to do, in a line for whoever watches; empty if there is nothing to say.

        Args:
            processes: how many share its work.
        """
        return ""

    @property
    def stall(self) -> float:
        """Seconds for which none of its processes may move; see `Launch`."""
        rollout = getattr(self, "rollout", None)
        elsewhere = isinstance(rollout, RolloutSpec) and (rollout.engine == "vllm_server" or rollout.separate_process)
        return self.launch.stall or (SERVER_STALL_SECONDS if elsewhere else STALL_SECONDS)

    def faults(self, base: Path) -> Iterator[Fault]:
        """What is wrong that no single field shows, with file paths read against `base`, the recipe's folder."""
        yield from ()


class PromptedConfig(StageConfig):
    """Fields of the stages that render chats; see `pipeline.prompts.rendering`.

    A model carries them along: what is not given is what the model was trained with last.

    Attributes:
        chat_template_kwargs: arguments of the model's chat template, such as {enable_thinking: false}.
        prefill: text that every answer of the assistant is made to begin with, such as `<think>`. It belongs to the
            prompt: it is read, and neither sampled nor learnt.
    """

    chat_template_kwargs: dict[str, Any] | None = None
    prefill: str | None = None

    @property
    def template_kwargs(self) -> dict[str, Any] | None:
        """`chat_template_kwargs`, or those that `trainer` has, which calls them the same."""
        given = getattr(self, "trainer", {}).get("chat_template_kwargs")
        return self.chat_template_kwargs if given is None else given

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        given = getattr(self, "trainer", {}).get("chat_template_kwargs")
        if given is not None and self.chat_template_kwargs is not None:
            raise ValueError("chat_template_kwargs stands in the stage and in its `trainer`: leave one out")
        if given is not None and not isinstance(given, dict):
            raise ValueError("trainer.chat_template_kwargs is a mapping, such as {enable_thinking: false}")
        return self


class TrainingConfig(StageConfig):
    """What stages share that train a model.

    Attributes:
        non_finite: what a loss or gradient that is NaN or infinite does: `stop` the stage and say where, or `skip` that
            step. Weights that are not finite always stop it.
        health: thresholds of alarms, such as {on_alarm: stop, kl: 0.5}; `{}` takes the usual ones. None if not given.
        dtype: what the published weights are rounded to. If not given, bfloat16; float32 where the stage computes in
            float32 (`trainer.bf16: false`, and on a CPU).
        keep_state: whether the trainer's last state (weights and moments, 12 bytes for each weight that is trained)
            stays in the run when the stage is published, for a longer training to go on from; one state a stage. If
            not given: where that is exact, and up to 16 GiB.
        trainer: fields of TRL's config class.
    """

    product: ClassVar[Product] = Product.MODEL
    distributed: ClassVar[bool] = True

    non_finite: Literal["stop", "skip"] = "stop"
    health: Health | None = None
    dtype: Dtype | None = None
    keep_state: bool | None = None
    trainer: dict[str, Any] = Field(default_factory=dict)

    @field_validator("trainer")
    @classmethod
    def _mappings(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        for name, value in trainer.items():  # transformers would parse it after everything here was checked
            if isinstance(value, str) and value.startswith("{") and value.rstrip().endswith("}"):
                raise ValueError(f"{name} is a mapping in a text: write it as a mapping, without quotation marks")
            if (wrong := trainer_numbers.fault(name, value)) is not None:
                raise EntryError(name, f"{wrong}, not {value!r}")
        return trainer

    @property
    def blocks(self) -> Any:
        """How blocks of multi-token prediction are trained, if there are any."""
        return getattr(self, "mtp", None)


class RewardSpec(Strict):
    """One reward in a recipe: `{use: math, weight: 1.0}`; a plain string is `{use: …}`.

    Attributes:
        use: `accuracy` (each task's own grader), a reward's name, `package.module:function`, or `file.py:function`.
        weight: factor of its score in the sum of all rewards.
        gate: an earlier reward; this one counts only where that one scored 1.
        clip: bounds (low, high) put on the score before weighting.
        where: column -> value(s): rows that it applies to; every row has the column `task`.
        options: arguments of the reward.
        name: name of its metrics and for gates, if not `use`.
    """

    use: str
    weight: float = 1.0
    gate: str | None = None
    clip: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    where: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    name: str | None = None

    @property
    def label(self) -> str:
        """Name of its metrics, and the name that gates refer to."""
        return self.name or self.use.rpartition(":")[2]


class SpeculativeSpec(Strict):
    """Speculative decoding: several tokens are drafted and verified in one pass. What is sampled, and what greedy
    decoding gives, stays the same.

    Attributes:
        tokens: tokens that are drafted a round. If not given, as many as the model has blocks of multi-token
            prediction.
        draft: a smaller model of the same vocabulary that drafts (transformers: for one sequence at a time); the
            model's own prediction blocks if not given.
    """

    tokens: Annotated[int, Field(gt=0)] | None = None
    draft: ModelRef | None = None

    @model_validator(mode="after")
    def _counted(self) -> SpeculativeSpec:
        if self.draft is not None and self.tokens is None:
            raise ValueError("`draft` needs `tokens`: how many the draft model drafts a round")
        return self


class RolloutSpec(Strict):
    """How completions are sampled.

    Attributes:
        engine: `transformers` (any device), `vllm` (in-process, GPU), `vllm_server` (vLLM's own server, at `server` or
            started by this run), or `auto`: vllm where a GPU and vLLM are there, transformers elsewhere. A setting that
            the engine does not read is refused; one of the recipe's is told in a line where the command line has chosen
            another engine.
        max_tokens: longest completion, in tokens.
        stop: texts and token ids at which a completion ends, beside the model's own end-of-sequence tokens, such as
            ["</answer>", 151645]. They stay in it, as the last thing that the model wrote.
        too_long: what to do with a prompt beside which `max_tokens` do not fit into the model's context: stop with an
            `error` before anything is sampled, or `filter` it out and count it.
        temperature: of sampling; 0 is greedy. Training needs 1, the policy's own distribution.
        top_p: the most likely tokens that together have this probability are sampled from; 1 is all.
        top_k: so many of the most likely tokens are sampled from; 0 is all.
        min_p: tokens less likely than this share of the likeliest one are left out; 0 leaves out none.
        batch_size: sequences at a time (`transformers`). More are faster, and take more memory.
        gpu_memory: share of the GPU's memory that vLLM may take for weights and cache. The default leaves the rest to a
            trainer on the same GPU; an engine on a GPU of its own may take 0.85.
        server: address of the vLLM server, such as http://localhost:8000; its key, if it wants one, is the environment
            variable VLLM_API_KEY.
        engine_options: further arguments of `vllm.LLM`, for sampling and for the engine of a trainer.
        process: a process of its own for the transformers or vLLM engine, or several; `{}` takes the defaults.
        speculative: draft tokens and verify several at once; `{}` drafts with the model's own prediction blocks.
        scheduler_fast_path: replace, in an engine of a vLLM version that this was tested with, the part of vLLM's
            scheduler that handles sequences which only get a token longer, and read log-probabilities once a step. What
            is sampled stays the same. Other versions, and vLLM servers, run vLLM's own code.
    """

    engine: Literal["auto", "transformers", "vllm", "vllm_server"] = "auto"
    max_tokens: Annotated[int, Field(gt=0)] = 1024
    stop: StopsField = Field(default_factory=list)
    too_long: Literal["error", "filter"] = "error"
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    batch_size: Annotated[int, Field(gt=0)] = 64
    gpu_memory: Annotated[float, Field(gt=0, le=1)] = 0.3
    server: str | None = None
    engine_options: dict[str, Any] = Field(default_factory=dict)
    process: ProcessSpec | None = None
    speculative: SpeculativeSpec | None = None
    scheduler_fast_path: bool = True

    @property
    def separate_process(self) -> bool:
        """Whether the engine has a process of its own."""
        return self.process is not None

    @property
    def needs_vllm(self) -> bool:
        """Whether vLLM is used here: by an engine that is started."""
        return self.engine == "vllm" or (self.engine == "vllm_server" and self.server is None)

    @property
    def gpus_together(self) -> int:
        """GPUs of one engine, as `engine_options` have it for vLLM."""
        if self.engine == "transformers":
            return 1
        sizes = (self.engine_options.get(name, 1) for name in PARALLEL)
        return math.prod(size for size in sizes if isinstance(size, int))

    @model_validator(mode="after")
    def _as_many_gpus(self) -> Self:
        options = self.engine_options
        for device in self.process.devices if self.process is not None else []:
            gpus = len(device.split(","))
            if gpus > 1 and self.engine == "transformers":
                raise ValueError(f"process.devices: an engine of transformers takes one GPU, not {device}")
            if (together := self.on(device).gpus_together) != gpus:
                sizes = ", ".join(f"{name} {options[name]}" for name in PARALLEL if name in options)
                raise ValueError(f"engine_options: {sizes} is {together} GPUs, and process.devices has {device!r}")
        return self

    @model_validator(mode="after")
    def _in_effect(self) -> Self:
        """A server by its address, for an engine that is one; `pipeline.schema.idle` has what it does not read."""
        if self.server is None:
            return self
        if "@" in self.server:
            raise ValueError("server: an address with a password in it would be recorded: set VLLM_API_KEY instead")
        if not _is_address(self.server):
            raise ValueError(f"server is an address such as http://localhost:8000, not {self.server!r}")
        if urlsplit(self.server).path.rstrip("/").endswith("/v1"):
            raise ValueError(f"server: {self.server} is the address of its API: leave the path /v1 out")
        if self.engine not in ("auto", "vllm_server"):
            raise ValueError(
                f"server has no effect with the engine {self.engine}, which this run starts: leave one out"
            )
        if self.process is not None and self.process.devices:
            raise ValueError(f"process.devices has no effect on a server that runs already: {self.server} has its own")
        return self

    def on(self, device: str) -> Self:
        """The same for one engine on these GPUs: tensor-parallel on as many as no other option takes."""
        assert self.process is not None
        gpus, options = len(device.split(",")), self.engine_options
        others = RolloutSpec.model_construct(engine_options={**options, TENSOR_PARALLEL: 1}).gpus_together
        if gpus > 1 and gpus % others == 0:
            options = {TENSOR_PARALLEL: gpus // others, **options}
        return self.model_copy(update={"process": self.process.on(device), "engine_options": options})


def _is_address(text: str) -> bool:
    """Whether a text is the address of a server, behind which paths can be put."""
    try:
        address = urlsplit(text)
        named = bool(address.hostname) and address.port != 0
    except ValueError:  # there is no such port
        return False
    return named and address.scheme in ("http", "https") and not (address.query or address.fragment)


def check_samples(samples: int, temperature: float) -> None:
    """Refuse several samples a problem that would be the same.

    Raises:
        ValueError: they are greedy.
    """
    if temperature == 0 and samples > 1:
        raise ValueError("temperature 0 gives the same sample every time: set samples to 1, or a temperature")
