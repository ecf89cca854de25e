"""A hub on loopback: the part of the Hugging Face hub's HTTP interface that reading or publishing needs.

with Hub() as hub:
    hub.add("someone/sums", {"data/train.parquet": b"…"})
    hub.accounts["a-token"] = "someone"  # who may publish, under `someone/`; `hub.models` has what was published
    # HF_ENDPOINT=hub.address
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

_API = re.compile(
    r"/api/(?:datasets|models)/(?P<name>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)"
    r"(?:/(?P<path>.*))?)?"
)
_PUBLISHING = re.compile(
    r"/api/models/(?P<name>[^/]+/[^/]+)(?:/(?P<what>preupload|commit|tree|revision|resolve)(?:/.*)?)?"
    r"|/(?P<git>[^/]+/[^/]+)\.git/info/lfs/objects/batch|/lfs/(?P<oid>[0-9a-f]{64})"
    r"|/api/(?P<whoami>whoami-v2)|/api/repos/(?P<create>create)|/api/(?P<yaml>validate-yaml)"
)
WHOLE = ("config.json", "model.safetensors", "tokenizer.json")
"""The files of a whole model."""
_FILE = re.compile(r"/(?:datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


def made_whole(folder: Path) -> Path:
    """The smallest folder that is a whole model, for stages that end before they load it."""
    folder.mkdir(parents=True)
    for name in WHOLE:
        header = (2).to_bytes(8, "little") if name.endswith(".safetensors") else b""
        (folder / name).write_bytes(header + b"{}")
    return folder


class Hub:
    """A server in a thread of its own; `address` is its `HF_ENDPOINT`, `asked` every path that it was asked for."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, str] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.accounts: dict[str, str] = {}
        self.reading: set[str] = set()
        """Tokens that only read."""
        self.models: dict[str, Model] = {}
        self.large: dict[str, bytes] = {}
        self.busy = 0
        """How many further requests to upload or to commit are answered with 503."""
        self.down = 0
        """How many further requests to read are answered with 503."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, files: Mapping[str, bytes], gated: bool = False) -> str:
        """A new commit of a data set, or of a model that is only read, which `main` is from now on; returns it."""
        content = json.dumps({path: hashlib.sha1(data).hexdigest() for path, data in sorted(files.items())})
        commit = hashlib.sha1(f"{name}{content}".encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = dict(files)
        self.heads[name] = commit
        if gated:
            self.gated.add(name)
        return commit

    def add_model(self, name: str, files: Iterable[str] = WHOLE, gated: bool = False) -> str:
        """A model that is only looked up, by the names of its files."""
        return self.add(name, dict.fromkeys(files, b"{}"), gated)

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Model:
    """A repository that a model is published in.

    Attributes:
        private: whether only its owner sees it.
        files: its newest commit.
        commits: messages, the oldest first.
    """

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """The newest one."""
        content = [[path, hashlib.sha1(data).hexdigest()] for path, data in sorted(self.files.items())]
        return hashlib.sha1(json.dumps([content, len(self.commits)]).encode()).hexdigest()


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

    def do_PUT(self) -> None:
        self.do_POST()

    def _account(self) -> str | None:
        return self.hub.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _answer(self, body: bool, sent: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        found = _PUBLISHING.fullmatch(path)
        if found is not None and (found["name"] is None or found["name"] in self.hub.models or self._account()):
            return self._publishing(found, sent, body)
        found = _API.fullmatch(path) or _FILE.fullmatch(path)
        if found is None:
            return self._send(404, b"{}", body)
        if self.hub.down > 0:
            self.hub.down -= 1
            return self._send(503, b"busy", body)
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

    def _publishing(self, found: re.Match[str], sent: bytes, body: bool) -> None:
        account, what, name = self._account(), found["what"], found["name"] or found["git"]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if found["oid"]:
            if self.hub.busy > 0:
                self.hub.busy -= 1
                return self._send(503, b"busy", body)
            self.hub.large[found["oid"]] = sent
            return self._json({}, body)
        if account is None:
            return self._send(401, b'{"error": "Invalid credentials"}', body)
        if found["whoami"]:
            role = "read" if token in self.hub.reading else "write"
            said = {"type": "user", "name": account, "orgs": [], "auth": {"accessToken": {"role": role}}}
            return self._json(said, body)
        if found["yaml"]:
            return self._json({"errors": [], "warnings": []}, body)
        if found["create"]:
            asked = json.loads(sent)
            name = f"{asked['organization'] or account}/{asked['name']}"
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.models.setdefault(name, Model(private))
            return self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name}, body)
        if name not in self.hub.models:
            return self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        model = self.hub.models[name]
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", "tokenizer.json")) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(sent)["files"]
            ]
            return self._json({"files": modes}, body)
        if found["git"]:
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
                if one["oid"] not in self.hub.large
                else one
                for one in json.loads(sent)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects}, body)
        if what == "commit":
            return self._commit(model, name, sent, body)
        if what == "tree":
            return self._json([_published(path, data, self.hub.large) for path, data in model.files.items()], body)
        if what == "resolve":
            return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
        info = {"_id": "1", "id": name, "sha": model.commit, "private": model.private, "gated": False, "tags": []}
        info |= {"siblings": [{"rfilename": path} for path in model.files], "downloads": 0, "likes": 0}
        return self._json(info, body)

    def _commit(self, model: Model, name: str, sent: bytes, body: bool) -> None:
        if self.hub.busy > 0:
            self.hub.busy -= 1
            return self._send(503, b"busy", body)
        files = dict(model.files)
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                model.commits.append(value["summary"])
        model.files = files
        where = f"{self.hub.address}/{name}/commit/{model.commit}"
        return self._json({"commitUrl": where, "commitOid": model.commit, "success": True}, body)

    def _json(self, said: Any, body: bool) -> None:
        self._send(200, json.dumps(said).encode(), body)

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


def _published(path: str, data: bytes, large: Mapping[str, bytes]) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    entry["oid"] = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    if (digest := hashlib.sha256(data).hexdigest()) in large:
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}


def _paths(sent: str) -> list[str]:
    if sent.startswith("{"):
        paths = json.loads(sent)["paths"]
        return [paths] if isinstance(paths, str) else list(paths)
    return [
        unquote(part.removeprefix("paths=").replace("+", " ")) for part in sent.split("&") if part.startswith("paths=")
    ]
