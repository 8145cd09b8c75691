"""The sample table: what is known of every sample, a row each, in a file that is mapped and not read."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# offset, size: of the image in its shard, in bytes. key: where it starts in keys.bin; it ends where the next starts.
# width, height: pixels as stored, 0 where the header cannot be read. clean_label: -1 where unknown.
SAMPLE_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("key", "<u8"),
        ("shard", "<u4"),
        ("size", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("label", "<i4"),
        ("clean_label", "<i4"),
    ]
)


def open_table(path: Path) -> NDArray[Any]:
    """Return a table, SAMPLE_DTYPE [N], memory-mapped, read-only; raises ValueError where it is damaged."""
    table = np.load(path, mmap_mode="r", allow_pickle=False)
    if table.dtype != SAMPLE_DTYPE or table.ndim != 1:
        raise ValueError(f"{table.dtype} {table.shape} is no sample table")
    return table
