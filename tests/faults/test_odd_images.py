"""Images as they come: other colours and depths, animations, a rotation in the metadata, files cut short or empty."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.cli import main
from pipeline.data.decode import UndecodableImageError, decode
from pipeline.data.loader import EvalBatches
from pipeline.data.reader import ShardReader
from shards.build import build
from shards.image import shrink
from shards.instance import thumbnail
from shards.manifest import Manifest
from shards.readers import imagefolder
from shards.readers.record import Record, Source
from shards.sheet import thumbnail as on_sheet
from shards.verify import verify

WIDTH, HEIGHT = 96, 64
COLOURS = np.random.default_rng(0).integers(30, 220, (4, 6, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COLOURS).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
SHADES = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
RGB = np.asarray(PICTURE)
GREY = np.asarray(PICTURE.convert("L").convert("RGB"))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def animated(kind: str) -> bytes:
    others = [Image.new("RGB", PICTURE.size, colour) for colour in ("red", "blue")]
    return encoded(PICTURE, kind, save_all=True, append_images=others, duration=100, lossless=True)


def rotated() -> bytes:
    """Stored on its side; a viewer turns it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PICTURE, "JPEG", quality=95, exif=exif)


def see_through() -> Image.Image:
    image = PICTURE.convert("RGBA")
    image.putalpha(Image.new("L", PICTURE.size, 128))
    return image


