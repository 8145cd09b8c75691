"""A web server on loopback that gives away all of a dataset but its shards."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


class Held:
    """Serves a folder; whoever asks for a shard waits until the block is left.

    Attributes:
        url: of the folder.
        waiting: whether anybody asked for a shard.
    """

    def __init__(self, folder: Path) -> None:
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self, directory=str(folder)))
        self.url, self.waiting = f"http://127.0.0.1:{self._server.server_port}", False

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def hold(self) -> None:
        """Wait for the end of the block."""
        self.waiting = True
        self._over.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those who ask leave early: that is the drill."""


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, held: Held, *args: Any, **kwargs: Any) -> None:
        self._held = held
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        if self.path.endswith(".tar"):
            self._held.hold()
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass
