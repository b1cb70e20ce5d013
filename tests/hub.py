"""A Hugging Face hub that answers: repositories are made, and commits kept, on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What a hub was told.

    Attributes:
        url: Where it answers.
        token: The only token it takes.
        repos: Repositories made, with the request's body.
        files: Files committed, by their path.
        card_front: The YAML it was asked to check.
    """

    token: str
    url: str = ""
    repos: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    card_front: str = ""


class _Handler(BaseHTTPRequestHandler):
    """Answers for the hub that its server carries."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._say(200, {})

    def do_POST(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/api/validate-yaml":
            hub.card_front = json.loads(body)["content"]
            self._say(200, {"errors": [], "warnings": []})
        elif self.headers.get("authorization") != f"Bearer {hub.token}":
            self._say(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            hub.repos.append(told := json.loads(body))
            name = f"{told.get('organization', 'me')}/{told['name']}"
            self._say(200, {"url": f"{hub.url}/{name}", "id": name, "name": name})
        elif "/preupload/" in self.path:
            each = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._say(200, {"files": each})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            hub.files |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            self._say(200, {"commitOid": "1" * 40, "commitUrl": f"{hub.url}/me/a/commit/1"})
        else:
            self._say(404, {"error": f"no such page: {self.path}"})

    def _say(self, status: int, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def local_hub(token: str = "hf_local") -> Iterator[Hub]:
    """Serve a hub on a port of this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        hub = server.hub = Hub(token)  # type: ignore[attr-defined]
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
