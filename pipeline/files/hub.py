"""The Hugging Face hub: which commit the name of a data set stands for, and its rows; which files a model has.

The address is that of `HF_ENDPOINT`, the key that of `HF_TOKEN`, and copies lie where `HF_HOME` says. Without a network
a set that was read before is found again, at the commit that it had, and a model that was loaded before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.files import durable, formats
from pipeline.files.rows import RowError
from pipeline.schema.hub import HubSource

log = logging.getLogger(__name__)

MAIN = "main"
TIMEOUT_SECONDS = 10.0
STREAMED_BYTES = 8 * 2**30
"""Sets that say they are larger are streamed."""
COMMIT_DIGITS = 40
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed later."""
KINDS = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
CONFIG = "config.json"
UNREACHABLE = "there is no such folder here, and the hub cannot be reached: download it first, or name a local folder"


class HubError(RowError):
    """A data set or model that is not there, may not be read, or has no such revision, configuration or split."""


def commit(source: HubSource) -> str:
    """The commit that a revision stands for now; without a network, the one that was found last on this machine.

    Raises:
        HubError: there is no such data set or revision, it may not be read, or nobody knows.
    """
    if source.revision is not None and _is_commit(source.revision):
        return source.revision
    found = _commit(source.hub, source.revision or MAIN)
    if isinstance(found, HubError):
        raise found
    return found


def pinned(source: HubSource) -> HubSource:
    """The same at a commit; see `commit`."""
    return source.model_copy(update={"revision": commit(source)})


def _is_commit(revision: str) -> bool:
    return len(revision) == COMMIT_DIGITS and all(digit in "0123456789abcdef" for digit in revision)


@lru_cache
def _commit(name: str, revision: str) -> str | HubError:
    """Asked once a process, so that all stages of a run take the same commit."""
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    known = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / revision
    try:
        found = HfApi().dataset_info(name, revision=None if revision == MAIN else revision, timeout=TIMEOUT_SECONDS).sha
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        if not _unreachable(error):
            return _refused(name, revision, error)
        if known.is_file():
            return known.read_text(encoding="utf-8").strip()
        return HubError(
            f"data set {name}: cannot reach the hub at {constants.ENDPOINT} ({_line(error)}), and no copy is here"
        )
    if found is None:
        return HubError(f"data set {name}: the hub names no commit for {revision}")
    known.parent.mkdir(parents=True, exist_ok=True)
    durable.write(known, found)
    return str(found)


