"""One file per raw layout. A new layout is a new file with a function `read`, and its line here."""

import argparse
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shards.errors import InputError
from shards.readers.record import Source


@dataclass(frozen=True)
class Option:
    """A choice that one layout alone needs: `--name VALUE`, and the keyword `name` of its `read`."""

    name: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    default: str | None = None

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Let a command take it."""
        parser.add_argument(
            f"--{self.name.replace('_', '-')}",
            help=self.help,
            metavar=self.metavar,
            choices=self.choices,
            default=self.default,
        )


@dataclass(frozen=True)
class Layout:
    """What `--help` says of a reader, and its own options."""

    help: str
    options: tuple[Option, ...] = ()


LAYOUTS = {
    "digits": Layout("scikit-learn's handwritten digits, which need no download; splits train and test"),
    "imagefolder": Layout(
        "ROOT/CLASS/images or ROOT/SPLIT/CLASS/images: the folder names are the classes",
        (Option("classes", "file with a class name a line, so that splits agree (default: the folders)", "FILE"),),
    ),
    "clothing1m": Layout("Clothing1M; splits train (noisy), clean_train, val, test, and both (noisy and clean labels)"),
    "webvision": Layout(
        "WebVision 1.0; splits train, val, and imagenet_val (ImageNet's validation images in the same classes)",
        (
            Option("queries", "train: images of this search (default: both)", choices=("google", "flickr", "both")),
            Option("classes", "take the first N classes (default: all); mini-WebVision: 50, of google", metavar="N"),
            Option("info", "imagenet_val: WebVision's folder that holds synsets.txt", metavar="DIR"),
        ),
    ),
    "csv": Layout(
        "a .csv or .tsv list of images, lines path,label[,clean]; --split is only a name",
        (
            Option("list", "the list; its paths are relative to --root", "FILE"),
            Option("classes", "file with a class name a line (default: what the labels imply)", "FILE"),
        ),
    ),
    "webdataset": Layout(
        "ROOT/*.tar that somebody else wrote for webdataset, or ROOT/SPLIT/*.tar",
        (
            Option("label_field", "field of .json that holds the label (default: the label is in .cls)", "NAME"),
            Option("clean_field", "field of .json that holds the true label (default: unknown)", "NAME"),
            Option("classes", "file with a class name a line (default: what the labels imply)", "FILE"),
        ),
    ),
    "food101n": Layout("Food-101N, splits train, verified_train and verified_val; Food-101, split test"),
    "animal10n": Layout("ANIMAL-10N: ROOT/training and ROOT/testing, files LABEL_NUMBER.jpg; splits train and test"),
    "cifar": Layout(
        "CIFAR-10 or CIFAR-100 as published for Python; splits train and test",
        (
            Option("labels", "human labels of CIFAR-10N or CIFAR-100N: .pt, .npy or .csv", "FILE"),
            Option("label_set", "which of them: aggre, worst, random1, random2, random3; or noisy", "NAME"),
        ),
    ),
    "idx": Layout(
        "MNIST's files, Fashion-MNIST's: train-images-idx3-ubyte[.gz] and its like; splits train and test",
        (
            Option("names", "class names (default: fashion)", choices=("fashion", "digits")),
            Option("classes", "file with a class name a line, instead of --names", "FILE"),
        ),
    ),
}


def find(name: str) -> Callable[..., Source]:
    """Return read(root, split, **options) of the reader `name`, one of LAYOUTS.

    `root` (Path) and `split` (str) are None where not given; options are those of its line, as keywords. What the file
    system refuses, a folder without permission or a name that is too long, is an InputError here, whatever the reader.
    """
    read: Callable[..., Source] = importlib.import_module(f"shards.readers.{name}").read

    @functools.wraps(read)
    def readable(*arguments: Any, **options: Any) -> Source:
        try:
            return read(*arguments, **options)
        except OSError as error:
            raise InputError(
                f"{error.filename or name}: cannot be read ({error.strerror}); mend this, or give another folder"
            ) from None

    return readable
