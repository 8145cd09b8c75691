"""Other loaders over the same images, each in its own format, each with two decoders: Pillow's and ours."""

import importlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pipeline.data.augment import sample_rng, train_view
from pipeline.data.decode import decode
from shards.manifest import Manifest

Transform = Callable[[bytes], Any]

_LONGEST_S = 60.0  # seconds for a batch

FFCV = (
    "builds only against OpenCV's and libturbojpeg's headers, and its last release (1.0.2) is of 2023; where it "
    "is installed, run its own benchmark beside this one"
)


class AsUsers:
    """Pillow, RandomResizedCrop, flip, ToTensor, Normalize: what is run today."""

    def __init__(self, crop: int) -> None:
        self._views = _views(crop)
        self._to_tensor = v2.Compose([v2.ToTensor(), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    def __call__(self, data: bytes) -> Any:
        """One random view of a file."""
        return self._to_tensor(self._views(Image.open(io.BytesIO(data)).convert("RGB")))


class ByPillow:
    """Pillow, RandomResizedCrop, flip, to uint8 [3, crop, crop]."""

    def __init__(self, crop: int) -> None:
        self._views = _views(crop)

    def __call__(self, data: bytes) -> Any:
        """One random view of a file."""
        return v2.functional.pil_to_tensor(self._views(Image.open(io.BytesIO(data)).convert("RGB")))


class ByUs:
    """Our decode, crop and flip, to uint8 [crop, crop, 3]."""

    def __init__(self, crop: int) -> None:
        self._crop, self._number = crop, itertools.count()

    def __call__(self, data: bytes) -> Any:
        """One random view of a file."""
        rng = sample_rng(0, os.getpid(), next(self._number))
        return torch.from_numpy(train_view(decode(data, 10**9), self._crop, "resized_crop", True, rng))


def as_it_is(data: bytes) -> bytes:
    """Bytes only; some loaders hand out a view of theirs."""
    return bytes(data)


def _views(crop: int) -> Any:
    return v2.Compose([v2.RandomResizedCrop(crop, antialias=True), v2.RandomHorizontalFlip()])


@dataclass(frozen=True)
class Place:
    """Where the images lie: as class folders, as our shards, and a folder for others' formats."""

    raw: Path
    manifest: Manifest
    scratch: Path
    workers: int
    batch: int


def _options(transform: Transform, place: Place) -> dict[str, Any]:
    """What every DataLoader here is given."""
    return {
        "batch_size": place.batch,
        "collate_fn": list if transform is as_it_is else torch.utils.data.default_collate,
        "num_workers": place.workers,
        **_waits(place),
    }


def _waits(place: Place) -> dict[str, Any]:
    """As many batches ahead as ours; a worker that hangs is an error."""
    return {"prefetch_factor": 4, "timeout": _LONGEST_S} if place.workers else {}


def webdataset(place: Place, transform: Transform) -> Iterator[Any]:
    """As in its documentation: shards shuffled, a buffer of 1000, batches made in the workers."""
    import webdataset as wds

    urls = [str(place.manifest.shard_path(index)) for index in range(len(place.manifest.shards))]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000, initial=place.batch)
    if transform is as_it_is:
        dataset = dataset.to_tuple("jpg").batched(place.batch, collation_fn=None)
    elif isinstance(transform, ByUs):
        dataset = dataset.to_tuple("jpg").map_tuple(transform).batched(place.batch)
    else:
        after = _after_pil(transform)
        dataset = dataset.decode("pil").to_tuple("jpg").map_tuple(after).batched(place.batch)
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=place.workers, **_waits(place)))


def _after_pil(transform: Any) -> Callable[[Image.Image], Any]:
    """What follows where webdataset has decoded already."""
    if isinstance(transform, AsUsers):
        return v2.Compose([transform._views, transform._to_tensor])
    return v2.Compose([transform._views, v2.PILToTensor()])


def imagefolder(place: Place, transform: Transform) -> Iterator[Any]:
    """torchvision's, over the class folders."""
    dataset = ImageFolder(place.raw, transform=transform, loader=_content)
    return iter(DataLoader(_Images(dataset), shuffle=True, **_options(transform, place)))


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


class _Images(torch.utils.data.Dataset[Any]):
    """Without the labels, as everywhere here."""

    def __init__(self, dataset: ImageFolder) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index][0]


def litdata(place: Place, transform: Transform) -> Iterator[Any]:
    """Its optimised chunks of 64 MB, shuffled, through its own loader."""
    lit = importlib.import_module("litdata")
    folder = place.scratch / "litdata"
    if not folder.exists():
        paths = [str(path) for path in sorted(place.raw.glob("*/*")) if path.is_file()]
        lit.optimize(_content, paths, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)
    dataset = lit.StreamingDataset(str(folder), shuffle=True, transform=transform)
    return iter(lit.StreamingDataLoader(dataset, **_options(transform, place)))


def mosaicml(place: Place, transform: Transform) -> Iterator[Any]:
    """Its MDS shards of 64 MB, shuffled."""
    streaming = importlib.import_module("streaming")
    folder = place.scratch / "mds"
    if not folder.exists():
        with streaming.MDSWriter(out=str(folder), columns={"image": "bytes"}) as writer:
            for path in sorted(place.raw.glob("*/*")):
                writer.write({"image": path.read_bytes()})
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=place.batch)
    return iter(DataLoader(_Transformed(dataset, transform), **_options(transform, place)))


class _Transformed(torch.utils.data.IterableDataset[Any]):
    def __init__(self, dataset: Any, transform: Transform) -> None:
        self._dataset, self._transform = dataset, transform

    def __iter__(self) -> Iterator[Any]:
        return (self._transform(sample["image"]) for sample in self._dataset)


PEERS: dict[str, tuple[str, Callable[[Place, Transform], Iterator[Any]]]] = {
    "webdataset": ("webdataset", webdataset),
    "ImageFolder": ("torchvision", imagefolder),
    "litdata": ("litdata", litdata),
    "mosaicml-streaming": ("streaming", mosaicml),
}


def available() -> tuple[list[str], dict[str, str]]:
    """Peers that can run, and a line for each that cannot."""
    there, absent = [], {}
    for name, (module, _) in PEERS.items():
        try:
            importlib.import_module(module)
            there.append(name)
        except Exception as error:  # a peer's own dependencies may not fit ours
            absent[name] = f"cannot be imported ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
    return there, absent | ({"ffcv": FFCV} if importlib.util.find_spec("ffcv") is None else {})
