"""PNG files whose bytes are the same on every machine, for images that a dataset holds as bare pixels."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def encode(image: NDArray[np.uint8]) -> bytes:
    """Return a PNG of a grey image, uint8 [H, W], or a colour image, uint8 [H, W, 3].

    The pixels are stored uncompressed: compressed bytes depend on the zlib at hand. H * (bytes of a row + 1) must be
    below 65,536.
    """
    height, width = image.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # filter type 0 before each row
    assert len(rows) < 1 << 16, "one stored block"
    deflated = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    deflated += struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", deflated) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
