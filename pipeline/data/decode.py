"""Bytes of a JPEG, PNG or WebP -> RGB pixels, or one reason why not."""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shards.image import FORMATS, rgb, untrusted

Pixels = NDArray[np.uint8]


class UndecodableImageError(Exception):
    """The bytes are not an image that can be used; the message says why."""


def decode(data: bytes, max_pixels: int) -> Pixels:
    """Decode to uint8 [H, W, 3], RGB; the first frame of an animation, the stored orientation.

    simplejpeg takes the common case. What it refuses (CMYK, recoverable damage) goes to Pillow, so an image counts as
    good exactly when torchvision's ImageFolder could read it.

    Raises:
        UndecodableImageError: no bytes, no known format, damaged, truncated, or more than `max_pixels` pixels.
    """
    if simplejpeg.is_jpeg(data):
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            colorspace = None  # Pillow words the reason
        if colorspace in ("Gray", "YCbCr", "RGB"):
            _check_size(width, height, max_pixels)
            try:
                return simplejpeg.decode_jpeg(data, colorspace="RGB")
            except ValueError:
                pass
    return _decode_with_pillow(data, max_pixels)


def _decode_with_pillow(data: bytes, max_pixels: int) -> Pixels:
    if not data:
        raise UndecodableImageError("zero bytes")
    try:
        with untrusted(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels)
            return np.array(rgb(image))  # a copy of its own: torch wants to be able to write
    except UnidentifiedImageError:
        raise UndecodableImageError(f"not a {'/'.join(FORMATS)} image ({len(data)} bytes)") from None
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError) as error:
        raise UndecodableImageError(str(error) or type(error).__name__) from None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UndecodableImageError(f"{width} x {height} pixels are over data.max_pixels = {max_pixels}")
