"""What a recipe may not have in it, because it would run a model's own code, or record a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from pipeline.context import exists
from pipeline.conversion import folder
from pipeline.files import formats
from pipeline.files.adapter_folders import AdapterFolderError, base_of, is_adapter
from pipeline.schema.environment import HIDDEN
from pipeline.schema.pieces import Fault, Product, Ref, StageConfig
from pipeline.schema.reserved import REMOTE_CODE, SECRETS
from pipeline.schema.walk import walk
from rewards.registry import located

_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@:]*:[^/\s@]+@\S+$", re.IGNORECASE)


def models(config: StageConfig, base: Path) -> Iterator[Fault]:
    """Folders that are no models, or hold what must not be read or could not be saved again after training."""
    for leaf in walk(config):
        marker = leaf.marker(Ref)
        if marker is None or marker.product is not Product.MODEL or not isinstance(leaf.value, str):
            continue
        path = located(leaf.value, base)
        if leaf.value.startswith("@") or not exists(path):
            continue
        try:
            if path.is_file():
                folder.check_file(path)
            elif not path.is_dir():
                yield leaf.loc, formats.absent(path)
            else:
                folder.check_data(path)
                if is_adapter(path):
                    base_of(path)
                if config.trainer_class is not None and leaf.loc == ("model",):
                    folder.check_generation(path)
        except (folder.ModelFolderError, AdapterFolderError) as error:
            yield leaf.loc, str(error)


def code(config: BaseModel) -> Iterator[Fault]:
    """Settings, however deep, by which a library would run code that comes with a model."""
    for leaf in walk(config):
        key = str(leaf.loc[-1]).replace("-", "_")
        if key.lower() in REMOTE_CODE and leaf.loc != ("trainer", "trust_remote_code"):
            yield leaf.loc, f"code that comes with a model is not run: leave {leaf.loc[-1]} out"


def secrets(config: BaseModel) -> Iterator[Fault]:
    """Secrets outside of environment variables, which a run would record; and what its records have in their place."""
    for leaf in walk(config):
        if not isinstance(leaf.value, str):
            continue
        key = str(leaf.loc[-1])
        if leaf.value == HIDDEN:
            yield leaf.loc, "a run's records have no values of environment variables: give it, or leave the name out"
        elif key in SECRETS or (key == "token" and {"model_init_kwargs", "engine_options"} & set(leaf.loc)):
            yield leaf.loc, f"{key} would be recorded with the run: set an environment variable, such as HF_TOKEN"
        elif _PASSWORD.match(leaf.value):
            yield leaf.loc, "an address with a password in it would be recorded with the run: leave the password out"
