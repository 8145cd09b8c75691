"""Every file of a checkpoint cut short, flipped, or missing: it is named, and the one before it is taken."""

import contextlib
import io
import random
import time
from collections.abc import Iterator
from pathlib import Path

from drills import record
from drills.row import Row
from drills.scene import Scene
from pipeline.train.checkpoint import complete, newest
from shards.errors import InputError

_FLIPS = 40  # of one bit, at random, in each file


def drill(scene: Scene) -> Iterator[Row]:
    """Each damage is looked at in this process; then a run goes on from a damaged one."""
    run = scene.copy_of_straight("short", 2, "damaged")
    last = complete(run / "checkpoints")[-1]
    for file in sorted(last.iterdir()):
        began = time.monotonic()
        problems, looks = every_damage(run / "checkpoints", file.name)
        yield Row(
            "damaged checkpoint",
            "none: chosen in this process",
            f"{file.name} of the newest cut short, flipped ({_FLIPS} times one bit), missing: {looks} damages",
            lost="back to the one before",
            seconds=time.monotonic() - began,
            problems=problems,
        )
    began = time.monotonic()
    flipped = last / "rank-00001.safetensors"
    content = flipped.read_bytes()
    flipped.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = record.saved(run)
    status = scene.finish("torchrun", "short", "damaged")
    text = (scene.folder / "damaged.log").read_text()
    row = Row(
        "damaged checkpoint",
        "torchrun, 2 ranks",
        "goes on where rank 1's file of the newest is flipped",
        **record.comparison(run, scene.straight("short", 2), status),
        partial=scene.left_by("damaged"),
        seconds=time.monotonic() - began,
    )
    row.lost = f"back from step {before} to the one before"
    named = f"skipping the damaged checkpoint {last}: rank-00001.safetensors is not what was written" in text
    row.problems += [] if named else ["it is not named"]
    yield row


def every_damage(folder: Path, name: str) -> tuple[list[str], int]:
    """Damage one file of the newest checkpoint in each way, look what is chosen, and put it back.

    Args:
        folder: `checkpoints`, with two undamaged ones or more.
        name: of the file.

    Returns:
        What is not as it should be, and the number of damages.
    """
    older, last = complete(folder)[-2:]
    whole = (last / name).read_bytes()
    damages = _damages(whole)
    problems = []
    for words, content in damages:
        if content is None:
            (last / name).unlink()
        else:
            (last / name).write_bytes(content)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                chosen: Path | str | None = newest(folder)
        except InputError as error:
            chosen = str(error)
        if chosen != older:
            problems.append(f"{name} {words}: chosen is {chosen}")
        elif f"skipping the damaged checkpoint {last}" not in said.getvalue():
            problems.append(f"{name} {words}: not named")
        (last / name).write_bytes(whole)
    if newest(folder) != last:
        problems.append(f"{name} put back: not chosen")
    return problems, len(damages)


def _damages(whole: bytes) -> list[tuple[str, bytes | None]]:
    rng = random.Random(len(whole))
    found: list[tuple[str, bytes | None]] = [("missing", None), ("empty", b"")]
    found += [(f"cut to {n}", whole[:n]) for n in (1, len(whole) // 2, len(whole) - 1)]
    found.append(("one byte longer", whole + b"\0"))
    for _ in range(_FLIPS):
        bit = rng.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        found.append((f"bit {bit} flipped", bytes(flipped)))
    return found
