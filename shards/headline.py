"""What every command says first of a dataset: one line, and warnings."""

from typing import TYPE_CHECKING

from shards.readers.record import counted

if TYPE_CHECKING:  # opening datasets is heavy, and --help is quick
    from shards.manifest import Manifest


def describe(manifest: "Manifest") -> str:
    """Return one line: images, classes, shards, size, noise."""
    noise = "no noise added"
    if manifest.noise:
        noise = f"{manifest.noise['kind']} noise on {manifest.noise['realised']:.2%} of the labels"
    size = sum(shard.bytes for shard in manifest.shards)
    return (
        f"{counted(manifest.num_samples, 'image')}, {counted(manifest.num_classes, 'class', 'es')}, "
        f"{counted(len(manifest.shards), 'shard')}, "
        f"{size / 1e6:,.1f} MB, {noise}"
    )


def warnings(manifest: "Manifest") -> list[str]:
    """Return a line where images cannot be read."""
    count = manifest.source["counts"]["unreadable"]
    if not count:
        return []
    first = "; ".join(f"{bad['key']}: {bad['reason']}" for bad in manifest.source["unreadable"])
    images = counted(count, "image")
    return [f"WARNING  {images} cannot be read; kept as they are, training gives them no weight ({first})"]
