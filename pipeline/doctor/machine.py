"""What this machine gives a process: cores, memory, disk, shared memory, open files."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.doctor.check import Check

GB = 1e9
LEAST_DISK, LEAST_SHARED, LEAST_FILES = 10 * GB, 1 * GB, 4096

_CGROUP, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cores(name: str) -> Check:
    """CPU cores this process may use, by affinity and by its control group."""
    usable, limit = len(os.sched_getaffinity(0)), cpu_limit()
    found = f"{usable} of {os.cpu_count()} usable by this process"
    if limit is not None and limit < usable:
        fit = max(1, int(limit))
        found += f", but its control group gives it the time of {limit:.2g}"
        return Check(name, "warn", found, f"alasca shard --workers {fit}, and data.workers to match")
    return Check(name, "ok", found)


def memory(name: str) -> Check:
    """Main memory, of the machine and of the control group."""
    told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(told[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = memory_limit()
    group = f"; its control group allows {limit / GB:.1f} GB" if limit is not None and limit < total else ""
    return Check(name, "ok", f"{free / GB:.1f} of {total / GB:.1f} GB available{group}")


def disk(name: str) -> Check:
    """Room where runs go: the current folder."""
    return _room(name, Path.cwd(), "free some, or change to a folder with more")


def temporary(name: str) -> Check:
    """Room for temporary files."""
    return _room(name, Path(tempfile.gettempdir()), "export TMPDIR=/a/folder/with/more")


def shared_memory(name: str) -> Check:
    """/dev/shm, through which data workers hand over their batches."""
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError as error:
        return Check(name, "warn", f"none: {error.strerror}", "data.workers = 0, or mount a tmpfs at /dev/shm")
    found = f"{size / GB:.2f} GB"
    if size < LEAST_SHARED:
        return Check(name, "warn", f"{found}, little for the batches of data workers", "docker run --shm-size=8g ...")
    return Check(name, "ok", found)


def open_files(name: str) -> Check:
    """How many files this process may have open: a rank keeps many shards open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= LEAST_FILES:
        return Check(name, "ok", "any number" if soft == resource.RLIM_INFINITY else f"{soft:,}")
    enough = hard == resource.RLIM_INFINITY or hard >= LEAST_FILES
    mend = f"ulimit -n {65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)}"
    raised = mend if enough else f"as root, raise nofile in /etc/security/limits.conf (the hard limit is {hard:,})"
    return Check(name, "warn", f"{soft:,}, below {LEAST_FILES:,}", raised)


def cpu_limit(root: Path = _CGROUP, mine: Path = _MINE) -> float | None:
    """Cores whose time the control groups of this process allow it; None where they set no limit.

    root, mine: where the groups are mounted, and the file that names those of this process; versions 1 and 2.
    """
    limits = []
    for folder in _groups("cpu", root, mine):
        words = _words(folder, "cpu.max") or _words(folder, "cpu.cfs_quota_us", "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1"):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def memory_limit(root: Path = _CGROUP, mine: Path = _MINE) -> int | None:
    """Bytes that the control groups of this process allow it; None where they set no limit. As `cpu_limit`."""
    found = (_words(f, "memory.max") or _words(f, "memory.limit_in_bytes") for f in _groups("memory", root, mine))
    return min((int(words[0]) for words in found if words and words[0] != "max"), default=None)


def _groups(controller: str, root: Path, mine: Path) -> Iterator[Path]:
    """Folders of the process's groups, from its own up to the root: every one of them limits it.

    Inside a container the named folder is often the host's and not there; the root is.
    """
    for line in mine.read_text().splitlines() if mine.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        folder = base / path.lstrip("/")
        yield folder
        while folder != base:
            folder = folder.parent
            yield folder


def _words(folder: Path, *names: str) -> list[str]:
    files = [folder / name for name in names]
    return [word for file in files for word in file.read_text().split()] if all(f.is_file() for f in files) else []


def _room(name: str, folder: Path, mend: str) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free in {folder}"
    return Check(name, "warn", found, mend) if free < LEAST_DISK else Check(name, "ok", found)
