"""A real HTTP server on loopback that serves a folder, and misbehaves where it is told to."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

Fault = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Answers GET with a file of `server.folder`, or with what `server.faults[path]` does with its content."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        if self.server.down:  # a connection that was kept open ends with the server
            self.close_connection = True
            return None
        path = unquote(urlsplit(self.path).path).lstrip("/")
        with self.server.counting:
            self.server.asked[path] += 1
            faults = self.server.faults.get(path, [])
            fault = faults.pop(0) if faults else self.server.always.get(path)
        file = self.server.folder / path
        if fault is None and not file.is_file():
            return status(404)(self, b"")
        if self.server.delay:
            time.sleep(self.server.delay)
        (fault or whole)(self, file.read_bytes() if file.is_file() else b"")
        return None

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Counts what was `asked`; `faults` are used up one after the other, `always` stays."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.folder, self.delay, self.down = folder, 0.0, False
        self.asked: Counter[str] = Counter()
        self.faults: dict[str, list[Fault]] = {}
        self.always: dict[str, Fault] = {}
        self.counting = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def server_close(self) -> None:
        self.down = True
        super().server_close()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what some tests are about."""


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[Server]:
    server = Server(folder, port)
    thread = threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def whole(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def status(number: int) -> Fault:
    def fault(handler: Handler, _: bytes) -> None:
        handler.send_response(number)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return fault


def page(handler: Handler, _: bytes) -> None:
    """What a proxy says with status 200."""
    whole(handler, b"<html><body>Back in five minutes</body></html>")


def short(handler: Handler, content: bytes) -> None:
    """The connection ends before the promised length."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def truncated(handler: Handler, content: bytes) -> None:
    """Whole as far as HTTP can tell."""
    whole(handler, content[:-512])


def flipped(handler: Handler, content: bytes) -> None:
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    whole(handler, bytes(damaged))


def longer(handler: Handler, content: bytes) -> None:
    whole(handler, content + bytes(4 << 20) + content)


def stalls(seconds: float) -> Fault:
    def fault(handler: Handler, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:100])
        handler.wfile.flush()
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def trickles(handler: Handler, content: bytes) -> None:
    """Never silent for long, never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    for byte in content:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.1)
