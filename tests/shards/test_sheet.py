import argparse
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import commands, sheet
from shards.build import build
from shards.errors import InputError
from shards.manifest import Manifest
from shards.noise import parse
from shards.readers import imagefolder

RED = np.array([192, 0, 0])


@pytest.fixture(scope="module")
def odd(picture: Callable[..., Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Twelve images in two classes, three of them wrong; two of them cannot be decoded."""
    root = tmp_path_factory.mktemp("odd") / "raw"
    for index in range(12):
        folder = root / ("ähre", "a name of a class that is far too long for its place")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture(index, 90 + 200 * (index % 2), 120).save(folder / f"{index}.jpg")
    (root / "ähre" / "0.jpg").write_bytes(b"no image")
    whole = (root / "ähre" / "2.jpg").read_bytes()
    (root / "ähre" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    return build(imagefolder.read(root, None), root.parent / "out", noise=parse("symmetric:0.25"), workers=1)


def test_a_sheet_shows_pictures_labels_and_errors(odd: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert sheet.draw(odd, path) == (12, 2)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        pixels = np.asarray(image).astype(int)
    rows = 2
    assert pixels.shape[1] == sheet.COLUMNS * (160 + 12) + 12
    assert pixels.shape[0] == 32 + rows * (160 + 12 + 2 * 17)
    samples = sheet.choose(odd.labels, 64, 0)
    assert sorted(samples.tolist()) == list(range(12))
    red = np.abs(pixels - RED).sum(axis=2) < 60
    boxes = 0
    for place, sample in enumerate(samples.tolist()):
        left, top = 12 + place % 8 * 172, 32 + place // 8 * 206
        caption = red[top + 161 : top + 200, left : left + 160]
        assert caption.any() == (odd.labels[sample] != odd.clean_labels[sample])
        tile = pixels[top : top + 160, left : left + 160]
        boxes += (tile[0, 0] == 0x99).all() and (np.diagonal(tile, 0, 0, 1) == 0x99).all()
    assert boxes == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sheet.png"]


def test_a_picture_on_the_sheet_is_the_sample(odd: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    sheet.draw(odd, path, images=5, seed=2)
    samples = sheet.choose(odd.labels, 5, 2).tolist()
    place, sample = next((p, s) for p, s in enumerate(samples) if odd.key(s).startswith("a name"))
    assert place > 0
    row = odd.table[sample]
    data = odd.shard_path(0).read_bytes()[int(row["offset"]) :][: int(row["size"])]
    small = np.asarray(sheet.thumbnail(data, 160))
    top, left = 32 + (160 - small.shape[0]) // 2, 12 + place * 172 + (160 - small.shape[1]) // 2
    pixels = np.asarray(Image.open(path))
    assert np.array_equal(pixels[top : top + small.shape[0], left : left + small.shape[1]], small)


def test_the_seed_decides_the_sheet(odd: Manifest, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sheet.draw(odd, tmp_path / f"{name}.png", images=4, seed=seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_choice_is_spread_over_the_classes() -> None:
    labels = np.repeat(np.arange(5), [1, 2, 50, 300, 1000]).astype(np.int32)
    for count in (3, 5, 40, 200):
        chosen = sheet.choose(labels, count, 7)
        assert len(set(chosen.tolist())) == count
        assert (np.diff(labels[chosen]) >= 0).all()
    spread = [Counter(labels[sheet.choose(labels, 40, seed)].tolist()) for seed in range(20)]
    assert all(s[0] == 1 and s[1] == 2 and sorted((s[2], s[3], s[4])) == [12, 12, 13] for s in spread)
    assert len({max(s, key=lambda label: s[label]) for s in spread}) == 3  # which class gets one more is chance
    single = {int(labels[sheet.choose(labels, 1, seed)][0]) for seed in range(60)}
    assert single == {0, 1, 2, 3, 4}  # each class as likely, however rare
    assert sorted(sheet.choose(labels, 10**6, 0).tolist()) == list(range(1353))


def test_thumbnails_fit_and_show_small_pixels(picture: Callable[..., Image.Image], tmp_path: Path) -> None:
    for suffix, size, expected in (
        ("jpg", (900, 300), (160, 53)),
        ("png", (30, 40), (120, 160)),
        ("webp", (1, 500), (1, 160)),
    ):
        picture(1, *size).save(tmp_path / f"x.{suffix}")
        small = sheet.thumbnail((tmp_path / f"x.{suffix}").read_bytes(), 160)
        assert (small.size, small.mode) == (expected, "RGB")
    original = picture(1, 30, 40)
    enlarged = np.asarray(sheet.thumbnail((tmp_path / "x.png").read_bytes(), 160))
    assert np.array_equal(enlarged, np.asarray(original).repeat(4, axis=0).repeat(4, axis=1))


def test_a_bomb_is_not_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="60000 x 60000 pixels are too many"):
        sheet.thumbnail(bomb, 160)


def test_an_old_sheet_is_replaced_and_nothing_else(odd: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("my notes")
    with pytest.raises(InputError, match=r"notes\.png: holds something that is no PNG"):
        sheet.draw(odd, path)
    assert path.read_text() == "my notes"
    path.unlink()
    assert sheet.draw(odd, path, images=1).pictures == 1
    assert sheet.draw(odd, path, images=2).pictures == 2
    with Image.open(path) as image:
        assert image.width == 12 + 2 * 172


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("x.jpg", {}, "let its name end in .png"),
        ("none/x.png", {}, "no such folder"),
        ("folder.png", {}, "cannot be written"),
        ("/proc/x.png", {}, "cannot be written"),
        ("x.png", {"images": 0}, "--images 0: must be from 1 to 1,000"),
        ("x.png", {"images": 1001}, "--images 1001: must be from 1 to 1,000"),
        ("x.png", {"seed": -1}, "--seed -1"),
    ],
)
def test_mistakes_are_one_line(odd: Manifest, tmp_path: Path, name: str, options: dict[str, int], words: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError) as caught:
        sheet.draw(odd, tmp_path / name, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_shard_that_is_gone_is_named(odd: Manifest, tmp_path: Path) -> None:
    manifest = Manifest.load(shutil.copytree(odd.root, tmp_path / "copied"))
    manifest.shard_path(0).unlink()
    with pytest.raises(InputError, match=r"shard-000000\.tar: cannot be read"):
        sheet.draw(manifest, tmp_path / "x.png")


def test_the_command_draws_where_asked(odd: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    path = tmp_path / "x.png"
    args = parser.parse_args(["inspect", str(odd.root), "--sheet", str(path), "--images", "9", "--seed", "4"])
    assert args.run(args) == 0
    assert f"{path}: 9 pictures, " in capsys.readouterr().out
    assert path.read_bytes()[:4] == b"\x89PNG"
