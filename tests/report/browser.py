"""A real headless Chromium, driven over a pipe by the DevTools protocol: no port, no driver, no network."""

import base64
import itertools
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

_FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
_FLAGS += ("disable-component-update", "disable-sync", "disable-dev-shm-usage", "remote-debugging-pipe")


class Browser:
    """One page of one browser. `events` are all that the page, its log and its network reported."""

    def __init__(self, program: str, profile: Path, patience: float = 20.0) -> None:
        self._patience, self._numbers, self._rest = patience, itertools.count(1), b""
        self.events: list[dict[str, Any]] = []
        from_us, self._to = os.pipe()
        self._from, to_us = os.pipe()
        # Chromium reads descriptor 3 and writes 4.
        script = f'exec "$@" 3<&{from_us} 4>&{to_us}'
        command = [
            "bash",
            "-c",
            script,
            "bash",
            program,
            *(f"--{flag}" for flag in _FLAGS),
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(from_us)
        os.close(to_us)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Answer to one command."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self._patience
        while True:
            answer = self._next(until)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def show(self, page: Path, *, width: int, dark: bool, height: int = 900) -> None:
        """Load a page as a window of this width would, and wait until it is loaded."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.as_uri())
        until = time.monotonic() + self._patience
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next(until)

    def ask(self, expression: str) -> Any:
        """Value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as PNG: the whole of it, or only the window."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Console messages, log entries (refusals of the policy among them) and exceptions since `show`."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Addresses asked for since `show`."""
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        """End it."""
        os.close(self._to)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        os.close(self._from)

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser said nothing for {self._patience} s"
            got = os.read(self._from, 1 << 20)
            assert got, "the browser is gone"
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message
