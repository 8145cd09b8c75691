"""Writing a dataset folder so that it is there completely or not at all."""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.manifest import (
    BUILD_FOLDER,
    KEYS,
    MANIFEST,
    SAMPLES,
    SCHEMA,
    Manifest,
    Shard,
)
from shards.names import check_classes, check_shard_name
from shards.table import SAMPLE_DTYPE


def replace(path: Path, data: bytes, staging: Path) -> None:
    """Put `data` at `path` at once: through a temporary file in `staging` (same file system), synced to disk."""
    temporary = staging / f"{path.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(
    root: Path,
    *,
    split: str,
    classes: Sequence[str],
    shards: Sequence[Shard],
    table: NDArray[Any],
    keys: bytes,
    noise: dict[str, Any] | None,
    source: dict[str, Any],
) -> Manifest:
    """Write table, keys and, last, the manifest into `root`, where the shards already lie; return it opened.

    table: SAMPLE_DTYPE [N], in the order of shard and offset. keys: the blob that its `key` field points into.
    """
    assert table.dtype == SAMPLE_DTYPE and len(table) == sum(shard.samples for shard in shards)
    check_classes(classes)
    for shard in shards:
        check_shard_name(shard.name)
    staging = root / BUILD_FOLDER
    staging.mkdir(parents=True, exist_ok=True)
    samples = io.BytesIO()
    np.save(samples, table, allow_pickle=False)
    files = {SAMPLES: samples.getvalue(), KEYS: keys}
    for name, data in files.items():
        replace(root / name, data, staging)
    document = {
        "schema": SCHEMA,
        "split": split,
        "classes": list(classes),
        "noise": noise,
        "source": source,
        "table": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()},
        "shards": [shard.document() for shard in shards],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    replace(root / MANIFEST, text.encode(), staging)
    directory = os.open(root, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return Manifest.load(root)
