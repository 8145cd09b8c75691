"""What one process does of a build: write one shard, completely or not at all."""

import hashlib
import json
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from shards.destination import Destination
from shards.errors import InputError
from shards.image import measure, shrink, untrusted
from shards.localfolder import BUILD_FOLDER
from shards.readers.record import Record, content
from shards.tar import index_tar, open_writer, stem


class Task(NamedTuple):
    """One shard to write; `first` is the id of its first record."""

    out: Destination
    name: str
    first: int
    records: list[Record]
    labels: list[int]
    sizes: list[int]  # bytes of each image when the build was planned
    root: Path | None
    resize: int | None
    fingerprints: dict[str, str]  # "build": a finished shard is used again by this one; "outline": merged with these


def start(stop: Connection) -> None:
    """Prepare a worker process, which lives no longer than the other end of `stop` is open.

    That end closes when the build fails, is interrupted, or its process dies of anything, SIGKILL included.
    """
    # webdataset imports torch where it can (3 s, 300 MB per worker) and does without where it cannot.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the build decides

    def watch() -> None:
        stop.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_shard(task: Task) -> int:
    """Write a shard, then its sidecar in the build folder; return the number of samples.

    Raises InputError where an image cannot be read or has another size than planned or a URL cannot be written, OSError
    where writing to a local folder fails.
    """
    sizes: list[tuple[int, int]] = []
    unreadable: list[tuple[str, str]] = []
    with task.out.temporary(task.name) as file, untrusted():
        with open_writer(file) as tar:
            for position, record in enumerate(task.records):
                data = _read(task, position)
                try:
                    if task.resize:
                        data = shrink(data, record.extension, task.resize)
                    sizes.append(measure(data))
                except ValueError as error:
                    sizes.append((0, 0))
                    unreadable.append((record.key, str(error)))
                cls = str(task.labels[position]).encode()
                tar.write({"__key__": stem(task.first + position), record.extension: data, "cls": cls})
        images = [member for member in index_tar(file) if not member.name.endswith(".cls")]
        assert len(images) == len(task.records), "one image per record"
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        task.out.put(file, task.name)
    sidecar = task.fingerprints | {
        "samples": len(images),
        "bytes": length,
        "sha256": digest,
        "offset": [image.offset for image in images],
        "size": [image.size for image in images],
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "unreadable": unreadable,
    }
    task.out.write(f"{BUILD_FOLDER}/{task.name}.json", json.dumps(sidecar).encode())
    return len(images)


def _read(task: Task, position: int) -> bytes:
    record = task.records[position]
    try:
        data = content(record, task.root)
    except OSError as error:
        raise InputError(f"{task.root}/{record.key}: cannot be read ({error.strerror}); mend or remove it") from None
    if len(data) != task.sizes[position]:
        raise InputError(f"{task.root}/{record.key}: changed while it was read; run again when nothing writes there")
    return data
