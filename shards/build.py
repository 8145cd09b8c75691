"""Records -> shards, sample table and manifest: parallel, restartable, byte-identical for equal input."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict, Unpack

from shards import interrupts, worker
from shards.destination import find
from shards.errors import InputError
from shards.localfolder import LocalFolder
from shards.manifest import Manifest
from shards.noise import Noise
from shards.outline import Outline, shard_name
from shards.part import Part
from shards.plan import make as make_plan
from shards.progress import Progress
from shards.publication import publish_build
from shards.readers.record import Source
from shards.staging import Staging, check_folder, finished, sidecars


class Options(TypedDict, total=False):
    """What a build may be asked for; see `build`."""

    seed: int
    noise: Noise | None
    resize: int | None
    samples_per_shard: int
    workers: int | None
    allow_missing: float
    progress: Progress | None


def check(
    out: str | Path,
    root: Path | None,
    seed: int,
    resize: int | None,
    samples_per_shard: int,
    workers: int | None,
    allow_missing: float,
) -> None:
    """Raise InputError for bad values and a bad `out`: what `build` can say before the raw dataset is read."""
    for name, value, least in [("seed", seed, 0), ("resize", resize, 1)]:
        if value is not None and not least <= value < 2**32:
            raise InputError(f"--{name} {value}: must be at least {least} and below 2**32")
    for name, value in [("samples-per-shard", samples_per_shard), ("workers", workers)]:
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: must be at least 1")
    if not 0 <= allow_missing < 1:
        raise InputError(f"--allow-missing {allow_missing}: must be a share of the images, from 0 to below 1")
    destination = find(out)
    if root is not None and isinstance(destination, LocalFolder):
        folder, inside = os.path.realpath(destination.root), os.path.realpath(root)
        if Path(folder).is_relative_to(inside):
            raise InputError(f"--out {out}: lies inside --root {root}; write the shards beside the raw images")
    check_folder(destination)


def build(source: Source, out: str | Path, **options: Unpack[Options]) -> Manifest:
    """Write the dataset folder `out` from `source` and return it opened.

    Records go in one globally shuffled order, so any run of neighbouring ids is a fair sample of the classes. Equal
    records, image bytes and settings give equal bytes, whatever `workers` (default: all CPUs this process may use; 1
    works in this process), and whether or not the build was killed and called again in between. A folder that holds
    the result already is left alone. `out` may be a URL.

    resize: pixels of the short side; larger images are shrunk and encoded again, all others keep their bytes. An image
    whose header cannot be read is kept, with width and height 0, and listed in `Manifest.source["unreadable"]`.

    allow_missing: share of the images (0 to below 1) that may be missing; these are left out, counted in
    `Manifest.source["counts"]`, and said.

    Raises InputError, before anything is written, for bad values, for images that are missing or named twice, and for a
    folder that holds something else; and later where an image, the disk or a server fails, keeping what is finished.
    """
    manifest = _build(source, out, None, **options)
    assert manifest is not None
    return manifest


def build_part(source: Source, out: str | Path, part: Part, **options: Unpack[Options]) -> bool:
    """Write one part of what `build` writes; `shards.merge` makes a dataset of all parts, in whichever folders.

    Returns whether it is still to be merged: not where `out` holds the finished build already. Raises as `build`.
    """
    return _build(source, out, part, **options) is None


def _build(
    source: Source,
    out: str | Path,
    part: Part | None,
    *,
    seed: int = 0,
    noise: Noise | None = None,
    resize: int | None = None,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    allow_missing: float = 0.0,
    progress: Progress | None = None,
) -> Manifest | None:
    progress = progress or Progress()
    check(out, source.root, seed, resize, samples_per_shard, workers, allow_missing)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    plan = make_plan(source, seed, noise, resize, samples_per_shard, allow_missing, progress)
    destination = find(out)
    name = destination.name
    if plan.missing:
        images = "1 image that is" if plan.missing == 1 else f"{plan.missing:,} images that are"
        progress.say(f"{source.root}: left out {images} not there")
    if manifest := finished(destination, plan.settings):
        progress.say(f"{name}: holds this very build already; nothing to do")
        return manifest
    if noise is not None:
        plan = plan.with_noise(noise, progress)
    every = [shard_name(index) for index in range(plan.outline.num_shards)]
    mine = part.shards(len(every)) if part else range(len(every))
    try:
        staging = Staging(destination, [every[index] for index in mine], plan.settings, plan.build, part, progress)
        with staging, _resumable(name, progress):
            if staging.published is not None:
                progress.say(f"{name}: another job has finished this very build; nothing to do")
                return staging.published
            todo = [index for index in mine if every[index] in staging.todo]
            if len(todo) < len(mine):
                progress.say(f"{name}: continuing; {len(mine) - len(todo)} of {len(mine)} shards are there")
            if part and (known := Outline.load(destination)) and known.fingerprint != plan.outline.fingerprint:
                raise InputError(
                    f"--out {name}: its other parts have other labels or images; build all parts with the same programs"
                    " from the same files, in a new folder"
                )
            progress.start(sum(len(plan.outline.ids(index)) for index in todo), "images")
            tasks = (plan.task(index, destination) for index in todo)
            _run(tasks, min(workers, len(todo)), workers, progress.advance)
            if part:
                plan.outline.save(destination)
                return None
            written = sidecars(destination, every, plan.build, "build")
            manifest = publish_build(destination, plan.outline, written)
            destination.remove_build_folder()
    except OSError as error:
        raise InputError(
            f"--out {name}: {error.strerror or error}; mend this and run the same again to go on"
        ) from None
    return manifest


@contextmanager
def _resumable(out: str, progress: Progress) -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        progress.say(f"{out}: not finished; the same command goes on where it stopped")
        raise


def _run(tasks: Iterator[worker.Task], processes: int, asked: int, done: Callable[[int], None]) -> None:
    if asked == 1 or processes == 0:
        for task in tasks:
            done(worker.write_shard(task))
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the caller's threads' locks
    receiver, sender = context.Pipe(duplex=False)
    with ProcessPoolExecutor(processes, context, worker.start, (receiver,)) as pool:
        try:
            pending: set[Future[int]] = set()
            for task in tasks:  # a few ahead only: a task carries its records
                with interrupts.deferred():  # may start a worker: in its first second it would answer with a traceback
                    pending.add(pool.submit(worker.write_shard, task))
                if len(pending) >= 2 * processes:
                    pending = _drain(pending, done)
            while pending:
                pending = _drain(pending, done)
        except BrokenProcessPool:
            raise InputError(
                f"--workers {asked}: a worker process died (out of memory?); run the same again with fewer to go on"
            ) from None
        except BaseException:
            sender.close()  # ends the workers at once
            raise


def _drain(pending: set[Future[int]], done: Callable[[int], None]) -> set[Future[int]]:
    ready, waiting = wait(pending, return_when=FIRST_COMPLETED)
    for future in ready:
        done(future.result())
    return waiting
