"""Records -> shards, sample table and manifest: parallel, restartable, byte-identical for equal input."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shards import interrupts, worker
from shards.errors import InputError
from shards.manifest import Manifest, Shard
from shards.noise import Noise
from shards.plan import Plan, shard_name
from shards.plan import make as make_plan
from shards.progress import Progress
from shards.publication import publish
from shards.readers.record import Source
from shards.staging import Staging, check_folder, finished
from shards.table import SAMPLE_DTYPE


def check(
    out: Path,
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
    if root is not None and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(root)):
        raise InputError(f"--out {out}: lies inside --root {root}; write the shards beside the raw images")
    check_folder(out)


def build(
    source: Source,
    out: str | Path,
    *,
    seed: int = 0,
    noise: Noise | None = None,
    resize: int | None = None,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    allow_missing: float = 0.0,
    progress: Progress | None = None,
) -> Manifest:
    """Write the dataset folder `out` from `source` and return it opened.

    Records go in one globally shuffled order, so any run of neighbouring ids is a fair sample of the classes. Equal
    records, image bytes and settings give equal bytes, whatever `workers` (default: all CPUs this process may use; 1
    works in this process), and whether or not the build was killed and called again in between. A folder that holds
    the result already is left alone.

    resize: pixels of the short side; larger images are shrunk and encoded again, all others keep their bytes. An image
    whose header cannot be read is kept, with width and height 0, and listed in `Manifest.source["unreadable"]`.

    allow_missing: share of the images (0 to below 1) that may be missing; these are left out, counted in
    `Manifest.source["counts"]`, and said.

    Raises InputError, before anything is written, for bad values, for images that are missing or named twice, and for a
    folder that holds something else; and later where an image or the disk fails, keeping what is finished.
    """
    out, progress = Path(out), progress or Progress()
    check(out, source.root, seed, resize, samples_per_shard, workers, allow_missing)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    plan = make_plan(source, seed, noise, resize, samples_per_shard, allow_missing, progress)
    if plan.missing:
        images = "1 image that is" if plan.missing == 1 else f"{plan.missing:,} images that are"
        progress.say(f"{source.root}: left out {images} not there")
    if manifest := finished(out, plan.settings):
        progress.say(f"{out}: holds this very build already; nothing to do")
        return manifest
    if noise is not None:
        plan = plan.with_noise(noise, progress)
    try:
        with Staging(out, plan.settings, plan.stamp, progress) as staging, _resumable(out, progress):
            todo = [index for index in range(plan.num_shards) if staging.sidecar(shard_name(index)) is None]
            if len(todo) < plan.num_shards:
                progress.say(f"{out}: continuing; {plan.num_shards - len(todo)} of {plan.num_shards} shards are there")
            progress.start(sum(len(plan.ids(index)) for index in todo), "images")
            _run(
                (plan.task(index, out, staging.fingerprint) for index in todo),
                min(workers, len(todo)),
                workers,
                progress.advance,
            )
            manifest = _publish(plan, out, staging)
            staging.remove()
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror or error}; mend this and run the same again to go on") from None
    return manifest


@contextmanager
def _resumable(out: Path, progress: Progress) -> Iterator[None]:
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


def _publish(plan: Plan, out: Path, staging: Staging) -> Manifest:
    table = np.zeros(len(plan.order), dtype=SAMPLE_DTYPE)
    shards = []
    unreadable: list[list[str]] = []
    for index in range(plan.num_shards):
        sidecar = staging.sidecar(shard_name(index))
        assert sidecar is not None, f"{shard_name(index)} was written"
        shards.append(Shard(shard_name(index), *(sidecar[name] for name in ("samples", "bytes", "sha256"))))
        rows = table[plan.ids(index).start : plan.ids(index).stop]
        for column in ("offset", "size", "width", "height"):
            rows[column] = sidecar[column]
        rows["shard"] = index
        unreadable += sidecar["unreadable"]
    keys = [plan.source.records[i].key.encode() for i in plan.order]
    table["key"][1:] = np.cumsum([len(key) for key in keys[:-1]])
    table["label"], table["clean_label"] = plan.labels[plan.order], plan.clean[plan.order]
    source = {name: value for name, value in plan.settings.items() if name not in ("split", "classes", "noise")}
    source["counts"] = {
        "images": len(plan.order),
        "passed_over": plan.source.passed_over,
        "missing": plan.missing,
        "unreadable": len(unreadable),
    }
    source["unreadable"] = [{"key": key, "reason": reason} for key, reason in unreadable[:5]]
    return publish(
        out,
        split=plan.source.split,
        classes=plan.source.classes,
        shards=shards,
        table=table,
        keys=b"".join(keys),
        noise=plan.noise,
        source=source,
    )
