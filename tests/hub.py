"""A hub on loopback: the part of the Hugging Face hub's HTTP interface that reading a data set needs.

with Hub() as hub:
    hub.add("someone/sums", {"data/train.parquet": b"…"})
    # HF_ENDPOINT=hub.address
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

_API = re.compile(
    r"/api/datasets/(?P<name>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)"
    r"(?:/(?P<path>.*))?)?"
)
_FILE = re.compile(r"/datasets/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


class Hub:
    """A server in a thread of its own; `address` is its `HF_ENDPOINT`, `asked` every path that it was asked for."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, str] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, files: Mapping[str, bytes], gated: bool = False) -> str:
        """A new commit of a data set, which `main` is from now on; returns it."""
        content = json.dumps({path: hashlib.sha1(data).hexdigest() for path, data in sorted(files.items())})
        commit = hashlib.sha1(f"{name}{content}".encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = dict(files)
        self.heads[name] = commit
        if gated:
            self.gated.add(name)
        return commit

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body=True, sent=sent)

    def _answer(self, body: bool, sent: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        found = _API.fullmatch(path) or _FILE.fullmatch(path)
        if found is None:
            return self._send(404, b"{}", body)
        name = found["name"]
        if name not in self.hub.commits:
            return self._send(401, b"{}", body, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Not found."})
        if name in self.hub.gated and "/resolve/" in path:
            return self._send(
                403, b"{}", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            )
        revision = found["revision"] or "main"
        commit = self.hub.heads[name] if revision == "main" else revision
        files = self.hub.commits[name].get(commit)
        if files is None:
            return self._send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        if "/resolve/" in path:
            return self._file(files, found["path"], commit, body)
        return self._api(name, found["what"], files, commit, found["path"] or "", sent, body)

    def _api(
        self, name: str, what: str | None, files: Mapping[str, bytes], commit: str, under: str, sent: bytes, body: bool
    ) -> None:
        if what == "tree":
            listed = [_entry(path, data) for path, data in files.items() if path.startswith(under)]
            folders = {path.rpartition("/")[0] for path in files if "/" in path}
            listed += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
            return self._send(200, json.dumps(listed).encode(), body)
        if what == "paths-info":
            asked = _paths(sent.decode())
            listed = [_entry(path, files[path]) for path in asked if path in files]
            listed += [
                {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
                for path in asked
                if any(file.startswith(f"{path}/") for file in files)
            ]
            return self._send(200, json.dumps(listed).encode(), body)
        info = {
            "_id": "1",
            "id": name,
            "sha": commit,
            "private": False,
            "gated": "auto" if name in self.hub.gated else False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in files],
        }
        return self._send(200, json.dumps(info).encode(), body)

    def _file(self, files: Mapping[str, bytes], path: str, commit: str, body: bool) -> None:
        if path not in files:
            return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data = files[path]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) is not None:
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self._send(206, data[start : end + 1], body, headers)
        return self._send(200, data, body, headers)

    def _send(self, status: int, data: bytes, body: bool, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}


def _paths(sent: str) -> list[str]:
    if sent.startswith("{"):
        paths = json.loads(sent)["paths"]
        return [paths] if isinstance(paths, str) else list(paths)
    return [
        unquote(part.removeprefix("paths=").replace("+", " ")) for part in sent.split("&") if part.startswith("paths=")
    ]
