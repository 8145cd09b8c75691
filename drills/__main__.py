"""Disturb real runs and print what was lost: `python -m drills [--only NAME ...] [--out docs/drills.md]`."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from drills import damage, kills, nodes, stops, storage, views, worlds
from drills.job import Failed
from drills.row import Row, table
from drills.scene import Scene

Drill = Callable[[Scene], Iterator[Row]]
DRILLS: dict[str, Drill] = {
    "damage": damage.drill,
    "views": views.drill,
    "storage": storage.drill,
    "nodes": nodes.drill,
    "worlds": worlds.drill,
    "stops": stops.drill,
    "kills": kills.drill,
}

_BEGIN, _END = "<!-- begin: written by python -m drills -->\n", "<!-- end -->\n"


def main(words: Sequence[str] | None = None) -> int:
    """Run drills one after the other; 1 where any of them failed."""
    parser = argparse.ArgumentParser(prog="python -m drills", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=DRILLS, metavar="NAME", help=f"of {', '.join(DRILLS)}")
    parser.add_argument("--out", type=Path, help="page whose table is to be replaced, where all drills passed")
    args = parser.parse_args(words)
    page = args.out.read_text(encoding="utf-8") if args.out else ""  # before hours, not after them
    folder = Path(tempfile.mkdtemp(prefix="drills-"))
    began, rows = time.monotonic(), list[Row]()
    scene = Scene(folder)
    for name in args.only or DRILLS:
        for row in _rows(name, scene):
            rows.append(row)
            print(" | ".join(row.cells()), flush=True)
            for problem in row.found():
                print(f"    {problem}", flush=True)
    failed = [row for row in rows if row.found()]
    text = f"{_about(rows, time.monotonic() - began)}\n{table(rows)}"
    print("\n" + text)
    if failed:
        print(f"{len(failed)} of {len(rows)} failed; their runs and logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    if args.out:
        before, after = page.split(_BEGIN)[0], page.split(_END)[1]
        args.out.write_text(before + _BEGIN + text + _END + after, encoding="utf-8")
    return 0


def _rows(name: str, scene: Scene) -> Iterator[Row]:
    """Of one kind; a drill that does not come to its end is a row that says so."""
    began = time.monotonic()
    try:
        yield from DRILLS[name](scene)
    except Exception as error:
        words = str(error) if isinstance(error, Failed) else traceback.format_exc()
        yield Row(name, "-", "did not come to its end", problems=[words], seconds=time.monotonic() - began)


def _about(rows: Sequence[Row], seconds: float) -> str:
    """When, on what, with which result."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "deepspeed", "wandb"))
    failed = sum(bool(row.found()) for row in rows)
    return (
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {seconds / 60:.0f} minutes on {os.cpu_count()} CPU cores,"
        f" Python {platform.python_version()}, {versions}: {len(rows)} rows, {failed} failed.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
