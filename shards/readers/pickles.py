"""Pickle files of numpy arrays, read without running anything they name.

A pickle is a program, and datasets that travel as pickles come from strangers. Of all that one may name, what numpy
and the plain containers need is understood here, by stand-ins of our own: no code of numpy's, and no other, is reached.
"""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch.save wrote before its format was a zip
LARGEST = 1 << 28  # bytes that a packed file may hold: labels of a million images are 8 MB a set
CONVERT = (
    "convert it: import numpy, torch; "
    "numpy.save('labels.npy', {k: numpy.asarray(v) for k, v in torch.load(FILE).items()})"
)


def load(path: Path) -> dict[str, Any]:
    """Return the dictionary that a file holds: a plain pickle, a .npy of an object, or a .pt (zip or older).

    Its keys are str, its values numpy arrays, lists, str, bytes or numbers. Strings of Python 2 come as bytes.
    Raises InputError where the file is missing, damaged, no dictionary, or names anything but arrays and containers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        document = _document(data)
        if not isinstance(document, dict):
            raise _RefusedError(f"holds a {type(document).__name__.strip('_').lower()}, not a dictionary")
        return {_text(key): _value(value) for key, value in document.items()}
    except _RefusedError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises whatever it stumbles on
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{path}: damaged or no pickle ({reason}); fetch it again") from None


class _RefusedError(ValueError):
    """The pickle asks for what is not understood; the message says for what."""


def _document(data: bytes) -> Any:
    file = io.BytesIO(data)
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise _RefusedError("a zip, but not one that torch.save wrote")
            size = archive.getinfo(names[0]).file_size  # zipfile reads no more than this
            if size > LARGEST:
                raise _RefusedError(f"its {names[0]} would unpack to {size:,} bytes, too many for labels")
            return _Unpickler(io.BytesIO(archive.read(names[0]))).load()
    if data[:6] == b"\x93NUMPY":
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if not dtype.hasobject or shape != ():
            raise _RefusedError(f"holds a plain array {dtype} {shape}, not a dictionary of arrays by name")
        held: Any = _Unpickler(file).load()
        return held.only() if isinstance(held, _Array) else held
    document = _Unpickler(file).load()
    if document == TORCH_MAGIC:
        for _ in range(3):  # the format's version, the machine, then what was saved
            document = _Unpickler(file).load()
    return document


def _text(name: Any) -> str:
    if not isinstance(name, str | bytes):
        raise _RefusedError(f"its key {name!r:.40} is no text")
    return name.decode("latin1") if isinstance(name, bytes) else name


def _value(value: Any) -> Any:
    return value.array() if isinstance(value, _Array) else value


class _Dtype:
    """Stands for numpy.dtype: a kind and size, and a byte order that its state may bring."""

    def __init__(self, kind: Any, *_: Any) -> None:
        self.kind, self.order = _text(kind), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])
        if any(part is not None for part in state[2:5]):
            raise _RefusedError("holds a structured array; plain arrays of numbers are read")

    def plain(self) -> np.dtype[Any]:
        dtype = np.dtype(self.kind if self.order == "|" else self.order + self.kind)
        if dtype.kind not in "biuf":
            raise _RefusedError(f"holds an array of {dtype}; plain arrays of numbers are read")
        return dtype


class _Array:
    """Stands for numpy.ndarray and for the functions that make an empty one, filled by its state."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def only(self) -> Any:
        """Return the one object of an array of objects."""
        _, _, dtype, _, held = self.state
        if not isinstance(dtype, _Dtype) or dtype.kind[:1] != "O" or len(held) != 1:
            raise _RefusedError("holds no dictionary of arrays by name")
        return held[0]

    def array(self) -> NDArray[Any]:
        """Return the array of numbers."""
        _, shape, dtype, by_columns, held = self.state
        if not isinstance(dtype, _Dtype) or not isinstance(held, bytes | bytearray):
            raise _RefusedError("holds an array of objects; plain arrays of numbers are read")
        return np.frombuffer(held, dtype.plain()).reshape(shape, order="F" if by_columns else "C")


class _Buffer(_Array):
    """Stands for numpy's function that makes an array of a buffer (pickle protocol 5)."""

    def __init__(self, held: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.state = (1, shape, dtype, order == "F", held)


class _Encode:
    """Stands for _codecs.encode, by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        if encoding not in ("latin1", b"latin1"):
            raise _RefusedError(f"names the encoding {encoding!r:.40}")
        return text.encode("latin1")

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("changes what reads it")


# Classes all, with nothing a pickle could set on them for the next one.
_UNDERSTOOD: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
    ("_codecs", "encode"): _Encode,
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if found := _UNDERSTOOD.get((module, name)):
            return found
        if module.split(".")[0] == "torch":
            raise _RefusedError(f"holds torch tensors, not numpy arrays; {CONVERT}")
        raise _RefusedError(f"names {f'{module}.{name}'!r:.80}, neither an array nor a container; nothing was loaded")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError(f"holds torch tensors, not numpy arrays; {CONVERT}")
