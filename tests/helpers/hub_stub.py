"""A small hub of models that answers on this machine as huggingface.co does, for tests of pushing and loading."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

LICENSES = ("unknown", "apache-2.0", "mit", "cc-by-4.0")


@dataclass
class Repo:
    """A repository: files by path at every commit, and the commit of every branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


@dataclass
class Hub:
    """What the stub holds, and what it was asked.

    Attributes:
        url: Its address.
        repos: By name.
        users: Name, organizations and role by token.
        stored: Large files by their sha256.
        requests: Methods and paths.
        broken: Status that every request but that of the user gets; None for none.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=lambda: {"hf_write": {"name": "ada"}})
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: int | None = None

    def fetched(self) -> set[str]:
        """Paths of the files that were downloaded."""
        return {
            path.split("/resolve/")[1].partition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        }

    def uploads(self) -> int:
        """Large files that were sent."""
        return sum(method == "PUT" for method, _ in self.requests)


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, code: int, content: Any = None, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: int, message: str, error: str = "") -> None:
        more = {"X_Error_Code": error} if error else {}
        self.answer(code, {"error": message}, X_Error_Message=message, **more)

    @property
    def user(self) -> dict[str, Any] | None:
        return self.hub.users.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def may_write(self, repo: str) -> bool:
        user = self.user
        names = [] if user is None else [user["name"], *user.get("orgs", [])]
        return repo.split("/")[0] in names

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path))
        body = self.body()
        parts = path.split("/")
        if path == "api/whoami-v2":
            user = self.user
            if user is None:
                return self.refuse(401, "Invalid credentials in Authorization header")
            orgs = [{"name": name} for name in user.get("orgs", [])]
            role = {"accessToken": {"role": user.get("role", "write")}}
            return self.answer(200, {"name": user["name"], "orgs": orgs, "auth": role})
        if self.hub.broken is not None:
            return self.refuse(self.hub.broken, "the machine room is on fire")
        if path == "api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if path == "api/repos/create":
            return self.create(json.loads(body))
        if parts[0] == "lfs" and self.command == "PUT":
            self.hub.stored[parts[1]] = body
            assert hashlib.sha256(body).hexdigest() == parts[1]
            return self.answer(200)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body)["objects"])
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            name, rest = "/".join(parts[2:4]), parts[4:]
        elif len(parts) > 3 and parts[2] == "resolve":
            name, rest = "/".join(parts[:2]), parts[2:]
        else:
            return self.refuse(404, "Not Found")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.may_write(name)):
            return self.refuse(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        return self.of_repo(name, repo, rest, body)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def validate(self, content: str) -> None:
        found = yaml.safe_load(content.split("---\n")[1])
        wrong = [] if found["license"] in LICENSES else [{"message": f'"license" must be one of {", ".join(LICENSES)}'}]
        self.answer(400 if wrong else 200, {"errors": wrong, "warnings": []})

    def create(self, wanted: dict[str, Any]) -> None:
        owner = wanted.get("organization") or (self.user or {"name": ""})["name"]
        name = f"{owner}/{wanted['name']}"
        if not self.may_write(name):
            return self.refuse(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        if name in self.hub.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repo = self.hub.repos[name] = Repo(private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def batch(self, objects: list[dict[str, Any]]) -> None:
        answers = []
        for each in objects:
            entry = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.stored:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            answers.append(entry)
        self.answer(200, {"transfer": "basic", "objects": answers})

    def of_repo(self, name: str, repo: Repo, rest: list[str], body: bytes) -> None:
        kind = rest[0] if rest else "revision"
        branch = rest[1] if len(rest) > 1 else "main"
        if kind in ("preupload", "commit", "branch") and not self.may_write(name):
            return self.refuse(403, f"no write permission on {name}")
        if kind == "branch":
            if branch in repo.branches:
                return self.refuse(409, "Reference already exists")
            repo.branches[branch] = repo.branches["main"]
            return self.answer(200)
        sha = repo.at(branch)
        if sha is None:
            return self.refuse(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files = repo.commits[sha]
        if kind == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "sha": sha, "private": repo.private, "siblings": siblings})
        if kind == "tree":
            return self.answer(200, [self.entry(path, content) for path, content in files.items()])
        if kind == "preupload":
            wanted = [each["path"] for each in json.loads(body)["files"]]
            modes = [
                {
                    "path": path,
                    "uploadMode": "lfs" if is_large(path) else "regular",
                    "shouldIgnore": False,
                    "oid": oid(path, files),
                }
                for path in wanted
            ]
            return self.answer(200, {"files": modes})
        if kind == "commit":
            return self.commit(name, repo, branch, dict(files), body)
        if kind == "resolve":
            path = "/".join(rest[2:])
            if path not in files:
                return self.refuse(404, "Entry not found", "EntryNotFound")
            etag = f'"{oid(path, files)}"'
            linked = {"X_Linked_Etag": etag, "X_Linked_Size": str(len(files[path]))} if is_large(path) else {}
            return self.answer(200, files[path], ETag=etag, X_Repo_Commit=sha, **linked)
        return self.refuse(404, "Not Found")

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        found = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if is_large(path):
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found

    def commit(self, name: str, repo: Repo, branch: str, files: dict[str, bytes], body: bytes) -> None:
        message = ""
        for line in body.splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] == "header":
                message = value["summary"]
            elif each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif each["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(branch, files, message)
        self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "commitMessage": message})


def oid(path: str, files: dict[str, bytes]) -> str | None:
    """What the hub knows a file by: its sha256 if it is large, else git's name of it."""
    if path not in files:
        return None
    if is_large(path):
        return hashlib.sha256(files[path]).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(files[path]) + files[path]).hexdigest()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the one, with a cache of its own and the token of a user who may write."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    use(monkeypatch, hub.url, cache)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    disable_progress_bars()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """Let huggingface_hub ask a hub at an address; nothing of the user's own is read or written."""
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
