import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rawsmall import python2

from shards.errors import InputError
from shards.readers import pickles


def fails(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("builtins", "eval", "builtins.eval"),
        ("numpy", "load", "numpy.load"),
        ("numpy", "ndarray.tofile", "numpy.ndarray.tofile"),
        ("numpy.core.multiarray", "fromfile", "numpy.core.multiarray.fromfile"),
        ("torch._utils", "_rebuild_tensor_v2", "numpy.save"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, module: str, name: str, words: str) -> None:
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    (tmp_path / "p").write_bytes(b"\x80\x04" + b"".join(texts) + b"\x93.")
    fails(words, lambda: pickles.load(tmp_path / "p"))


def test_arrays_that_lie_about_themselves_are_refused(tmp_path: Path) -> None:
    """numpy trusts an array's state: one of objects, made of bytes, would be pointers."""
    for value, words in [
        (np.array([None], dtype=object), "of objects"),
        (np.zeros(2, dtype=[("a", "i4")]), "structured"),
        (np.array(["text"]), "plain arrays of numbers"),
    ]:
        (tmp_path / "p").write_bytes(pickle.dumps({"a": value}, 2))
        fails(words, lambda: pickles.load(tmp_path / "p"))
    honest = pickle.dumps({"a": np.arange(4, dtype=np.int64)}, 2)
    assert b"X\x02\x00\x00\x00i8" in honest
    (tmp_path / "p").write_bytes(honest.replace(b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00O8"))
    fails("plain arrays of numbers", lambda: pickles.load(tmp_path / "p"))
    (tmp_path / "p").write_bytes(honest.replace(b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00i4"))
    fails("damaged", lambda: pickles.load(tmp_path / "p"))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_and_order(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "plain": np.arange(6, dtype=np.int64),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i2"),
        "flags": np.array([True, False]),
    }
    (tmp_path / "p").write_bytes(pickle.dumps(arrays, protocol))
    loaded = pickles.load(tmp_path / "p")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert np.array_equal(loaded[name], array)


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    zeros = np.zeros(1 << 25)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("labels/data.pkl", zeros.tobytes() + b"x")
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 21
    fails("its labels/data.pkl would unpack to 268,435,457 bytes, too many", lambda: pickles.load(tmp_path / "bomb.pt"))


def test_python_2_strings_are_bytes(tmp_path: Path) -> None:
    data = python2({"name": "airplane", "long": "x" * 300})
    assert data[:3] == b"\x80\x02}" and b"U\x08airplane" in data and b"T" + struct.pack("<i", 300) in data
    (tmp_path / "p").write_bytes(data)
    assert pickles.load(tmp_path / "p") == {"name": b"airplane", "long": b"x" * 300}
