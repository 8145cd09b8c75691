"""torchrun's own restarts (`--max-restarts`): attempts of one job, the later ones of which go on by themselves."""

import contextlib
import json
import os
import sys
from pathlib import Path

from pipeline.config import Config
from pipeline.train import dist
from pipeline.train.checkpoint import complete, read_index
from pipeline.train.dist import World
from pipeline.train.launcher import Launcher

_MARK = "job.json"  # in the run's folder: the agents that its ranks were started by


class Restarts:
    """Tells an attempt that torchrun started again from a new job that would meet a run which is not its own.

    Args:
        config: the run.
        world: this process; all ranks make one together.
        launcher: of this process.
    """

    def __init__(self, config: Config, world: World, launcher: Launcher) -> None:
        self._config, self._leader = config, world.rank == 0
        self._agents = sorted({key for key in dist.gather(launcher.key()) if key is not None})

    def resume(self) -> str:
        """`run.resume`; `auto` in its place where an earlier attempt of this very job began the run, and saved.

        The same on all ranks, which call it together.
        """
        return str(dist.gather(self._own_resume())[0])

    def _own_resume(self) -> str:
        chosen = self._config.run.resume
        count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if not self._leader or chosen == "auto" or count == "0" or not self._saved_since(chosen):
            return chosen
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = json.loads((self._config.folder / _MARK).read_text(encoding="utf-8"))["agents"]
            if set(known) & set(self._agents):  # after a node was lost the others still know each other
                print(f"alasca: restart {count} of this job: on from the newest checkpoint", file=sys.stderr)
                return "auto"
        return chosen

    def _saved_since(self, chosen: str) -> bool:
        """Whether the run holds more than it was to go on from: what was newer then, the first attempt has removed."""
        existing = complete(self._config.folder / "checkpoints")
        if chosen == "none" or not existing:
            return chosen == "none"
        try:
            return int(existing[-1].name[5:]) > int(read_index(Path(chosen))["step"])
        except (OSError, ValueError, KeyError, TypeError):  # no longer there: newer ones took its place
            return True

    def mark(self) -> None:
        """Note in the run's folder that it is this job's, if torchrun may restart it."""
        if self._leader and self._agents and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            path = self._config.folder / _MARK
            path.write_text(json.dumps({"agents": self._agents}) + "\n", encoding="utf-8")
