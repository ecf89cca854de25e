"""A bucket on a disk: what several processes of a test may share as an object store."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class Disk(LocalFileSystem):  # type: ignore[misc]
    """Objects appear at once with all of their content, and are created exclusively if that is asked for."""

    protocol = "disk"
    local_file = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix("disk://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        there = Path(self._strip_protocol(path))
        part = there.with_name(f".{uuid.uuid4().hex}.part")
        part.write_bytes(value)
        if mode != "create":
            part.replace(there)
            return
        try:
            os.link(part, there)
        finally:
            part.unlink()
