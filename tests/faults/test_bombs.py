"""Decompression bombs of 20,000 x 20,000 pixels: kept in the shard, named, and never unpacked."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from epochs import in_order
from PIL import Image
from rawsmall import jpeg

from pipeline.cli import main
from pipeline.data.decode import UndecodableImageError, decode
from shards.build import build
from shards.image import MAX_PIXELS, shrink, untrusted
from shards.manifest import Manifest
from shards.noise import parse
from shards.readers import imagefolder
from shards.verify import verify

SIDE = 20_000
MEGABYTES = 300


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png() -> bytes:
    """A whole one, white: 50 MB of bits in 50 kB, 1.2 GB as pixels."""
    packer = zlib.compressobj(6)
    rows = b"".join(packer.compress(b"\0" + b"\xff" * (SIDE // 8)) for _ in range(SIDE)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def large_jpeg(progressive: bool) -> bytes:
    """One whose header promises so much; a decoder would make room for it before it finds the end."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "JPEG", progressive=progressive)
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", SIDE, SIDE)
    return bytes(data)


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("P", (4, 4)).save(file, "GIF")
    data = bytearray(file.getvalue())
    data[6:10] = struct.pack("<HH", SIDE, SIDE)
    return bytes(data)


def bmp() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "BMP")
    data = bytearray(file.getvalue())
    data[18:26] = struct.pack("<ii", SIDE, SIDE)
    return bytes(data)


def webp() -> bytes:
    """An animation: one small frame on a canvas of that size, for which the decoder makes room when it is opened."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(file, "WEBP", lossless=True)
    picture = file.getvalue()[12:]
    three = [(side - 1).to_bytes(3, "little") for side in (SIDE, SIDE)]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + b"".join(three)
    control = b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    frame = bytes(6) + (1).to_bytes(3, "little") * 2 + (100).to_bytes(3, "little") + b"\0" + picture
    body = b"WEBP" + canvas + control + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS = {
    "a.png": png(),
    "b.jpg": large_jpeg(False),
    "c.jpg": large_jpeg(True),
    "d.webp": webp(),
    "e.jpg": gif(),
    "f.png": bmp(),
}


def peak() -> int:
    """Most bytes that this process ever had in memory."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def resident() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmRSS"].split()[0])


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the process grows by more than MEGABYTES, be it for a moment."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = resident()
    except OSError:
        before = peak()  # of all that came before: sees less
    yield
    assert (peak() - before) / 1e6 < MEGABYTES


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten good images, and all the bombs."""
    root = tmp_path_factory.mktemp("bombs") / "raw"
    for number in range(20):
        file = root / f"class-{number % 2}" / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    for name, data in BOMBS.items():
        (root / "class-0" / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def sharded(raw: Path) -> Manifest:
    with bounded():
        return build(imagefolder.read(raw, None), raw.parent / "shards", samples_per_shard=10, workers=1)


def bombs(manifest: Manifest) -> dict[int, str]:
    keys = {sample: key.rpartition("/")[2] for sample, key in enumerate(manifest.keys())}
    return {sample: name for sample, name in keys.items() if name in BOMBS}


def test_the_bombs_are_real() -> None:
    with untrusted(), Image.open(io.BytesIO(BOMBS["a.png"])) as image:
        assert image.size == (SIDE, SIDE)
        image.seek(0)
    assert max(len(data) for data in BOMBS.values()) < 100_000
    assert SIDE * SIDE > MAX_PIXELS


def test_a_bomb_is_sharded_as_it_is_and_measured_by_its_header(sharded: Manifest) -> None:
    rows = sharded.table[[*bombs(sharded)]]
    assert rows["width"].tolist() == rows["height"].tolist() == [SIDE] * len(BOMBS)
    with bounded():
        report = verify(sharded.root, decode=True)
    assert report.differences == ()
    assert {reason for _, reason in report.undecodable} == {"20000 x 20000 pixels are too many to decode"}
    assert len(report.undecodable) == len(BOMBS)


def test_a_bomb_is_kept_and_named_where_images_are_to_shrink(raw: Path, tmp_path: Path) -> None:
    with bounded():
        small = build(imagefolder.read(raw, None), tmp_path / "out", resize=12, workers=1)
    assert small.source["counts"]["unreadable"] == len(BOMBS)
    for bad in small.source["unreadable"]:
        assert bad["key"].rpartition("/")[2] in BOMBS
        assert bad["reason"] == "20000 x 20000 pixels are too many to decode"
    for sample, name in bombs(small).items():
        assert small.table[sample]["size"] == len(BOMBS[name])


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_unpacked(name: str) -> None:
    words = "20000 x 20000 pixels are over data.max_pixels = 178956970"
    with bounded():
        with pytest.raises(UndecodableImageError, match=words):
            decode(BOMBS[name], MAX_PIXELS)
        with untrusted(), pytest.raises(ValueError, match="20000 x 20000 pixels are too many to decode"):
            shrink(BOMBS[name], "png", 64)


def test_a_bomb_in_training_keeps_its_place_and_is_named(sharded: Manifest) -> None:
    with bounded():
        batch = in_order(sharded)
    assert {bad.sample_id for bad in batch.bad} == bombs(sharded).keys()
    assert all("are over data.max_pixels" in bad.reason for bad in batch.bad)
    assert batch.valid.logical_not().nonzero().flatten().tolist() == sorted(bombs(sharded))
    good = [*torch.arange(len(batch.valid))[batch.valid]]
    for sample in bombs(sharded):
        before = max((int(g) for g in good if g < sample), default=int(good[0]))
        assert torch.equal(batch.images[sample], batch.images[before])


def test_a_bomb_is_a_crossed_box_on_a_sheet(
    sharded: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with bounded():
        assert main(["inspect", str(sharded.root), "--sheet", str(tmp_path / "sheet.png"), "--images", "26"]) == 0
    assert f"26 pictures, {len(BOMBS)} of them cannot be decoded" in capsys.readouterr().out


def test_a_bomb_does_not_explode_under_noise_that_looks_at_images(raw: Path, tmp_path: Path) -> None:
    with bounded():
        noisy = build(imagefolder.read(raw, None), tmp_path / "out", noise=parse("instance:0.2"), workers=1)
    assert np.isin(noisy.labels, [0, 1]).all()
