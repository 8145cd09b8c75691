"""The S3 server that holds the training data is down for ten seconds, and for good, in mid-run."""

import time
from collections.abc import Iterator

from drills import record
from drills.bucket import Bucket
from drills.row import Row
from drills.scene import Scene

_DOWN_S = 10.0
_CACHE_GB = "0.00045"  # of about a megabyte: what was read must be fetched again
_AT = 22  # steps: the second epoch
_LONG_S = 240.0


def drill(scene: Scene) -> Iterator[Row]:
    """Two ranks train from a bucket through a cache that holds a part of it."""
    scene.straight("short", 2)
    with Bucket(scene.data("few"), scene.folder / "bucket.log") as bucket:
        yield _for_a_while(scene, bucket)
        yield from _for_good(scene, bucket)


def _words(scene: Scene, bucket: Bucket, name: str, timeout: int) -> tuple[str, ...]:
    cache = str(scene.folder / "cache" / name)
    limits = ("--data.cache_gb", _CACHE_GB, "--data.fetch_timeout", str(timeout))
    return ("--data.train", bucket.url, "--data.cache", cache, *limits)


def _for_a_while(scene: Scene, bucket: Bucket) -> Row:
    began, name = time.monotonic(), "bucket-back"
    run = scene.run(name)
    with scene.start("torchrun", "short", name, *_words(scene, bucket, name, 30), env=bucket.env) as job:
        job.wait_for(lambda: len(record.steps(run)) >= _AT, "steps")
        bucket.down()
        down, step = time.monotonic(), record.steps(run)[-1]
        time.sleep(_DOWN_S - 3)  # the server takes the rest to start
        bucket.up()
        down, after = time.monotonic() - down, record.steps(run)[-1]
        status = job.status(_LONG_S)
        orphans, text = job.left(15), job.text()
    row = Row(
        "S3 down",
        "torchrun, 2 ranks",
        f"for {down:.0f} s after step {step}; training came to step {after} and waited",
        **record.comparison(run, scene.straight("short", 2), status),
        orphans=orphans,
        partial=[*scene.left_by(name), *record.partial(scene.folder / "cache" / name)],
        seconds=time.monotonic() - began,
    )
    row.problems += [] if "trying again" in text else ["nobody missed the server"]
    return row


def _for_good(scene: Scene, bucket: Bucket) -> Iterator[Row]:
    began, name = time.monotonic(), "bucket-gone"
    run, words = scene.run(name), _words(scene, bucket, name, 8)
    with scene.start("torchrun", "short", name, *words, env=bucket.env) as job:
        job.wait_for(lambda: len(record.steps(run)) >= _AT, "steps")
        bucket.down()
        down, step = time.monotonic(), record.steps(run)[-1]
        status = job.status(_LONG_S)
        took = time.monotonic() - down
        orphans, text = job.left(15), job.text()
    done, saved = record.steps(run)[-1], record.saved(run)
    problems = [] if status else ["exit status 0"]
    if "gave up after" not in text:
        problems.append(f"no line that says which file: {text[-1500:]}")
    if done - saved > 4:
        problems.append(f"step {done} was done, {saved} is saved")
    yield Row(
        "S3 down",
        "torchrun, 2 ranks",
        f"for good after step {step}; all gone after {took:.0f} s, one line names the file",
        status=str(status),
        lost=f"{done - saved} steps, back to the checkpoint of step {saved}",
        same="see the next",
        orphans=orphans,
        partial=record.partial(run),
        seconds=time.monotonic() - began,
        problems=problems,
    )
    began = time.monotonic()
    bucket.up()
    with scene.start("torchrun", "short", name, *words, env=bucket.env) as job:
        status = job.status(_LONG_S)
        orphans = job.left(15)
    yield Row(
        "S3 down",
        "torchrun, 2 ranks",
        "the same run, once the server is back",
        **record.comparison(run, scene.straight("short", 2), status),
        orphans=orphans,
        partial=[*scene.left_by(name), *record.partial(scene.folder / "cache" / name)],
        seconds=time.monotonic() - began,
    )
