"""Models on the Hugging Face hub: whether a folder can be published there, and its upload in a single commit.

All files appear together or none of them does: large ones are uploaded first, and a commit then names all of them. An
upload that is interrupted is taken up by the next one, which sends only what the hub does not have. The key is that of
`HF_TOKEN` or of `hf auth login`, the address that of `HF_ENDPOINT`; neither is written anywhere.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import durable
from pipeline.files.hub import BUSY
from pipeline.schema.hub import Publish

log = logging.getLogger(__name__)

ATTEMPTS = 5
WAIT_SECONDS = 2.0
"""Before the second attempt; twice as long before each further one."""
OF_THE_HUB = frozenset({".gitattributes"})
"""Files that a new repository has by itself."""


class PublishError(ValueError):
    """A model cannot be published; the message says why and what to do."""


def fault(wanted: Publish) -> str | None:
    """Why a model cannot be published, asked before it is made; `None` if it can, as far as that is known."""
    try:
        _target(wanted)
    except PublishError as error:
        return str(error)
    return None


def publish(folder: Path, wanted: Publish, message: str) -> dict[str, str]:
    """Upload all files of a folder in one commit.

    Args:
        folder: weights, tokenizer and card.
        wanted: where to.
        message: of the commit.

    Returns:
        `hub`: owner/name, `commit`: its revision there.

    Raises:
        PublishError: it cannot be done; nothing of the folder is visible on the hub then.
    """
    from huggingface_hub import HfApi, RepoUrl

    api, there = HfApi(), _target(wanted)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if there is not None:
        others = there.keys() - OF_THE_HUB
        if others and others == files.keys() and all(there[name] in _names(files[name]) for name in files):
            log.info("%s on the hub has these very files already", wanted.hub)
            return {"hub": wanted.hub, "commit": str(api.model_info(wanted.hub).sha)}
        if others and not wanted.replace:
            raise PublishError(_occupied(wanted, sorted(others)))
    else:
        made: RepoUrl = _patiently(wanted, lambda: api.create_repo(wanted.hub, private=wanted.private, exist_ok=True))
        log.info("made %s", made)
    removed = "*" if wanted.replace else None
    done = _patiently(
        wanted,
        lambda: api.upload_folder(
            repo_id=wanted.hub, folder_path=folder, commit_message=message, delete_patterns=removed
        ),
    )
    log.info("published %s at %s", wanted.hub, done.oid)
    return {"hub": wanted.hub, "commit": str(done.oid)}


def _target(wanted: Publish) -> dict[str, str] | None:
    """The files of the repository that is there, with their hashes; `None` if there is none.

    Raises:
        PublishError: it may not be written to, or is public while the recipe wants it private.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    if get_token() is None:
        raise PublishError("the hub has to know who publishes: set HF_TOKEN, or log in with `hf auth login`")
    account: Mapping[str, Any] = _patiently(wanted, api.whoami)
    owner = wanted.hub.partition("/")[0]
    if owner not in (known := [account["name"], *(group["name"] for group in account.get("orgs", ()))]):
        raise PublishError(
            f"{wanted.hub}: the token is that of {account['name']}, who publishes under {' or '.join(known)}"
        )
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PublishError(
            f"{wanted.hub}: the token only reads: make one that writes at {constants.ENDPOINT}/settings/tokens"
        )
    try:
        info = _patiently(wanted, lambda: api.model_info(wanted.hub))
    except RepositoryNotFoundError:
        return None
    if wanted.private and not info.private:
        raise PublishError(
            f"{wanted.hub} is there and public: set private: false if all may read what is published, or name another"
        )
    return {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in _patiently(wanted, lambda: list(api.list_repo_tree(wanted.hub, recursive=True)))
        if isinstance(entry, RepoFile)
    }


def _patiently(wanted: Publish, call: Any) -> Any:
    """The answer of the hub to a call; one that is busy, or cannot be reached, is asked again.

    Raises:
        RepositoryNotFoundError: there is no such repository.
        PublishError: it refuses, or does not answer.
    """
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    wait = WAIT_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except OfflineModeIsEnabled as error:
            raise PublishError(f"{wanted.hub}: HF_HUB_OFFLINE is set, so nothing can be published") from error
        except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError) as error:
            answer = next((one for one in durable.causes(error) if isinstance(one, HfHubHTTPError)), None)
            if isinstance(answer, RepositoryNotFoundError) and _status(answer) == 404:
                raise answer from error
            if answer is not None and _status(answer) not in BUSY:
                raise PublishError(_refused(wanted, answer)) from error
            if answer is None and not any(
                isinstance(one, httpx.HTTPError | ConnectionError) for one in durable.causes(error)
            ):
                raise  # a fault of this machine's
            if attempt == ATTEMPTS:
                raise PublishError(
                    f"{wanted.hub}: the hub at {constants.ENDPOINT} did not answer {ATTEMPTS} times"
                    f" ({_line(answer or error)}). Nothing of it is visible there; the same command tries again"
                ) from error
            log.warning("%s: %s; asking again in %g s", wanted.hub, _line(answer or error), wait)
            time.sleep(wait)
            wait *= 2
    raise AssertionError


def _refused(wanted: Publish, error: Any) -> str:
    from huggingface_hub import constants

    if _status(error) == 401:
        return f"{wanted.hub}: the hub at {constants.ENDPOINT} does not know the token: set HF_TOKEN to one that writes"
    if _status(error) == 403:
        return (
            f"{wanted.hub}: the token may not write there: make one that does at {constants.ENDPOINT}/settings/tokens"
        )
    return f"{wanted.hub}: the hub refuses: {_line(error)}"


def _occupied(wanted: Publish, others: list[str]) -> str:
    shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return (
        f"{wanted.hub} on the hub holds other files ({shown}): name another, or set replace: true, which makes a new"
        " commit with these files alone"
    )


def _names(path: Path) -> Iterator[str]:
    """The hashes that the hub may call a file by: that of a large file, and that of git."""
    yield durable.sha256(path)
    yield hashlib.sha1(f"blob {path.stat().st_size}\0".encode() + path.read_bytes()).hexdigest()


def _status(error: Any) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
