"""A stand-in for the Hugging Face Hub: the requests with which a data set is created and files are committed to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_" + "a1B2" * 8


@dataclass
class Hub:
    """What the stand-in holds. `failures` answers of 503 come before the next commit is accepted."""

    endpoint: str = ""
    private: bool | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failures: int = 0
    role: str = "write"


@contextmanager
def hub() -> Iterator[Hub]:
    """Run the stand-in while the context lasts."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def answer(self, content: Any, status: int = 200, **headers: str) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_GET(self) -> None:
            state.requests.append(f"GET {unquote(self.path)}")
            if self.headers.get("authorization") != f"Bearer {TOKEN}":
                self.answer({"error": "Invalid username or password."}, 401)
            elif self.path.startswith("/api/whoami"):
                token = {"accessToken": {"role": state.role}}
                self.answer({"type": "user", "name": "me", "orgs": [{"name": "team"}], "auth": token})
            elif "/tree/" in self.path:
                self.answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in state.files])
            else:
                siblings = [{"rfilename": name} for name in state.files]
                self.answer({"_id": "1", "id": "team/data", "sha": "f" * 40, "siblings": siblings})

        def do_PUT(self) -> None:
            data = self.body()
            state.objects[hashlib.sha256(data).hexdigest()] = data
            self.answer({})

        def do_POST(self) -> None:
            state.requests.append(f"POST {unquote(self.path)}")
            body = self.body()
            if self.path == "/api/repos/create":
                known = state.private is not None
                if not known:
                    asked = json.loads(body)
                    state.private = asked.get("private", asked.get("visibility") == "private")
                url = f"{state.endpoint}/datasets/team/data"
                self.answer({"url": url, "error": "You already created this"}, 409 if known else 200)
            elif "/preupload/" in self.path:
                names = [one["path"] for one in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "lfs" if ".zst" in name else "regular"} for name in names]
                self.answer({"files": [{**one, "shouldIgnore": False} for one in modes]})
            elif self.path.endswith("/objects/batch"):
                self.answer({"transfer": "basic", "objects": [self.upload(one) for one in json.loads(body)["objects"]]})
            elif "/commit/" in self.path and state.failures:
                state.failures -= 1
                self.answer({"error": "try again"}, 503)
            elif "/commit/" in self.path:
                self.commit(body)
                url = f"{state.endpoint}/datasets/team/data/commit/{state.commits[-1]}"
                self.answer({"success": True, "commitOid": state.commits[-1], "commitUrl": url, "hookOutput": ""})
            else:
                self.answer({})

        def upload(self, one: dict[str, Any]) -> dict[str, Any]:
            known = one["oid"] in state.objects
            actions = {} if known else {"actions": {"upload": {"href": f"{state.endpoint}/put/{one['oid']}"}}}
            return {**one, "authenticated": True, **actions}

        def commit(self, body: bytes) -> None:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    state.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    state.files[value["path"]] = state.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del state.files[value["path"]]
            state.commits.append(hashlib.sha1(body).hexdigest())

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
