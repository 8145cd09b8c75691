"""A stand-in for wandb's server, on loopback, that can be well or ill."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from viewed import PATIENCE_S

from pipeline.record import view


class Server(ThreadingHTTPServer):
    """Answers as much of wandb's interface as a run needs; `state` is "well", "slow", "error" or "garbage".

    `uploads` are the variables of every UpsertBucket, `lines` the history as a server keeps it: by offset.
    """

    daemon_threads = True

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state, self.requests = state, 0
        self.uploads: list[dict[str, Any]] = []
        self.lines: dict[int, dict[str, Any]] = {}
        self.summary = "{}"
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those who ask may leave early."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.requests += 1
        if self.server.state == "slow":
            self.server.closing.wait(60)
        elif self.server.state == "error":
            self.answer(b"no", status=500)
        elif self.server.state == "garbage":
            self.answer(b"<html>not at all")
        elif self.path == "/graphql":
            self.answer(json.dumps({"data": self.data(json.loads(body))}).encode())
        else:
            files = json.loads(body).get("files") or {} if self.path.endswith("/file_stream") else {}
            if chunk := files.get("wandb-history.jsonl"):
                for number, line in enumerate(chunk["content"], chunk["offset"]):
                    self.server.lines[number] = json.loads(line)
            if chunk := files.get("wandb-summary.json"):
                self.server.summary = chunk["content"][-1]
            self.answer(b"{}")

    do_GET = do_PUT = do_POST

    def data(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, variables = asked["query"], asked.get("variables") or {}
        lines = self.server.lines
        project = {"id": "p", "name": "alasca", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": variables.get("name"), "displayName": "d", "config": "{}", "project": project}
        if "upsertBucket" in query:
            self.server.uploads.append(variables)
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(lines)}, "inserted": not lines}}
        if "RunResumeStatus" in query and lines:
            tail = json.dumps([json.dumps(lines[max(lines)])])
            counts = {"historyLineCount": len(lines), "logLineCount": 0, "eventsLineCount": 0}
            known = {"summaryMetrics": self.server.summary, "historyTail": tail, "eventsTail": "[]", "tags": []}
            return {"model": project | {"bucket": bucket | counts | known | {"wandbConfig": '{"t": 1}'}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/up"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "viewer" in query.lower():
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Parametrize indirectly with the state; without one the server is well."""
    with Server(getattr(request, "param", "well")) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short limits, and no settings or key of whoever runs this."""
    monkeypatch.setattr(view, "PATIENCE_S", PATIENCE_S)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