def _unreachable(error: Exception) -> bool:
    """Whether a hub was not asked at all, or had no time to answer."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in BUSY
    return not isinstance(error, HFValidationError)


def _refused(name: str, revision: str, error: Exception) -> HubError:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return HubError(gated(name))
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"data set {name}: there is none of that name on {constants.ENDPOINT}, or it is private: then set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"data set {name}: there is no revision {revision!r}")
    return HubError(f"data set {name}: {_line(error)}")


def gated(name: str) -> str:
    """What is said of a set whose terms have to be accepted first."""
    from huggingface_hub import constants

    return (
        f"data set {name} is gated: accept its terms at {constants.ENDPOINT}/datasets/{name}, and set HF_TOKEN to a"
        " token of that account"
    )


def model_fault(name: str, revision: str | None = None) -> str:
    """Why a model cannot be had from the hub, in one line; empty if it can, was loaded before, or is a folder here."""
    if not Path(name).exists():
        try:
            model_files(name, revision)
        except HubError as error:
            return str(error)
    return ""


def model_files(name: str, revision: str | None = None) -> tuple[str, ...]:
    """The files of a model on the hub; without a network, those of the copy that is here.

    The hub is asked once, with a limit of time: clients that load files ask six times, which takes half a minute where
    there is no network.

    Args:
        name: its id, `owner/name`.
        revision: branch, tag or commit; the main branch if not given.

    Raises:
        HubError: there is no such model or revision, it may not be read, or nobody knows.
    """
    import httpx
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS)
        files = tuple(file.rfilename for file in info.siblings or ())
        if info.gated:  # everybody may see that it is there
            hf_hub_download(name, CONFIG, revision=revision)
        return files
    except LocalEntryNotFoundError:
        pass
    except EntryNotFoundError:  # an adapter, or a repository of another kind, such as of GGUF files
        return files
    except GatedRepoError as error:
        told = f"it is gated: accept its terms at {constants.ENDPOINT}/{name}, and set HF_TOKEN to a token of yours"
        raise HubError(told) from error
    except RepositoryNotFoundError as error:
        told = f"it is no folder here, and no model on {constants.ENDPOINT}, or a private one: then set HF_TOKEN"
        raise HubError(told) from error
    except RevisionNotFoundError as error:
        raise HubError(f"it has no revision {revision!r} on {constants.ENDPOINT}") from error
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        if not _unreachable(error):
            raise HubError(_line(error)) from error
    try:
        copy = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise HubError(UNREACHABLE) from error
    return tuple(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())


def config_file(name: str, revision: str | None, ask: bool) -> Path | None:
    """Where a copy of the config of a model of the hub is; `None` if there is none.

    Args:
        name: its id, `owner/name`.
        revision: branch, tag or commit; the main branch if not given.
        ask: whether the hub is asked for it where there is no copy.
    """
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    for local in (True, False) if ask else (True,):
        try:
            return Path(hf_hub_download(name, CONFIG, revision=revision, local_files_only=local))
        except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError):  # told by `model_files`, where it matters
            pass
    return None


def rows(source: HubSource) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set, each with its place, such as `someone/sums@1f2e3d4c train, row 17`.

    Raises:
        HubError: see `commit`; or there is no such configuration, split or file, or the data cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    source = pinned(source)
    where = f"{source} {source.split}"
    found = _opened(source)
    number = 0
    try:
        for row in found:
            number += 1
            yield f"{where}, row {number}", row
    except _faults() as error:
        raise HubError(f"{where}, after row {number}: {_line(error)}") from error


def _opened(source: HubSource) -> Any:
    from datasets import load_dataset_builder

    try:
        if source.files:
            kind = KINDS.get(formats.kind(Path(source.files[0])), "json")
            urls = [f"hf://datasets/{source.hub}@{source.revision}/{file}" for file in source.files]
            builder = load_dataset_builder(kind, data_files={source.split: urls})
        else:
            builder = load_dataset_builder(source.hub, source.config, revision=source.revision)
            if _is_commit(str(builder.hash)) and builder.hash != source.revision:
                raise HubError(
                    f"data set {source}: the hub cannot be reached, and the copy here is of commit {builder.hash[:8]}"
                )
        splits = builder.config.data_files or {}
        if missing := [part for part in source.split.split("+") if splits and part.partition("[")[0] not in splits]:
            raise HubError(f"data set {source}: there is no split {missing[0]!r}; it has: {', '.join(splits)}")
        large = (builder.info.dataset_size or builder.info.download_size or 0) > STREAMED_BYTES
        if source.streaming or (source.streaming is None and large):
            parts = [builder.as_streaming_dataset(split=part) for part in source.split.split("+")]
            return (row for part in parts for row in part)
        builder.download_and_prepare()
        return builder.as_dataset(split=source.split)
    except HubError:
        raise
    except _faults() as error:
        raise _explained(source, error) from error


def _explained(source: HubSource, error: BaseException) -> HubError:
    from huggingface_hub.errors import GatedRepoError

    causes = durable.causes(error)
    if any(isinstance(cause, GatedRepoError) or "is a gated dataset" in str(cause) for cause in causes):
        return HubError(gated(source.hub))
    if "BuilderConfig" in (message := _line(error)):
        return HubError(f"data set {source}: {message} (the field `config`)")
    if message.startswith("Config name is missing"):  # the configurations stand in the next line
        said = str(error).strip().splitlines()[1:2]
        return HubError(f"data set {source}: {' '.join([message, *said])} (the field `config`)")
    return HubError(
        f"data set {source}: {_line(causes[1] if type(error).__name__ == 'DatasetGenerationError' else error)}"
    )


def _faults() -> tuple[type[BaseException], ...]:
    """What `datasets` raises where data cannot be had or read."""
    import httpx
    import pyarrow as pa
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    return (
        DatasetsError,
        HfHubHTTPError,
        httpx.HTTPError,
        pa.ArrowException,
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
    )


def _line(error: BaseException) -> str:
    return next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)
