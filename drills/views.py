"""wandb's service is killed in mid-run; wandb cannot be reached, or never answers."""

import socket
import time
from collections.abc import Iterator

from drills import record
from drills.job import kill
from drills.row import Row
from drills.scene import Scene, free_port

_ENDS_S = 240.0


def drill(scene: Scene) -> Iterator[Row]:
    """Three runs; each ends as if there were no wandb, with one warning."""
    scene.straight("short", 2)
    yield _run(scene, "its service killed in mid-run", "view-killed", {}, "offline", kills=True)
    port = free_port()
    yield _run(scene, "nobody at its address", "view-unreachable", _address(port), "online")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(64)
        yield _run(
            scene, "its address takes calls and says nothing", "view-silent", _address(deaf.getsockname()[1]), "online"
        )


def _run(scene: Scene, done: str, name: str, env: dict[str, str], mode: str, *, kills: bool = False) -> Row:
    began = time.monotonic()
    env = {"HOME": str(scene.folder / "home"), "WANDB_DIR": "", **env}
    with scene.start("torchrun", "short", name, "--track.wandb", mode, env=env) as job:
        if kills:
            job.wait_for(lambda: list(scene.run(name).glob("wandb/offline-run-*/*.wandb")), "log of wandb's")
            kill(job.wandb())
        status = job.status(_ENDS_S)
        orphans = job.left(20)
        warnings = [line for line in job.text().splitlines() if line.startswith("warning: wandb")]
    row = Row(
        "wandb",
        "torchrun, 2 ranks",
        done,
        **record.comparison(scene.run(name), scene.straight("short", 2), status),
        orphans=orphans,
        partial=scene.left_by(name),
        seconds=time.monotonic() - began,
    )
    row.problems += [] if len(warnings) == 1 else [f"{len(warnings)} warnings of wandb: {warnings}"]
    return row


def _address(port: int) -> dict[str, str]:
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40}
