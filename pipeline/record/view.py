"""wandb, kept at arm's length: a process of its own, fed through a pipe that never waits."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.config import Track
from pipeline.record.lines import say
from shards.url import redact

PATIENCE_S = 20.0  # for wandb to take the run, and again to bring in what is left at its end

_GRACE_S = 10.0  # Python starts, wandb is imported, wandb's own limits come late
_BACKLOG = 16 * 2**20  # bytes kept for a process that does not read
_VIEWER = Path(__file__).with_name("viewer.py")


class View:
    """One run as wandb sees it. Any failure is one warning, after which wandb is left alone.

    wandb lives in another process because it blocks: on a socket, on a disk, at exit. Here only bytes go into a pipe.

    Args:
        folder: of the run; wandb's files go below it.
        track: settings.
        name: of the run.
        about: what wandb notes as its configuration.
        resumed: whether an earlier attempt goes on; it keeps the id in `wandb/id` of the run's folder, and its curve.
    """

    def __init__(self, folder: Path, track: Track, name: str, about: dict[str, Any], *, resumed: bool) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._backlog, self._heard = bytearray(), b""
        self._directory: str | None = None
        self._init_until = time.monotonic() + PATIENCE_S + _GRACE_S
        if track.wandb == "disabled":
            return
        try:
            run_id = _run_id(folder / "wandb" / "id", resumed)
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_VIEWER)],  # -P: our metrics.py and summary.py are nobody's top level
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the run; the viewer ends with its input
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdin.fileno(), False)
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            self._give_up(f"{error.strerror}: {error.filename}" if error.filename else str(error))
            return
        init = {
            "dir": str(folder.absolute()),
            "mode": track.wandb,
            "project": track.project,
            "group": track.group,
            "name": name,
            "id": run_id,
            "resume": "allow",
            "config": about,
        }
        argv = [redact(word) if "://" in word else word for word in sys.argv]  # wandb notes the command
        self._send({"open": {"init": init, "patience": PATIENCE_S, "argv": argv, "pid": os.getpid()}})

    def log(self, record: dict[str, Any]) -> None:
        """Hand on a record's numbers; takes microseconds whatever wandb does."""
        if self._process is None:
            return
        prefix = record["kind"] + (f"/{record['set']}" if "set" in record else "")
        figures = {
            f"{prefix}/{k}": v for k, v in record.items() if isinstance(v, int | float) and k not in ("step", "time")
        }
        self._send({"log": {**figures, "step": record["step"]}})
        if self._process is not None and self._directory is None and time.monotonic() > self._init_until:
            self._give_up("it does not answer")

    def show(self, rows: list[list[str]], page: Path) -> None:
        """Hand on a table (its header first) and a page of HTML."""
        if self._process is not None:
            self._send({"show": {"rows": rows, "page": str(page.absolute())}})

    def finish(self, summary: dict[str, Any]) -> None:
        """Hand on the summary and wait for wandb to bring everything in, but not for long."""
        if self._process is None:
            return
        self._send({"finish": summary})
        now = time.monotonic()
        until = (now if self._directory else max(now, self._init_until)) + PATIENCE_S + _GRACE_S
        while self._process is not None and self._backlog and time.monotonic() < until:
            time.sleep(0.05)
            self._exchange()
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - time.monotonic()))
        self._listen()
        if self._process is None:
            return
        status = self._process.poll()
        if status != 0:
            self._give_up("it does not end" if status is None else "its process ended")
            return
        _let_go(self._process, 0)
        self._process = None

    def _send(self, message: dict[str, Any]) -> None:
        self._backlog += (json.dumps(message) + "\n").encode()
        self._exchange()
        if self._process is not None and len(self._backlog) > _BACKLOG:
            self._give_up("it takes nothing in")

    def _exchange(self) -> None:
        """Write what the pipe takes, read what came back."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while self._backlog:
                del self._backlog[: os.write(self._process.stdin.fileno(), self._backlog)]
        except BlockingIOError:
            pass
        except OSError:
            self._listen()  # it may have said why
            if self._process is not None:
                self._give_up("its process ended")
            return
        self._listen()

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 65536):
                self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._directory = message.get("in", self._directory)
            if "out" in message:
                self._give_up(message["out"])
                return

    def _give_up(self, reason: str) -> None:
        """The one warning; nothing of wandb is left running."""
        process, self._process = self._process, None
        self._backlog.clear()
        if process is not None:
            process.kill()  # its service watches it and follows within two seconds
            _let_go(process, _GRACE_S)
        later = f"; later: wandb sync --include-online {self._directory}" if self._directory else ""
        say(f"warning: wandb is out ({reason}); the run goes on, metrics.jsonl has everything{later}")


def _run_id(path: Path, resumed: bool) -> str:
    """The id that attempts of one run share; a run that begins anew gets a new one."""
    if resumed and path.exists() and (known := path.read_text(encoding="ascii", errors="ignore").strip()):
        return known
    path.parent.mkdir(parents=True, exist_ok=True)
    run_id = secrets.token_hex(4)
    path.write_text(run_id + "\n", encoding="utf-8")
    return run_id


def _let_go(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Close the pipes and wait for the end, so long at most."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
