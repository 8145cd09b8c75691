"""The members of a tar that somebody else wrote: ustar, GNU or PAX, read strictly and never extracted."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from shards.errors import InputError
from shards.tar import BLOCK, Member


def members(path: Path, where: str) -> Iterator[Member]:
    """Yield the files in an uncompressed tar, in order, reading headers only; folders are passed over.

    Messages call it `where`: what was fetched lies elsewhere for a moment.

    Raises InputError where the tar is damaged or cut short, or a member is a link, a device, sparse, or named out of
    the tar (absolute, or with `..`).
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise InputError(f"{where}: not a file; remove it, or move it elsewhere")
        with tarfile.open(path, "r:") as archive:
            end = 0
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                name = info.name
                if not (info.isreg() or info.isdir()) or info.issparse():
                    raise InputError(
                        f"{where}: {name!r} is neither a plain file nor a folder; write the tar without it"
                    )
                if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
                    raise InputError(f"{where}: {name!r} is no name inside the tar; write the tar with plain names")
                end = info.offset_data
                if info.isdir():
                    continue
                if info.size < 0:  # tarfile would go back, and never end
                    raise InputError(f"{where}: bad header of {name!r}, negative size; fetch it again")
                end += -(-info.size // BLOCK) * BLOCK
                yield Member(name, info.offset_data, info.size)
        _check_end(path, where, end)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); mend this") from None
    except Exception as error:  # tarfile lets through whatever its parsing of a hostile header stumbles on
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{where}: damaged or no plain tar ({reason}); fetch it again") from None


def _check_end(path: Path, where: str, end: int) -> None:
    """Raise InputError unless only the end mark, two blocks of zeros or more, follows byte `end`.

    tarfile takes a bad header for the end, and so loses what follows.
    """
    with open(path, "rb") as file:
        if file.seek(0, 2) < end + 2 * BLOCK:
            raise InputError(f"{where}: no end mark at byte {end:,}, so it was cut short; fetch it again")
        file.seek(end)
        while chunk := file.read(1 << 20):
            if chunk.count(0) != len(chunk):
                raise InputError(f"{where}: bad header at byte {end:,}; fetch it again")
