"""What started this process: torchrun's agent, deepspeed's two, or nobody that would have to be watched."""

import os
import shlex
import socket
import sys
from collections.abc import Sequence

import psutil

from shards.url import redact


class Launcher:
    """The processes above this one, as they are when this is made.

    torchrun's agent is the parent. Under deepspeed the parent is its `launch`, which every node has, and above that is
    the runner, at which a user's signal arrives: on a single node it dies of it and leaves all below running. Who
    stands higher up, a shell for example, may go when it likes.
    """

    def __init__(self) -> None:
        self._chain: list[psutil.Process] = []
        self._orphan = False
        self._typed = list(sys.orig_argv)
        parent = psutil.Process().parent()
        if parent is None:
            return
        if "TORCHELASTIC_RUN_ID" in os.environ:
            self._chain = [parent]
        elif "deepspeed.launcher.launch" in _words(parent):
            runner = parent.parent()
            self._chain = [parent] if runner is None else [parent, runner]
            # It went while this process was starting, and init took over what it left.
            self._orphan = runner is None or (runner.pid == 1 and not any("deepspeed" in w for w in _words(runner)))
        # Looked up now: when it is asked for, they may be gone.
        if self._chain and not self._orphan:
            self._typed = _words(self._chain[-1]) or self._typed

    @property
    def is_torchrun(self) -> bool:
        """Whether torchrun started this process."""
        return bool(self._chain) and "TORCHELASTIC_RUN_ID" in os.environ

    def gone(self) -> bool:
        """Whether one of them is no longer above this process."""
        if self._orphan:
            return True
        child = psutil.Process()
        for above in self._chain:
            try:
                if child.ppid() != above.pid:
                    return True
            except psutil.NoSuchProcess:
                return True
            except psutil.Error:  # not ours to look at
                return False
            child = above
        return False

    def key(self) -> str | None:
        """What the attempts of one torchrun share on this node and no other job has; None without torchrun."""
        if not self.is_torchrun:
            return None
        return f"{socket.gethostname()}:{self._chain[0].pid}:{self._chain[0].create_time():.2f}"

    def command(self, beyond: int | None = None) -> str | None:
        """What was typed to start all this, as far as can be known, to go on with it; None in a Slurm job.

        See `resuming`. Without the secrets of URLs: it goes to a log.
        """
        if "SLURM_JOB_ID" in os.environ:
            return None
        return shlex.join(redact(w) if "://" in w else w for w in resuming(self._typed, beyond))


def resuming(words: Sequence[str], beyond: int | None = None) -> list[str]:
    """A command that goes on with the run which this one began, as far as that was to go.

    beyond: the steps of the whole run, where `run.max_steps` is what stopped it: it then goes on to its end.
    """
    kept = list(words)
    # python /path/to/torchrun ...: the interpreter stands in the script's first line.
    if len(kept) > 1 and os.access(kept[1], os.X_OK) and not kept[1].endswith(".py"):
        kept.pop(0)
    limit = ("--run.max_steps", "--run.max-steps")
    typed = len(kept)
    if beyond is not None:
        kept = _without(kept, limit)
        if len(kept) == typed:  # it stands in the file
            kept += [limit[0], str(beyond)]
    return [*_without(kept, ("--resume", "--run.resume")), "--resume", "auto"]


def _without(words: list[str], names: tuple[str, ...]) -> list[str]:
    """Words without options of these names and their values."""
    kept, following = [], iter(words)
    for word in following:
        if word in names:
            next(following, None)
        elif not word.startswith(tuple(f"{name}=" for name in names)):
            kept.append(word)
    return kept


def _words(process: psutil.Process) -> list[str]:
    """Its command line; empty where it is gone or not ours to look at."""
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words
