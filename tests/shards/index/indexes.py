"""Making an index, by command or by call, and what it holds."""

import argparse
from pathlib import Path

import pytest
from rawsmall import sample, write_tar

from pipeline.data.reader import ShardReader
from shards import commands, places
from shards.cache import Cache
from shards.errors import InputError
from shards.index import index
from shards.manifest import Manifest


def alasca(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="alasca")
    commands.register(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    status: int = args.run(args)
    return status


def indexed(out: Path, *given: object, cache: Cache | None = None, **options: str) -> Manifest:
    found = places.find([str(place) for place in given])
    return index(found, out, cache=cache, **options)


def pictures(manifest: Manifest) -> list[bytes]:
    reader = ShardReader(manifest)
    try:
        return [reader.image_bytes(i) for i in range(manifest.num_samples)]
    finally:
        reader.close()


def fails(words: str, *arguments: object) -> None:
    with pytest.raises(InputError, match=words) as caught:
        alasca("index", *arguments)
    assert "\n" not in str(caught.value)


def sorted_tars(root: Path, tars: int = 4, each: int = 20) -> Path:
    for tar in range(tars):
        files = [file for i in range(each) for file in sample(f"{tar}-{i}", 100 * tar + i, {"label": tar})]
        write_tar(root / f"part-{tar:03d}.tar", files)
    return root
