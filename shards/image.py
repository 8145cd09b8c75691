"""Image headers and shrinking. Pixels are decoded only where an image has to shrink."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# Web collections hold GIF and BMP under the names .jpg and .png; formats that need an interpreter (EPS) stay out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 95}),
    "png": ("PNG", {}),
    "webp": ("WEBP", {"quality": 95, "method": 4, "exact": True}),  # colours of what is clear, too
}
MAX_PIXELS = 178_956_970  # Pillow's own limit; larger ones are kept as they are, never decoded


@contextmanager
def untrusted() -> Iterator[None]:
    """Within, Pillow reads headers of any size without warning or error; `shrink` bounds what is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def measure(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels as stored, from the header alone; raises ValueError where it cannot be read."""
    with _open(data) as image:
        return image.size


def try_to_decode(data: bytes) -> None:
    """Decode an image and drop it; raises ValueError where that fails or it has more than MAX_PIXELS."""
    with _open(data) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many to decode")
        try:
            image.convert("RGB")
        except Exception as error:  # see _open
            raise ValueError(f"cannot be decoded: {error}") from None


def shrink(data: bytes, extension: str, short_side: int) -> bytes:
    """Return the image with its short side at `short_side` pixels, in its own format; unchanged where it is not larger.

    Lanczos, antialiased. JPEG at quality 95, PNG lossless, WebP lossless where it was, else quality 95. Orientation and
    colour profile are kept. `extension`: jpg, png or webp. Raises ValueError where it cannot be decoded.
    """
    with _open(data) as image:
        width, height = image.size
        if min(width, height) <= short_side:
            return data
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels are too many to decode")
        scale = short_side / min(width, height)
        size = max(short_side, round(width * scale)), max(short_side, round(height * scale))
        # A JPEG can be decoded at 1/2, 1/4 or 1/8; staying at twice the target leaves the filter its work.
        image.draft(None, (2 * size[0], 2 * size[1]))
        name, options = ENCODERS[extension]
        kept = {key: image.info[key] for key in ("exif", "icc_profile") if image.info.get(key)}
        if name == "WEBP" and data[12:16] == b"VP8L":
            options = options | {"lossless": True}
        try:
            small = _resized(_continuous(image, name), size)
            out = io.BytesIO()
            small.save(out, name, **options, **kept)
        except Exception as error:
            raise ValueError(f"cannot be decoded: {error}") from None
    return out.getvalue()


def rgb(image: Image.Image) -> Image.Image:
    """Return the image in RGB, 8 bits a channel; decodes it.

    Of 16 bits the upper 8, as Pillow itself does for colour: its own `convert` makes white of every grey above 255.
    """
    return _eight_bits(image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):  # I;16, or I of an older Pillow: a grey PNG of 16 bits, the only such image here
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's parsers let through whatever they stumble on: struct.error, IndexError, ...
        unknown = isinstance(error, UnidentifiedImageError)
        reason = (
            f"not a {'/'.join(FORMATS)} image ({len(data)} bytes)"
            if unknown
            else f"bad header, {type(error).__name__}: {error}"
        )
        raise ValueError(reason) from error


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Each channel alone: Pillow would weigh colours by opacity, which training drops, and blacken what is clear."""
    if image.mode not in ("LA", "RGBA"):
        return image.resize(size, Image.Resampling.LANCZOS)
    return Image.merge(image.mode, [band.resize(size, Image.Resampling.LANCZOS) for band in image.split()])


def _continuous(image: Image.Image, target: str) -> Image.Image:
    """Return the image in a mode that can be interpolated (Pillow resizes palettes by nearest pixel) and saved."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    if target != "PNG":
        image = _eight_bits(image)
    if target == "JPEG" and image.mode not in ("L", "RGB", "CMYK"):
        return image.convert("RGB")
    return image
