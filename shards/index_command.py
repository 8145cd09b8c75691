"""The sub-command `index` of the command line."""

import argparse
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shards.headline import describe, warnings
from shards.readers import LAYOUTS

if TYPE_CHECKING:  # everything heavy is imported where it is used, so that --help is quick
    from shards.places import Tar

_SECONDS = 900.0  # for one tar, with all retries: nobody waits with a GPU
_OPTIONS = LAYOUTS["webdataset"].options


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command."""
    index = subparsers.add_parser(
        "index",
        help="make a dataset of tars that others wrote (img2dataset, timm, webdataset), where they lie",
        description="Read tars that somebody else wrote for webdataset, and write a manifest for them; the images\n"
        "stay where they are. A tar at a URL is fetched once, read and removed again. A killed index is\n"
        "simply started again. Samples are not shuffled: where that matters, a warning says so.",
        epilog="examples:\n  alasca index raw/tars --out data/tars/train --classes raw/classes.txt\n"
        "  alasca index 's3://photos/train-{000..146}.tar' --label-field label --out data/photos/train\n"
        "  alasca index raw/tars --out raw/tars    # the manifest lies beside the tars",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    index.add_argument(
        "places",
        nargs="+",
        metavar="PLACE",
        help="a tar, or a folder of tars: a path or a URL (over http a tar); ranges as in {000..146} are expanded",
    )
    index.add_argument("--out", required=True, metavar="DIR", help="folder for the manifest")
    index.add_argument("--split", default="train", metavar="NAME", help="what to call the split (default: train)")
    for option in _OPTIONS:
        option.add_to(index)
    index.set_defaults(run=run_index)


def run_index(args: argparse.Namespace) -> int:
    """Index tars, say what they hold, and warn where they are not shuffled; raises InputError."""
    from shards import places, progress
    from shards.cache import Cache
    from shards.index import index
    from shards.mix import Mix

    began = time.monotonic()
    cache = Cache(seconds=_SECONDS)
    with progress.for_user() as shown:
        tars = places.find(args.places)
        options = {option.name: getattr(args, option.name) for option in _OPTIONS}
        manifest = index(tars, args.out, split=args.split, cache=cache, progress=shown, **options)
    for line in warnings(manifest):
        print(line)
    mix = Mix.of(manifest.labels, manifest.num_classes)
    if mix.bad:
        print(f"WARNING  {mix.warning(manifest.classes)}")
        print(f"WARNING  to shuffle them: {_remedy(args, tars)}")
    print(f"{args.out}: {describe(manifest)}, {time.monotonic() - began:.1f} s")
    return 0


def _remedy(args: argparse.Namespace, tars: Sequence["Tar"]) -> str:
    """Return the command that writes the same samples in shuffled order, as far as it is known."""
    folders = {tar.folder for tar in tars}
    root, before = Path(next(iter(folders))), ""
    names = {tar.name for tar in tars}
    if len(folders) > 1 or tars[0].remote or names != {path.name for path in root.glob("*.tar")}:
        root, before = Path("TARS"), "copy these tars into a local folder TARS, then "
    beside = Path(args.out)
    if Path(os.path.realpath(beside)).is_relative_to(os.path.realpath(root)):
        beside = root
    words = ["alasca", "shard", "webdataset", "--root", str(root), "--split", args.split]
    for option in _OPTIONS:
        if (value := getattr(args, option.name)) is not None:
            words += [f"--{option.name.replace('_', '-')}", value]
    return f"{before}{shlex.join([*words, '--out', f'{beside}-shuffled'])}"
