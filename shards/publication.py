"""Writing a dataset folder so that it is there completely or not at all."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.destination import Destination
from shards.errors import InputError
from shards.manifest import (
    KEYS,
    MANIFEST,
    SAMPLES,
    SCHEMA,
    Manifest,
    Shard,
)
from shards.names import check_classes, check_shard_name
from shards.outline import Outline, shard_name
from shards.table import SAMPLE_DTYPE


def publish(
    destination: Destination,
    *,
    split: str,
    classes: Sequence[str],
    shards: Sequence[Shard],
    table: NDArray[Any],
    keys: bytes,
    noise: dict[str, Any] | None,
    source: dict[str, Any],
) -> Manifest:
    """Write table, keys and, last, the manifest into a folder, where the shards already lie; return it opened.

    table: SAMPLE_DTYPE [N], in the order of shard and offset. keys: the blob that its `key` field points into.
    """
    assert table.dtype == SAMPLE_DTYPE and len(table) == sum(shard.samples for shard in shards)
    check_classes(classes)
    for shard in shards:
        check_shard_name(shard.name)
    destination.prepare()
    samples = io.BytesIO()
    np.save(samples, table, allow_pickle=False)
    files = {SAMPLES: samples.getvalue(), KEYS: keys}
    for name, data in files.items():
        destination.write(name, data)
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
    destination.write(MANIFEST, text.encode())
    destination.sync()
    return Manifest.read(destination.place)  # its table, which has just been written, need not come back


def publish_build(destination: Destination, outline: Outline, sidecars: Iterable[dict[str, Any] | None]) -> Manifest:
    """Publish a build whose shards are all there, with a sidecar each, in order; return its manifest."""
    table = outline.table.copy()
    shards = []
    unreadable: list[list[str]] = []
    for index, sidecar in enumerate(sidecars):
        if sidecar is None:
            raise InputError(
                f"--out {destination.name}: {shard_name(index)} is gone: another build writes there too; let one end,"
                " and run the same again to go on"
            )
        shards.append(Shard(shard_name(index), *(sidecar[name] for name in ("samples", "bytes", "sha256"))))
        rows = table[outline.ids(index).start : outline.ids(index).stop]
        for column in ("offset", "size", "width", "height"):
            rows[column] = sidecar[column]
        rows["shard"] = index
        unreadable += sidecar["unreadable"]
    assert len(shards) == outline.num_shards, "every shard was written"
    settings = outline.settings
    source = {name: value for name, value in settings.items() if name not in ("split", "classes", "noise")}
    source["counts"] = outline.counts | {"unreadable": len(unreadable)}
    source["unreadable"] = [{"key": key, "reason": reason} for key, reason in unreadable[:5]]
    return publish(
        destination,
        split=settings["split"],
        classes=settings["classes"],
        shards=shards,
        table=table,
        keys=outline.keys,
        noise=outline.noise,
        source=source,
    )
