"""A Hub on the loopback interface: the few endpoints with which `huggingface_hub` makes repositories, commits to them
and fetches files by revision.

Files over `LARGE` bytes go through the LFS protocol's basic transfer. Limits: the xet transfer is not spoken, so that
clients have to be told to do without (``HF_HUB_DISABLE_XET``); there are no pull requests, no tags and no gated
repositories; metadata of cards is taken as it comes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""The tokens that the server knows: one may do everything, the other may only read."""

LARGE = 500


class RefusedError(Exception):
    """An answer that is an error: status, what the client is told, and the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def commit_of(self, revision: str) -> str:
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def add(self, branch: str, files: dict[str, bytes]) -> str:
        whole = {**self.commits[self.commit_of(branch)], **files}
        commit = hashlib.sha1(repr((len(self.commits), sorted(whole.items()))).encode()).hexdigest()
        self.commits[commit], self.branches[branch] = whole, commit
        return commit


@dataclass
class Hub:
    """What the server holds, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def repository(self, name: str, token: str | None) -> Repository:
        found = self.repositories.get(name)
        if found is None or (found.private and token is None):
            raise RefusedError(401 if token is None else 404, "Repository not found", "RepoNotFound")
        return found

    def keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(422, "the content is not what was announced")
        self.objects[oid] = content


@contextmanager
def running() -> Iterator[Hub]:
    """A server in a thread of this process, on a port of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def log_message(self, *_: Any) -> None:
        """Keep silent."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        try:
            for pattern, name in _ROUTES:
                found = re.fullmatch(pattern, f"{self.command} {path}")
                if found:
                    self._send(*getattr(self, name)(body, **found.groupdict()))
                    return
            raise RefusedError(404, "no such endpoint", "EntryNotFound")
        except RefusedError as refusal:
            headers = {"X-Error-Message": str(refusal), "X-Error-Code": refusal.code}
            self._send(json.dumps({"error": str(refusal), **refusal.more}).encode(), headers, refusal.status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: Any) -> tuple[bytes, dict[str, str]]:
        return json.dumps(content).encode(), {"Content-Type": "application/json"}

    def _token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, WRITER, READER):
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return token

    def _may_write(self) -> None:
        token = self._token()
        if token != WRITER:
            raise RefusedError(403 if token else 401, "this token may not write here")

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def create(self, body: bytes) -> tuple[bytes, dict[str, str]]:
        self._may_write()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            raise RefusedError(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return self._json({"url": f"{self.hub.url}/{name}"})

    def info(self, body: bytes, repo: str, revision: str = "main") -> tuple[bytes, dict[str, str]]:
        found = self.hub.repository(repo, self._token())
        commit = found.commit_of(revision)
        files = [{"rfilename": name} for name in found.commits[commit]]
        return self._json({"id": repo, "sha": commit, "private": found.private, "siblings": files})

    def branch(self, body: bytes, repo: str, name: str) -> tuple[bytes, dict[str, str]]:
        self._may_write()
        found = self.hub.repository(repo, self._token())
        if name in found.branches:
            raise RefusedError(409, "Reference already exists")
        found.branches[name] = found.branches["main"]
        return self._json({})

    def card(self, body: bytes) -> tuple[bytes, dict[str, str]]:
        return self._json({"warnings": [], "errors": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> tuple[bytes, dict[str, str]]:
        self._may_write()
        self.hub.repository(repo, self._token()).commit_of(revision)
        files = json.loads(body)["files"]
        modes = {
            file["path"]: "lfs" if file["size"] > LARGE and "tensors" in file["path"] else "regular" for file in files
        }
        return self._json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self, body: bytes, repo: str) -> tuple[bytes, dict[str, str]]:
        self._may_write()
        objects = json.loads(body)["objects"]
        upload = [{**o, "actions": {"upload": {"href": f"{self.hub.url}/objects/{o['oid']}"}}} for o in objects]
        return self._json({"transfer": "basic", "objects": upload})

    def store(self, body: bytes, oid: str) -> tuple[bytes, dict[str, str]]:
        self.hub.keep(oid, body)
        return b"", {}

    def commit(self, body: bytes, repo: str, revision: str) -> tuple[bytes, dict[str, str]]:
        self._may_write()
        found, files = self.hub.repository(repo, self._token()), {}
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = found.add(revision, files)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        found = self.hub.repository(repo, self._token())
        commit = found.commit_of(revision)
        if path not in found.commits[commit]:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        content = found.commits[commit][path]
        return content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "card"),
    (rf"GET /api/models/{_REPO}", "info"),
    (rf"GET /api/models/{_REPO}/revision/(?P<revision>.+)", "info"),
    (rf"POST /api/models/{_REPO}/branch/(?P<name>.+)", "branch"),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", "commit"),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /objects/(?P<oid>\w+)", "store"),
    (rf"(?:HEAD|GET) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
