"""Trackers that a run is mirrored to, as a piece of a recipe: `track: [wandb, tensorboard]` at its top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, field_validator

from pipeline.schema.strict import Strict
from rewards.registry import nearest

TRACKERS = ("wandb", "trackio", "tensorboard", "mlflow")
"""What `track` may name; each is also the module of its package."""
PROJECT = "zero2r1"
"""Project that runs belong to where neither the recipe nor the environment names one."""


class Track(Strict):
    """A tracker: `track: [tensorboard]`, or with a project of its own `track: [{use: wandb, project: r1-small}]`.

    The events of all stages go into one run of the tracker, under the stage's name (`zero/loss`), beside the recipe,
    its lineage and the versions of packages. Keys and addresses come from the environment, as each tracker's
    documentation names them (`WANDB_API_KEY`, `WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`).

    Attributes:
        use: the tracker: wandb, trackio, tensorboard or mlflow. Without an address in the environment, MLflow writes to
            the folder `track/mlflow` of the run, as TensorBoard does to `track/tensorboard`; trackio to its folder in
            the home.
        project: the project, or MLflow's experiment; what the environment says (`WANDB_PROJECT`,
            `MLFLOW_EXPERIMENT_NAME`), or else `zero2r1`, if not given. TensorBoard has none.
    """

    use: str
    project: str | None = None

    @field_validator("use")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TRACKERS:
            raise ValueError(f"there is no tracker {value!r}{nearest(value, TRACKERS)}. Known: {', '.join(TRACKERS)}")
        return value

    @field_validator("project")
    @classmethod
    def _named(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("a project has a name; leave it out for that of the environment")
        return value


def _mapping(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


def _once(value: Sequence[Track]) -> Sequence[Track]:
    names = [track.use for track in value]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is given twice")
    if (own := next((track for track in value if track.use == "tensorboard" and track.project), None)) is not None:
        raise ValueError(f"tensorboard has no projects: leave out project: {own.project}")
    return value


Tracks = Annotated[list[Annotated[Track, BeforeValidator(_mapping)]], BeforeValidator(_listed), AfterValidator(_once)]
"""A tracker or several, by their names or with options."""
