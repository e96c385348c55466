"""A stand-in for the Hub, on this machine: it speaks what huggingface_hub needs to make a repository, fill it and read it."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "StandIn0" * 4


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return hashlib.sha1("\n".join(self.messages).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """The stand-in. It knows one token; a private repository is shown to nobody else.

    Attributes:
        fails: statuses in place of an answer, by a part of the path.
        requests: method, path, and token (None: without) of every request.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.fails: dict[str, int] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: Any) -> None: ...

    def send(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        given = self.headers.get("Authorization")
        token = given.removeprefix("Bearer ") if given else None
        self.server.requests.append((self.command, path, token))
        status = next((status for part, status in self.server.fails.items() if part in path), None)
        if status is not None:
            # The real Hub shows no token either; a proxy in between may show anything.
            self.send({"error": f"said by the stand-in, which was sent {given}"}, status)
        elif path == "/":
            self.send(b"")
        elif path.startswith("/lfs/"):
            self.server.large[path.removeprefix("/lfs/")] = body
            self.send(b"")
        elif self.command in ("POST", "PUT") and token != TOKEN:
            self.send({"error": "Invalid username or password."}, 401)
        elif self.command == "POST":
            self.write(path, body)
        else:
            self.read(path, token)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def write(self, path: str, body: bytes) -> None:
        hub = self.server
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repositories:
                return self.send({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
            is_private = asked.get("private", asked.get("visibility") == "private")
            hub.repositories[name] = Repository(is_private)
            return self.send({"url": f"{hub.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [file["path"] for file in json.loads(body)["files"]]
            return self.send({"files": [self.mode(file) for file in files]})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.send({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            repository = hub.repositories[found[1]]
            for line in map(json.loads, body.splitlines()):
                self.take(repository, line["key"], line["value"])
            return self.send(
                {"commitUrl": f"{hub.url}/{found[1]}/commit/{repository.commit}", "commitOid": repository.commit}
            )
        return self.send({"error": f"the stand-in does not know {path}"}, 404)

    @staticmethod
    def mode(file: str) -> dict[str, Any]:
        large = file.endswith((".safetensors", ".png", ".bin"))
        return {"path": file, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def take(self, repository: Repository, key: str, value: dict[str, Any]) -> None:
        if key == "header":
            repository.messages.append(value["summary"])
        elif key == "file":
            repository.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            content = self.server.large[value["oid"]]
            assert hashlib.sha256(content).hexdigest() == value["oid"]
            repository.files[value["path"]] = content

    def read(self, path: str, token: str | None) -> None:
        for name, repository in self.server.repositories.items():
            if repository.private and token != TOKEN:
                continue
            if re.fullmatch(rf"/api/models/{name}(/revision/.+)?", path):
                siblings = [{"rfilename": file} for file in repository.files]
                return self.send(
                    {
                        "id": name,
                        "modelId": name,
                        "private": repository.private,
                        "sha": repository.commit,
                        "siblings": siblings,
                        "tags": [],
                    }
                )
            if (file := re.fullmatch(rf"/{name}/resolve/[^/]+/(.+)", path)) and file[1] in repository.files:
                content = repository.files[file[1]]
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                return self.send(content, ETag=etag, X_Repo_Commit=repository.commit)
            if path.startswith(f"/{name}/") or path.startswith(f"/api/models/{name}/"):
                return self.send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        return self.send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
