"""A shard's tar file: its layout, written through webdataset, and its members, read back strictly."""

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

BLOCK = 512
LEAD = 2 * BLOCK  # bytes before an image in a shard of ours that tell whose it is: see `precedes`
REGULAR = (b"0", b"\0")


class DamagedTar(ValueError):
    """The bytes are not a whole, plain tar file; the message says where."""


class Member(NamedTuple):
    """One file in a tar; `offset` is where its payload starts, in bytes from the start of the tar."""

    name: str
    offset: int
    size: int


def stem(sample: int) -> str:
    """Return the name of sample `sample` in its tar, without extension; holds no dot, where webdataset would cut."""
    return f"{sample:09d}"


def open_writer(file: IO[bytes]) -> Any:
    """Return a webdataset.TarWriter whose output depends on nothing but the samples: no clock, no user."""
    from webdataset.writer import TarWriter  # imports torch where it can: 3 s and 300 MB

    return TarWriter(file, encoder=False, compress=False, mtime=0, user="alasca", group="alasca", mode=0o444)


def precedes(blocks: bytes, sample: int, size: int, label: int) -> bool:
    """Whether the LEAD bytes before an image are those of a shard of ours: the sample's label, and the image's header.

    Of the header it looks at name and size.
    """
    written, header = blocks[:BLOCK].rstrip(b"\0"), blocks[BLOCK:]
    named = header.startswith(f"{stem(sample)}.".encode()) and header[124:135] == b"%011o" % size
    return named and written == str(label).encode()


def heads(block: bytes, size: int) -> bool:
    """Whether the BLOCK bytes before an image are a header of that many bytes, in a tar that anybody wrote."""
    field = block[124:136]
    if field[0] & 0x80:  # GNU's binary numbers
        return int.from_bytes(field[1:]) == size
    try:
        return int(field.strip(b"\0 ") or b"0", 8) == size
    except ValueError:
        return False


def index_tar(file: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a seekable tar of regular files, in order, reading headers only.

    Unlike webdataset's reader it never skips: a bad checksum, another kind of member, a payload cut short or anything
    but zeros after the end raises DamagedTar with the byte offset.
    """
    end = file.seek(0, 2)
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise DamagedTar(f"ends at byte {end:,} without an end mark; it was cut short")
        if header.count(0) == BLOCK:
            rest = header + file.read()
            if len(rest) < 2 * BLOCK or rest.count(0) != len(rest):
                raise DamagedTar(f"something other than the end of a tar follows byte {position:,}")
            return
        try:
            checksum, size = int(header[148:156].rstrip(b"\0 "), 8), int(header[124:136].rstrip(b"\0 "), 8)
            name = header[:100].rstrip(b"\0").decode("ascii")
        except ValueError:
            raise DamagedTar(f"bad header at byte {position:,}") from None
        if size < 0:
            raise DamagedTar(f"bad header at byte {position:,}: negative size")
        if checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            raise DamagedTar(f"bad header at byte {position:,}: its checksum differs")
        if header[156:157] not in REGULAR:
            raise DamagedTar(f"bad header at byte {position:,}: {name!r} is no regular file")
        offset = position + BLOCK
        if offset + size > end:
            raise DamagedTar(f"ends at byte {end:,} within {name!r}; it was cut short")
        yield Member(name, offset, size)
        position = offset + -(-size // BLOCK) * BLOCK
