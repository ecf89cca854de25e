"""How processes are started, and on which GPUs: those of a stage, and those of its engines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.schema.environment import Environment
from pipeline.schema.strict import Strict

VISIBLE = "CUDA_VISIBLE_DEVICES"
ALL = "all"
"""Instead of a number of GPUs: as many as there are."""


class Launch(Strict):
    """How a stage's process is started.

    Attributes:
        accelerate: an `accelerate` config: a name under `configs/accelerate/`, or a YAML file; plain Python without.
        gpus: how many GPUs the stage gets, or `all`; no other stage runs on them meanwhile. With `accelerate` it starts
            a process on each. A stage that samples starts an engine on each, and one that trains has those for its
            engines that `rollout.process.devices` counts, from 0. If not given: as many as `accelerate` starts
            processes, or one.
        nodes: over how many hosts of a cluster (`zero2r1 run --cluster`) a stage is spread, each with as large a part
            of `gpus`: one that trains with `accelerate`, or samples and judges, with fewer hosts if there are no more.
        deadline: seconds after which a host of a cluster that does not answer counts as lost, and after which a host
            that hears nothing of the run ends its processes.
        env: environment variables for the stage's process; their values are recorded nowhere.
        restarts: how often a stage whose process has ended without a result goes on from its last checkpoint in a new
            process. The run fails after that.
        silence: seconds without a line in the log or a logged step after which the process counts as hung and is
            killed; never if not given. Longer than a step, and than loading the model and starting an engine.
        stall: seconds for which every process of a stage may stand at the same line of its program. After that they
            count as waiting for each other, and are killed. If not given: 600, or 3600 with engines in processes of
            their own or a `vllm_server`. For stages of several processes.
    """

    accelerate: str | None = None
    gpus: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    nodes: Annotated[int, Field(ge=1)] = 1
    deadline: Annotated[float, Field(gt=0)] = 60.0
    env: Environment = Field(default_factory=dict)
    restarts: Annotated[int, Field(ge=0)] = 0
    silence: Annotated[float, Field(gt=0)] | None = None
    stall: Annotated[float, Field(gt=0)] | None = None


class ProcessSpec(Strict):
    """A process of its own for an engine. One that dies or hangs is started again, and what it was asked is redone.

    Attributes:
        devices: the GPUs of each engine, as `CUDA_VISIBLE_DEVICES` has them; several engines share the prompts. `[1]`
            is one engine on the second GPU, `[1, 2]` are two on a GPU each, `[0, 0]` two that share one, and `[[2, 3]]`
            is one that is tensor-parallel on two GPUs. With `launch.gpus` they are counted among the stage's own. Those
            of this process if not given.
        env: environment variables of the engines' processes; their values are recorded nowhere.
        deadline: seconds without a step of an engine (one token of each running sequence) after which it counts as
            hung.
        restarts: how often in a row an engine is started again for one request before the stage fails.
    """

    devices: list[str] = Field(default_factory=list)
    env: Environment = Field(default_factory=dict)
    deadline: Annotated[float, Field(gt=0)] = 300.0
    restarts: Annotated[int, Field(ge=0)] = 3

    @field_validator("devices", mode="before")
    @classmethod
    def _as_texts(cls, devices: Any) -> Any:
        if not isinstance(devices, list):
            return devices
        lists = [",".join(map(str, one)) if isinstance(one, list) and one else one for one in devices]
        texts = [str(one) if type(one) is int else one for one in lists]
        for one in filter(lambda one: isinstance(one, str) and "," in one, texts):
            gpus = [gpu.strip() for gpu in one.split(",")]
            if len(set(gpus)) < len(gpus):
                raise ValueError(f"an engine on the GPUs {one} would have one of them twice")
        return texts

    @model_validator(mode="after")
    def _told_once(self) -> ProcessSpec:
        if self.devices and VISIBLE in self.env:
            raise ValueError(f"`devices` and env.{VISIBLE} both say where the engine is: leave one out")
        return self

    def on(self, device: str) -> ProcessSpec:
        """The same for one engine on these GPUs."""
        return self.model_copy(update={"devices": [], "env": {**self.env, VISIBLE: device}})
