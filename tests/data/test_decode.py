"""Images as they come from the web."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import UndecodableImageError, decode

LIMIT = 10**6


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def image() -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((64, 48), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_formats_come_back_exactly(image: Image.Image, kind: str) -> None:
    assert (decode(encoded(image, kind), LIMIT) == np.asarray(image)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pillow_makes_of_it(image: Image.Image, mode: str) -> None:
    data = encoded(image.convert(mode), "JPEG", quality=90)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    pixels = decode(data, LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (48, 64, 3)
    assert abs(pixels.astype(int) - theirs).max() <= 1


def test_webp_palette_and_transparent_images_become_rgb(image: Image.Image) -> None:
    for data in (
        encoded(image, "WEBP", lossless=True),
        encoded(image.convert("P"), "PNG"),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image.convert("L"), "PNG"),
        encoded(image, "GIF"),
    ):
        assert decode(data, LIMIT).shape == (48, 64, 3)


def test_a_wrong_name_does_not_matter_but_a_wrong_content_does(image: Image.Image) -> None:
    with pytest.raises(UndecodableImageError, match="not a JPEG/PNG/WEBP"):
        decode(b"<html>404</html>", LIMIT)
    with pytest.raises(UndecodableImageError, match="zero bytes"):
        decode(b"", LIMIT)
    with pytest.raises(UndecodableImageError, match="not a JPEG/PNG/WEBP"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_are_refused(image: Image.Image, kind: str) -> None:
    data = encoded(image, kind)
    with pytest.raises(UndecodableImageError):
        decode(data[: len(data) // 2], LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_size_is_checked_before_decoding(image: Image.Image, kind: str) -> None:
    with pytest.raises(UndecodableImageError, match="64 x 48 pixels are over data.max_pixels = 3000"):
        decode(encoded(image, kind), 3000)


def test_random_bytes_never_raise_anything_else(image: Image.Image) -> None:
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = bytearray(encoded(image, kind))
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 8):
                broken[place] = rng.integers(0, 256)
            try:
                assert decode(bytes(broken), LIMIT).ndim == 3
            except UndecodableImageError as error:
                assert str(error)
