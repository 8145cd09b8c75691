"""A contact sheet: pictures of a dataset with their labels, as one PNG."""

import io
import math
import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.errors import InputError
from shards.image import FORMATS, MAX_PIXELS, rgb, untrusted
from shards.localfolder import replace
from shards.manifest import SAMPLES, Manifest

MOST = 1000  # pictures
COLUMNS = 8

_SIDE, _GAP, _LINE, _TITLE = 160, 12, 17, 32  # pixels: of a picture, around it, of a line of text, of the headline
_ACROSS, _DOWN = _SIDE + _GAP, _SIDE + 2 * _LINE + _GAP
_PAPER, _TILE, _INK, _FAINT, _RED = "white", "#f0f0f0", "#222222", "#999999", "#c00000"
_PNG = b"\x89PNG\r\n\x1a\n"


class Drawn(NamedTuple):
    """Pictures on a sheet, and how many of them are crossed boxes."""

    pictures: int
    undecodable: int


def draw(manifest: Manifest, path: Path, *, images: int = 64, seed: int = 0) -> Drawn:
    """Draw `images` samples (all, if there are fewer), by class, and put the PNG at `path` at once.

    Under each picture stands its given class, and in red the true one where that is known to differ. Pictures are as
    training reads them: in the stored orientation, the first frame. What cannot be decoded is a crossed box.

    Raises InputError, before anything is read, where there are too many or no images to draw, or `path` cannot be
    written or holds something that is no PNG.
    """
    if not 1 <= images <= MOST:
        raise InputError(f"--images {images}: must be from 1 to {MOST:,}")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}: must be at least 0 and below 2**32")
    _check(path)
    samples = choose(manifest.labels, images, seed).tolist()
    columns = min(COLUMNS, len(samples))
    size = _GAP + columns * _ACROSS, _TITLE + math.ceil(len(samples) / columns) * _DOWN
    sheet = Image.new("RGB", size, _PAPER)
    pen, font, large = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(15)
    name = manifest.place.rstrip("/").rpartition("/")[2]
    title = f"{name}: {len(samples):,} of {manifest.num_samples:,} images, seed {seed}"
    pen.text((_GAP, 6), _fitted(title, large, size[0] - 2 * _GAP), _INK, large)
    undecodable = 0
    for place, sample in enumerate(samples):
        left, top = _GAP + place % columns * _ACROSS, _TITLE + place // columns * _DOWN
        corners = left, top, left + _SIDE - 1, top + _SIDE - 1
        pen.rectangle(corners, _TILE)
        data = _read(manifest, sample)
        try:
            picture = thumbnail(data, _SIDE)
            sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        except ValueError:
            undecodable += 1
            pen.rectangle(corners, outline=_FAINT)
            pen.line(corners, _FAINT)
            pen.line((corners[0], corners[3], corners[2], corners[1]), _FAINT)
        given, true = int(manifest.labels[sample]), int(manifest.clean_labels[sample])
        pen.text((left, top + _SIDE + 1), _fitted(_name(manifest, given), font, _SIDE), _INK, font)
        if true not in (-1, given):
            text = _fitted(f"true: {_name(manifest, true)}", font, _SIDE)
            pen.text((left, top + _SIDE + 1 + _LINE), text, _RED, font)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    try:
        replace(path, out.getvalue(), path.parent)
    except OSError as error:
        raise InputError(f"--sheet {path}: cannot be written ({error.strerror}); name another file") from None
    return Drawn(len(samples), undecodable)


def choose(labels: NDArray[np.int32], count: int, seed: int) -> NDArray[np.int64]:
    """Draw `count` of the samples, spread evenly over the classes as far as they reach; return their ids by class.

    labels: int32 [N]. Nothing rests on the choice, so it may differ between versions of numpy.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sorted_labels = labels[by_class]
    turn = np.arange(len(labels)) - np.searchsorted(sorted_labels, sorted_labels)  # a sample's number in its class
    # Of the classes that the last turn reaches only in part, chance decides; in the order of labels it would be bias.
    lot = np.random.default_rng(seed).permutation(int(labels.max()) + 1)[sorted_labels]
    chosen = np.sort(np.lexsort((lot, turn))[:count])
    return by_class[chosen]


def thumbnail(data: bytes, side: int) -> Image.Image:
    """Decode an image to RGB fitted into a square of `side` pixels; small ones grow by a whole factor, pixels visible.

    Raises ValueError where it cannot be decoded, or has too many pixels to try.
    """
    try:
        with untrusted(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many to decode")
            image.draft(None, (2 * side, 2 * side))  # a JPEG can be decoded at 1/2, 1/4 or 1/8
            picture = rgb(image)
    except Exception as error:  # Pillow's parsers let through whatever they stumble on
        raise ValueError(f"cannot be decoded: {error}") from None
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return picture
    factor = side // max(picture.size)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _check(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise InputError(f"--sheet {path}: the sheet is a PNG; let its name end in .png")
    try:
        if not path.parent.is_dir():
            raise InputError(f"--sheet {path}: no such folder {path.parent}; make it first")
        if not os.access(path.parent, os.W_OK | os.X_OK):  # known before the pictures are read
            raise InputError(f"--sheet {path}: no permission to write in {path.parent}; name another file")
        if path.exists():
            with open(path, "rb") as file:
                if file.read(len(_PNG)) != _PNG:
                    raise InputError(f"--sheet {path}: holds something that is no PNG; name another file")
    except OSError as error:
        raise InputError(f"--sheet {path}: cannot be written ({error.strerror}); name another file") from None


def _read(manifest: Manifest, sample: int) -> bytes:
    row = manifest.table[sample]
    shard, start, size = int(row["shard"]), int(row["offset"]), int(row["size"])
    if shard >= len(manifest.shards) or start + size > manifest.shards[shard].bytes:
        raise InputError(f"{manifest.place}/{SAMPLES} leads sample {sample:,} out of its shard; see `alasca verify`")
    path = manifest.shard_path(shard)
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from None


def _name(manifest: Manifest, label: int) -> str:
    """Return the class in ASCII, all that Pillow's own font has; where that loses letters, after the class's number."""
    name = manifest.classes[label]
    if name.isascii():
        return name
    return f"#{label} {unicodedata.normalize('NFKD', name).encode('ascii', 'ignore').decode()}"


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the text, shortened to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