# Name, bytes, the pixels that training should see, and how far off one may be (JPEG, palettes).
KINDS: dict[str, tuple[str, bytes, NDArray[np.uint8], int]] = {
    "plain": ("a.jpg", encoded(PICTURE, "JPEG", quality=95), RGB, 24),
    "progressive": ("b.jpg", encoded(PICTURE, "JPEG", quality=95, progressive=True), RGB, 24),
    "cmyk": ("c.jpg", encoded(PICTURE.convert("CMYK"), "JPEG", quality=95), RGB, 32),
    "grey": ("d.jpg", encoded(PICTURE.convert("L"), "JPEG", quality=95), GREY, 12),
    "grey_png": ("e.png", encoded(PICTURE.convert("L"), "PNG"), GREY, 0),
    "16_bit": ("f.png", encoded(Image.fromarray(SHADES), "PNG"), np.repeat(SHADES[..., None] >> 8, 3, 2), 0),
    "16_bit_named_jpg": ("g.jpg", encoded(Image.fromarray(SHADES), "PNG"), np.repeat(SHADES[..., None] >> 8, 3, 2), 0),
    "palette": ("h.png", encoded(PICTURE.quantize(256), "PNG"), RGB, 48),
    "palette_see_through": ("n.png", encoded(PICTURE.quantize(256), "PNG", transparency=bytes(range(256))), RGB, 48),
    "rgba": ("i.png", encoded(see_through(), "PNG"), RGB, 0),
    "rgba_webp": ("j.webp", encoded(see_through(), "WEBP", lossless=True, exact=True), RGB, 0),
    "animated_gif_named_jpg": ("k.jpg", animated("GIF"), RGB, 64),
    "animated_webp": ("l.webp", animated("WEBP"), RGB, 0),
    "exif_rotated": ("m.jpg", rotated(), RGB, 24),
}
PLAIN = KINDS["plain"][1]
BROKEN = {
    "zero_bytes": ("x.jpg", b""),
    "truncated_jpeg": ("y.jpg", PLAIN[: len(PLAIN) // 2]),
    "truncated_png": ("z.png", encoded(PICTURE, "PNG")[:2000]),
    "html_page": ("w.jpg", b"<html>404</html>"),
}
HEADERS = {"truncated_jpeg", "truncated_png"}  # broken, but their headers are not


def far(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    return int(np.abs(pixels.astype(int) - expected).max())


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd") / "raw"
    (root / "class").mkdir(parents=True)
    for name, data, *_ in [*KINDS.values(), *BROKEN.values()]:
        (root / "class" / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def sharded(raw: Path) -> Manifest:
    return build(imagefolder.read(raw, None), raw.parent / "shards", workers=1)


def named(manifest: Manifest) -> dict[str, int]:
    return {key.rpartition("/")[2]: sample for sample, key in enumerate(manifest.keys())}


@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_the_picture(sharded: Manifest, kind: str) -> None:
    name, data, expected, tolerance = KINDS[kind]
    sample = named(sharded)[name]
    assert ShardReader(sharded).image_bytes(sample) == data  # bytes pass through
    row = sharded.table[sample]
    assert (row["width"], row["height"]) == (WIDTH, HEIGHT)
    assert far(decode(data, 10**6), expected) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_it_shrinks_to_the_same_picture(kind: str) -> None:
    name, data, expected, tolerance = KINDS[kind]
    extension = {"jpg": "jpg", "png": "png", "webp": "webp"}[name.rpartition(".")[2]]
    small = decode(shrink(data, extension, 32), 10**6)
    assert small.shape == (32, 48, 3)
    reference = Image.fromarray(expected.astype(np.uint8)).resize((48, 32), Image.Resampling.LANCZOS)
    assert far(small, np.asarray(reference)) <= tolerance + 24


@pytest.mark.parametrize("kind", KINDS)
def test_the_sheet_and_noise_that_looks_at_images_see_the_same_picture(kind: str) -> None:
    name, data, expected, tolerance = KINDS[kind]
    assert far(np.asarray(on_sheet(data, WIDTH)), expected) <= tolerance
    record = Record(name, "jpg", 0, -1, data)
    seen = thumbnail(record, Source("x", "train", ("a",), [record]))
    assert seen is not None
    reference = Image.fromarray(expected.astype(np.uint8)).resize((32, 32), Image.Resampling.LANCZOS)
    assert far(seen.reshape(32, 32, 3), np.asarray(reference)) <= tolerance + 24


def test_a_rotation_in_the_metadata_stays_there(raw: Path, tmp_path: Path) -> None:
    """As torchvision's ImageFolder, training takes the stored orientation; the tag is kept for who looks at it."""
    assert decode(rotated(), 10**6).shape == (HEIGHT, WIDTH, 3)
    with Image.open(io.BytesIO(shrink(rotated(), "jpg", 32))) as small:
        assert (small.size, small.getexif()[0x0112]) == ((48, 32), 6)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_not_decoded(kind: str) -> None:
    with pytest.raises(UndecodableImageError, match=r"\w"):
        decode(BROKEN[kind][1], 10**6)
    with pytest.raises(ValueError, match="cannot be decoded" if kind in HEADERS else "not a JPEG/PNG"):
        shrink(BROKEN[kind][1], "jpg", 32)


def test_broken_images_keep_their_place_without_weight_and_are_named(sharded: Manifest) -> None:
    batch = EvalBatches(sharded, crop=16, augment="none", max_pixels=10**6)[0, sharded.num_samples]
    ids = {named(sharded)[name] for name, _ in BROKEN.values()}
    assert {bad.sample_id for bad in batch.bad} == ids
    assert set(batch.valid.logical_not().nonzero().flatten().tolist()) == ids
    reasons = {sharded.key(bad.sample_id): bad.reason for bad in batch.bad}
    assert reasons["class/x.jpg"] == "zero bytes"
    assert "truncated" in reasons["class/y.jpg"] and "truncated" in reasons["class/z.png"]


@pytest.mark.parametrize("resize", [None, 32])
def test_sharding_counts_and_names_what_it_cannot_read(raw: Path, tmp_path: Path, resize: int | None) -> None:
    """Without --resize it reads headers alone; an image cut short is found by `verify --decode`, or by training."""
    manifest = build(imagefolder.read(raw, None), tmp_path / "out", resize=resize, workers=1)
    expected = {f"class/{name}" for kind, (name, _) in BROKEN.items() if resize or kind not in HEADERS}
    assert manifest.source["counts"]["unreadable"] == len(expected)
    assert {bad["key"] for bad in manifest.source["unreadable"]} == expected
    assert manifest.num_samples == len(KINDS) + len(BROKEN)
    report = verify(manifest.root, decode=True)
    assert report.differences == ()
    assert {key for key, _ in report.undecodable} == {f"class/{name}" for name, _ in BROKEN.values()}


def test_a_sheet_crosses_out_what_is_broken(
    sharded: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(sharded.root), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert f"{len(KINDS) + len(BROKEN)} pictures, {len(BROKEN)} of them cannot be decoded" in capsys.readouterr().out


def test_no_odd_image_is_a_warning_or_a_traceback_of_its_own(
    sharded: Manifest, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    reader: Callable[[int], bytes] = ShardReader(sharded).image_bytes
    for sample in range(sharded.num_samples):
        try:
            decode(reader(sample), 10**6)
        except UndecodableImageError as error:
            assert "\n" not in str(error)
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")
