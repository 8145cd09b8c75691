"""A local folder in which a build writes."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import IO
from uuid import uuid4

BUILD_FOLDER = ".build"  # there while a build is unfinished


def replace(path: Path, data: bytes, staging: Path) -> None:
    """Put `data` at `path` at once: through a temporary file in `staging` (same file system), synced to disk."""
    temporary = staging / f"{path.name}.{uuid4().hex}.tmp"  # several machines may write here
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine. File names may begin with BUILD_FOLDER/, which also holds what is being written."""

    root: Path

    @property
    def name(self) -> str:
        """How messages and users name it."""
        return str(self.root)

    @property
    def place(self) -> Path:
        """What opens it as a dataset."""
        return self.root

    def prepare(self) -> None:
        """Make the folder and BUILD_FOLDER in it."""
        (self.root / BUILD_FOLDER).mkdir(parents=True, exist_ok=True)

    def entries(self, folder: str = "") -> dict[str, int | None]:
        """Return the files in it, or in a folder of it, with their bytes; folders with None."""
        try:
            with os.scandir(self.root / folder) as entries:
                found = list(entries)
        except FileNotFoundError:
            return {}
        lengths: dict[str, int | None] = {}
        for entry in found:
            with suppress(FileNotFoundError):  # another job's temporary file, renamed since
                lengths[entry.name] = None if entry.is_dir() else entry.stat().st_size
        return lengths

    def read(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Yield the content of files, in order; None for each that is not there."""
        for name in names:
            try:
                yield (self.root / name).read_bytes()
            except FileNotFoundError:
                yield None

    @contextmanager
    def temporary(self, name: str) -> Iterator[BufferedRandom]:
        """Open a file that becomes `name` by `put`, or vanishes."""
        path = self.root / BUILD_FOLDER / f"{name}.{uuid4().hex}.tmp"
        try:
            with open(path, "w+b") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)

    def put(self, file: IO[bytes], name: str) -> None:
        """Give a file of `temporary`, whole, the name `name`, once it is on the disk."""
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, self.root / name)

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name` at once."""
        replace(self.root / name, data, self.root / BUILD_FOLDER)

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, as far as they are there."""
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def remove_build_folder(self) -> None:
        """Remove BUILD_FOLDER and all in it."""
        shutil.rmtree(self.root / BUILD_FOLDER, ignore_errors=True)

    def sync(self) -> None:
        """Wait until the names of its files are on the disk."""
        directory = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file of it for reading; raises OSError."""
        with open(self.root / name, "rb") as file:
            yield file
