import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from shards.image import measure, shrink, untrusted

Picture = Callable[..., Image.Image]


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A header that promises far more pixels than there are."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_measures_from_the_header_alone(picture: Picture, name: str) -> None:
    data = encoded(picture(1, 400, 300), name)
    assert measure(data) == (400, 300)
    if name != "WEBP":  # Pillow wants a WebP whole
        assert measure(data[: len(data) // 2]) == (400, 300)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff\xe0\0\x10JFIF", b"RIFF\0\0\0\0WEBPVP8 ", b"\x89PNG\r\n\x1a\n"]
)
def test_says_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a JPEG/PNG/WEBP/GIF/BMP image|bad header"):
        measure(data)


def test_gif_and_bmp_are_measured_and_other_formats_not_opened(picture: Picture) -> None:
    for name in ("GIF", "BMP"):
        assert measure(encoded(picture(1), name)) == picture(1).size
    for name in ("TIFF", "EPS"):
        with pytest.raises(ValueError, match="not a JPEG"):
            measure(encoded(picture(1), name))


def test_a_bomb_is_measured_but_never_decoded() -> None:
    bomb = huge_png(60_000, 60_000)
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(), untrusted():
        assert measure(bomb) == (60_000, 60_000)
        with pytest.raises(ValueError, match="too many to decode"):
            shrink(bomb, "png", 32)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(("extension", "name"), [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")])
def test_shrinks_the_short_side_and_keeps_the_format(picture: Picture, extension: str, name: str) -> None:
    image = picture(5, 301, 200)
    data = encoded(image, name, quality=98)
    small = Image.open(io.BytesIO(shrink(data, extension, 50)))
    assert (small.size, small.format) == ((75, 50), name)
    assert Image.open(io.BytesIO(shrink(encoded(picture(5, 200, 301), name), extension, 50))).size == (50, 75)
    exact = np.asarray(image.resize((75, 50), Image.Resampling.LANCZOS), dtype=float)
    assert np.abs(np.asarray(small.convert("RGB"), dtype=float) - exact).mean() < 3


@pytest.mark.parametrize("short_side", [200, 201, 4000])
def test_never_enlarges(picture: Picture, short_side: int) -> None:
    data = encoded(picture(5, 300, 200), "JPEG")
    assert shrink(data, "jpg", short_side) is data


def test_lossless_formats_lose_nothing_more(picture: Picture) -> None:
    image = picture(5, 300, 200)
    expected = np.asarray(image.resize((60, 40), Image.Resampling.LANCZOS))
    for name, extension in (("PNG", "png"), ("WEBP", "webp")):
        data = encoded(image, name, lossless=True)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(shrink(data, extension, 40)))), expected)


def test_fine_stripes_become_grey_not_moire() -> None:
    stripes = np.zeros((256, 256), dtype=np.uint8)
    stripes[:, ::2] = 255
    for image in (
        Image.fromarray(stripes),
        Image.fromarray(stripes).convert("1"),
        Image.fromarray(stripes).convert("P"),
    ):
        small = np.asarray(Image.open(io.BytesIO(shrink(encoded(image, "PNG"), "png", 37))).convert("L"), dtype=float)
        assert np.abs(small[4:-4, 4:-4] - 127.5).max() < 24


def test_orientation_and_profile_stay(picture: Picture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees: decoders turn the picture
    data = encoded(picture(1, 300, 200), "JPEG", exif=exif, icc_profile=b"profile")
    small = Image.open(io.BytesIO(shrink(data, "jpg", 64)))
    assert small.getexif()[0x0112] == 6
    assert small.info["icc_profile"] == b"profile"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_shrinks_under_any_name(mode: str) -> None:
    image = Image.new(mode, (64, 48), 1) if mode in ("1", "I;16") else Image.new("RGB", (64, 48), "red").convert(mode)
    for extension in ("png", "jpg", "webp"):
        assert Image.open(io.BytesIO(shrink(encoded(image, "PNG"), extension, 24))).size == (32, 24)


def test_a_cut_image_is_said_not_half_decoded(picture: Picture) -> None:
    data = encoded(picture(1, 400, 300), "JPEG")
    with pytest.raises(ValueError, match="cannot be decoded"):
        shrink(data[: len(data) // 2], "jpg", 64)
