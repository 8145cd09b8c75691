"""One flipped bit: refused on arrival, told by `alasca verify`, and what training makes of it without either."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from epochs import epoch, in_order, same
from server import Handler, serving, whole

from pipeline.data.reader import ShardReader
from pipeline.train.evaluate import open_dataset
from shards import sheet
from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.manifest import Manifest
from shards.verify import verify

SAMPLE, SHARD = 30, 1
PLACES = ["header", "payload", "padding", "trailer"]


def position(manifest: Manifest, place: str) -> int:
    """Where in shard SHARD a part of SAMPLE, or of the shard's end, lies."""
    row = manifest.table[SAMPLE]
    start, size = int(row["offset"]), int(row["size"])
    assert row["shard"] == SHARD and size % 512, "the sample lies there, and has padding"
    length = manifest.shards[SHARD].bytes
    return {"header": start - 512 + 8, "payload": start + size // 2, "padding": start + size, "trailer": length - 1}[
        place
    ]


def flip(file: Path, at: int, bit: int = 0) -> None:
    with file.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1 << bit]))


def flip_in_table(manifest: Manifest, column: str, bit: int) -> None:
    table = np.load(manifest.root / "samples.npy")
    value = table[column][SAMPLE : SAMPLE + 1].view(f"u{table[column].itemsize}")
    value ^= value.dtype.type(1 << bit)
    np.save(manifest.root / "samples.npy", table)


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_never_leaves_the_network(photos: Manifest, tmp_path: Path, hurried: None, place: str) -> None:
    name, at = photos.shards[SHARD].name, position(photos, place)

    def flipped(handler: Handler, content: bytes) -> None:
        damaged = bytearray(content)
        damaged[at] ^= 1
        whole(handler, bytes(damaged))

    with serving(photos.root) as server:
        manifest = Manifest.load(server.url, Cache(tmp_path, seconds=5))
        server.faults[name] = [flipped]
        assert same(epoch(manifest), epoch(photos))
        assert server.asked[name] == 2
        server.always[name] = flipped
        other = Manifest.load(server.url, Cache(tmp_path / "other", seconds=5))
        with pytest.raises(OwnError, match=rf"/{name}: its SHA-256 is \w+, the manifest says .*; gave up after 4 "):
            epoch(other)
        assert not [*(tmp_path / "other").rglob(f"*{name}*")]


@pytest.mark.parametrize("place", PLACES)
def test_verify_reports_a_flipped_bit(copied: Manifest, place: str) -> None:
    flip(copied.shard_path(SHARD), position(copied, place))
    found = verify(copied.root).differences
    assert f"{copied.shards[SHARD].name}: its SHA-256 is not the manifest's" in found


def test_a_flipped_bit_in_the_name_before_an_image_ends_training(copied: Manifest) -> None:
    flip(copied.shard_path(SHARD), position(copied, "header"))
    name = copied.shards[SHARD].name
    with pytest.raises(OwnError, match=rf"/copied/{name} does not hold sample 30 as .* see `alasca verify`"):
        epoch(copied)


@pytest.mark.parametrize("place", ["padding", "trailer"])
def test_a_flipped_bit_in_padding_or_trailer_is_never_read(copied: Manifest, photos: Manifest, place: str) -> None:
    flip(copied.shard_path(SHARD), position(copied, place))
    assert same(epoch(copied), epoch(photos))


def test_a_flipped_bit_in_the_payload_spoils_at_most_its_own_image(copied: Manifest, photos: Manifest) -> None:
    """Without verifying, some such bits are other pixels and nobody can know: `alasca verify` is there for that."""
    row, shard = photos.table[SAMPLE], copied.shard_path(SHARD)
    first, sound = SHARD * 25, in_order(photos)
    others = torch.arange(photos.num_samples) != SAMPLE
    refused, silent = 0, 0
    for at in np.random.default_rng(0).integers(0, 8 * int(row["size"]), 30).tolist():
        place = int(row["offset"]) + at // 8, at % 8
        flip(shard, *place)
        batch = in_order(copied)
        flip(shard, *place)
        assert torch.equal(batch.images[others], sound.images[others])
        assert batch.valid[others].all()
        if batch.valid[SAMPLE]:
            silent += not torch.equal(batch.images[SAMPLE], sound.images[SAMPLE])
            continue
        refused += 1
        assert torch.equal(batch.images[SAMPLE], sound.images[SAMPLE - 1])
        ((bad),) = batch.bad
        assert (bad.sample_id, bool(bad.reason)) == (SAMPLE, True)
        assert copied.key(bad.sample_id) == photos.key(SAMPLE)
    assert first < SAMPLE and silent and refused


@pytest.mark.parametrize(
    ("column", "bit", "words"),
    [
        ("offset", 9, "shard-000001.tar does not hold sample 30"),
        ("offset", 63, "samples.npy leads sample 30 out of its shard"),
        ("size", 0, "shard-000001.tar does not hold sample 30"),
        ("size", 31, "samples.npy leads sample 30 out of its shard"),
        ("shard", 0, "shard-000000.tar does not hold sample 30"),
        ("shard", 31, "samples.npy leads sample 30 out of its shard"),
        ("label", 0, "shard-000001.tar does not hold sample 30 as samples.npy says"),
        ("label", 31, "label -[0-9,]+ of sample 30 is none of 3 classes, so samples.npy is damaged"),
        ("label", 7, "label 1[23][0-9] of sample 30 is none of 3 classes, so samples.npy is damaged"),
        ("clean_label", 30, "of sample 30 is none of 3 classes"),
    ],
)
def test_a_flipped_bit_in_the_table_ends_training(copied: Manifest, column: str, bit: int, words: str) -> None:
    flip_in_table(copied, column, bit)
    with pytest.raises(InputError, match=words) as caught:
        epoch(open_dataset(str(copied.root), "data.train", Cache()))
    assert "\n" not in str(caught.value) and "alasca verify" in str(caught.value)


@pytest.mark.parametrize(("column", "bit"), [("offset", 63), ("size", 31), ("shard", 31)])
def test_a_flipped_bit_in_the_table_ends_a_sheet(copied: Manifest, tmp_path: Path, column: str, bit: int) -> None:
    flip_in_table(copied, column, bit)
    with pytest.raises(InputError, match=r"/copied/samples.npy leads sample 30 out of its shard; see `alasca verify`"):
        sheet.draw(Manifest.load(copied.root), tmp_path / "sheet.png", images=120)
    assert not (tmp_path / "sheet.png").exists()


def test_a_shard_cut_short_while_it_is_read_ends_training(copied: Manifest) -> None:
    reader = ShardReader(copied)
    reader.image_bytes(0)
    shard = copied.shard_path(0)
    os.truncate(shard, int(copied.table[20]["offset"]) + 100)
    with pytest.raises(OwnError, match=rf"/copied/{shard.name} was cut short while it was in use; see `alasca verify`"):
        reader.image_bytes(20)
