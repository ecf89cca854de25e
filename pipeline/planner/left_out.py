"""What a recipe sets and a plan does not count: a line of its output each.

Every field of a stage is in one of three sets: it is planned, it costs nothing to speak of, or a line says that it is
not counted, and why. A test holds the sets against the fields that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.cost.bill import Assumption
from pipeline.planner.estimate import Estimate
from pipeline.schema.health import Health
from pipeline.schema.strict import Strict

PLANNED = frozenset(
    {"adapter", "context", "corpus", "data", "efficiency", "filters", "harness", "keep", "keep_state", "kind"}
    | {"launch", "length", "length_schedule", "max_length", "model", "models", "mtp", "packing", "pool", "precision"}
    | {"problems", "rewards", "rollout", "rows", "samples", "tasks", "teacher", "tokenizer", "trainer"}
    | {"learns", "vocabulary", "watch"}
    | {"efficiency.fused_kernels", "efficiency.merge_micro_batches", "efficiency.packing"}
    | {"efficiency.reuse_logprobs", "efficiency.tokens_per_pass"}
    | {"rollout.batch_size", "rollout.engine", "rollout.engine_options", "rollout.gpu_memory"}
    | {"rollout.max_staleness", "rollout.max_tokens", "rollout.process", "rollout.scheduler_fast_path"}
    | {"rollout.server", "rollout.spare"}
    | {"watch.batch_size", "watch.every", "watch.max_tokens", "watch.problems", "watch.samples", "watch.tasks"}
    | {"tasks.options", "tasks.problems", "tasks.split", "tasks.use", "tasks.weight"}
)
"""Fields that numbers of a plan follow from."""
FREE = frozenset(
    {"after", "base_model", "chat_template", "chat_template_kwargs", "choose", "dedup", "decontaminate"}
    | {"description", "dtype", "factor", "format", "harness_folder", "license", "name"}
    | {"non_finite", "pairs", "prefill", "require", "revision", "routing", "sample_every", "save", "scope", "scores"}
    | {"seed", "shard_size", "template", "too_long"}
    | {"budgets", "continuations", "exploration", "step_end", "step_tokens", "value", "width"}
    | {"efficiency.background_rewards", "efficiency.drop_dead_groups", "efficiency.dynamic_sampling_queue"}
    | {"rollout.min_p", "rollout.stop", "rollout.temperature", "rollout.too_long", "rollout.top_k"}
    | {"rollout.top_p"}
    | {"watch.stop", "watch.temperature", "watch.top_p"}
    | {"tasks.bad_rows", "tasks.name", "tasks.template"}
)
"""Fields that change time and memory by little, or what every stage of a kind does, which `NOTES` tells once, or of
kinds that are not planned at all, which a plan says."""
NOTES = (
    Assumption(
        "not counted",
        "the processor's work",
        "reading, rendering, deduplicating and decontaminating data; judging",
    ),
)
"""Of every plan."""
UNSAID = Assumption(
    "lengths, rows",
    "where a stage says assumed",
    "--like RUN takes them from a finished run; or --completion-tokens, --prompt-tokens, --pass-rate",
)
ASSUMED = "assumed"
"""What the source of an assumption that nothing tells begins with."""


def unsaid(found: Iterable[Estimate]) -> list[Assumption]:
    """A line on how to say more, where answers' lengths or rows are assumed."""
    lines = [line for each in found for line in each.work.assumptions if line.source.startswith(ASSUMED)]
    return [UNSAID] if lines else []


def _health(value: Health) -> str:
    kept = "an alarm keeps its batch on the disk"
    if value.on_alarm != "rollback":
        return kept
    return f"{kept}, and the steps since a checkpoint are trained again, up to {value.rollbacks} times"


def _keep(value: Any) -> str | None:
    return "each new best look saves the weights" if isinstance(value, Strict) else None  # else: rows of a problem


TOLD: Mapping[str, Callable[[Any], str | None]] = {
    "health": _health,
    "keep": _keep,
    "publish": lambda value: f"uploads to {value.hub}, which the network decides about",
    "stop": lambda value: "training may end earlier; all steps are planned",
    "efficiency.dynamic_sampling_rounds": lambda value: (
        f"up to {value} more rounds of sampling a step, as many as groups without variance ask for"
    ),
    "rollout.speculative": lambda value: "sampling is planned without drafts, which save time and take memory",
    "tasks.filter": lambda value: "all problems of the task are planned; the filter may leave fewer",
}
"""Fields that a line is printed for where they are set -> the line, given the value."""
NESTED = ("efficiency", "rollout", "watch")


def lines(config: Any) -> Iterator[Assumption]:
    """What of a stage is not counted."""
    for name, say in TOLD.items():
        for value in _values(config, name):
            if value and (said := say(value)) is not None:
                yield Assumption(name, "not counted", said)


def _values(config: Any, name: str) -> list[Any]:
    """The values of a field of a stage, or of its tasks; none where the stage has no such field."""
    outer, _, inner = name.rpartition(".")
    if not outer:
        return [getattr(config, name, None)]
    holders = getattr(config, outer, None) or ()
    found = [getattr(holder, inner, None) for holder in (holders if isinstance(holders, list) else [holders])]
    return [value for value in found if value][:1]
