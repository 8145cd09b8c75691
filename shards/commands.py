"""The sub-commands `shard`, `merge`, `inspect` and `verify` of the command line."""

import argparse
import shlex
import time
from pathlib import Path

from shards import index_command
from shards.headline import describe, warnings
from shards.readers import LAYOUTS

_SHARD_EXAMPLES = """examples:
  alasca shard digits --split train --noise symmetric:0.4 --out data/digits/train
  alasca shard imagefolder --root raw/clothing --split train --resize 256 --out data/clothing/train
  alasca shard imagefolder --root raw/clothing --split train --out s3://bucket/clothing/train
"""
_UNDECODABLE = 20  # lines
_MERGE_EXAMPLE = """example, as a job array of 16:
  alasca shard clothing1m --root raw/clothing1m --out data/clothing1m/train --part $SLURM_ARRAY_TASK_ID/16
and when all jobs are done:
  alasca merge data/clothing1m/train
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-commands; each sets `run`, a function from the parsed arguments to an exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    shard = subparsers.add_parser(
        "shard",
        help="write a raw dataset as verified webdataset shards",
        description="Write one split of a raw dataset as webdataset shards with a manifest. A killed run continues\n"
        "when called again; equal input and seed give equal bytes, whatever the number of workers.",
        epilog=f"`alasca shard READER --help` lists the options.\n{_SHARD_EXAMPLES}",
        formatter_class=raw,
    )
    readers = shard.add_subparsers(title="readers, one for each raw layout", metavar="READER", required=True)
    for name, layout in LAYOUTS.items():
        parser = readers.add_parser(
            name, help=layout.help, description=layout.help, epilog=_SHARD_EXAMPLES, formatter_class=raw
        )
        _add_shard_options(parser)
        for option in layout.options:
            option.add_to(parser)
        parser.set_defaults(run=run_shard, reader=name)

    merge = subparsers.add_parser(
        "merge",
        help="make one dataset of the parts that `alasca shard --part I/N` wrote",
        description="Complete the first folder from the parts in it and in the others, which stay as they are. The\n"
        "result equals that of one `alasca shard` without --part, byte for byte.",
        epilog=_MERGE_EXAMPLE,
        formatter_class=raw,
    )
    merge.add_argument("dirs", nargs="+", metavar="DIR|URL", help="folders that hold the parts; one, if all share it")
    merge.set_defaults(run=run_merge)

    inspect = subparsers.add_parser(
        "inspect",
        help="show what a dataset folder holds: origin, classes, noise, image sizes, pictures",
        description="Read the manifest and the sample table, and print how the dataset was made, its classes, what is\n"
        "known of its noise, and its image sizes. Nothing is hashed: `alasca verify` does that.",
        epilog="examples:\n  alasca inspect data/clothing/train\n"
        "  alasca inspect data/clothing/train --sheet clothing.png --images 100",
        formatter_class=raw,
    )
    inspect.add_argument("dir", metavar="DIR|URL", help="a folder written by `alasca shard`")
    inspect.add_argument("--sheet", type=Path, metavar="FILE.png", help="also draw some of its pictures, with labels")
    inspect.add_argument("--images", type=int, default=64, metavar="N", help="pictures on the sheet (default: 64)")
    inspect.add_argument("--seed", type=int, default=0, help="of the choice of pictures (default: 0)")
    inspect.set_defaults(run=run_inspect)

    verify = subparsers.add_parser(
        "verify",
        help="compare a dataset folder with its manifest, byte for byte",
        description="Hash every file again, count and index every shard again, compare labels, look for copies among\n"
        "the images, and print the classes. What lies at a URL is fetched anew and removed again.\n"
        "Exit status 0 where all agrees, 1 where anything differs or does not decode.",
        epilog="examples:\n  alasca verify data/clothing/train\n  alasca verify s3://bucket/clothing/train --decode",
        formatter_class=raw,
    )
    verify.add_argument("dir", metavar="DIR|URL", help="a folder written by `alasca shard` or `alasca index`")
    verify.add_argument("--decode", action="store_true", help="also decode every image: a second for about a thousand")
    verify.set_defaults(run=run_verify)

    index_command.register(subparsers)


def _add_shard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, metavar="RAW", help="folder of the raw dataset")
    parser.add_argument("--out", required=True, metavar="DIR|URL", help="folder to write, new or empty; or s3://...")
    parser.add_argument("--split", help="which split to read (default: train)")
    parser.add_argument(
        "--noise",
        metavar="KIND:RATE",
        help="make labels wrong, as in symmetric:0.4 (default: none); KIND is symmetric, symmetric-all, asymmetric, "
        "pair or instance; or matrix:FILE, K rows of K numbers; docs/noise.md explains them",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order and the noise (default: 0)")
    parser.add_argument(
        "--resize", type=int, metavar="N", help="shrink the short side to N pixels (default: keep bytes)"
    )
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per CPU)")
    parser.add_argument(
        "--part", metavar="I/N", help="write part I of N only, from 1 to N: for job arrays; then `alasca merge`"
    )
    parser.add_argument(
        "--allow-missing",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="leave out images that are not there, up to this share of all (default: 0)",
    )


def run_shard(args: argparse.Namespace) -> int:
    """Build a dataset folder and say what it holds; raises InputError."""
    from shards import noise, progress
    from shards.build import build, build_part, check
    from shards.part import Part
    from shards.readers import find
    from shards.url import public

    began = time.monotonic()
    wanted = noise.parse(args.noise) if args.noise is not None else None
    part = Part.parse(args.part) if args.part is not None else None
    out = public(args.out)
    names = ("seed", "resize", "samples_per_shard", "workers", "allow_missing")
    settings = {name: getattr(args, name) for name in names}
    check(args.out, args.root, **settings)  # before the raw dataset is read, which may take minutes
    options = {option.name: getattr(args, option.name) for option in LAYOUTS[args.reader].options}
    with progress.for_user() as shown:
        with progress.if_long(shown, f"{args.root or args.reader}: reading the list of images"):
            source = find(args.reader)(args.root, args.split, **options)
        for note in source.notes:
            shown.say(f"{args.root}: {note}")
        if part:
            to_merge = build_part(source, args.out, part, noise=wanted, progress=shown, **settings)
        else:
            manifest = build(source, args.out, noise=wanted, progress=shown, **settings)
    seconds = f"{time.monotonic() - began:.1f} s"
    if part:
        then = f"; when all {part.of} are there: alasca merge {out}" if to_merge else ""
        print(f"{out}: part {part} is there, {seconds}{then}")
        return 0
    for line in warnings(manifest):
        print(line)
    print(f"{out}: {describe(manifest)}, {seconds}")
    return 0


def run_merge(args: argparse.Namespace) -> int:
    """Make a dataset of its parts and say what it holds; raises InputError."""
    from shards import progress
    from shards.merge import merge

    with progress.for_user() as shown:
        manifest = merge(args.dirs, shown)
    for line in warnings(manifest):
        print(line)
    print(f"{manifest.place}: {describe(manifest)}")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Print what a dataset folder holds and draw some of it where asked; raises InputError."""
    from shards import inspection, sheet
    from shards.manifest import Manifest
    from shards.url import public

    manifest = Manifest.load(args.dir)
    lines = inspection.lines(manifest)
    if args.sheet is not None:
        drawn = sheet.draw(manifest, args.sheet, images=args.images, seed=args.seed)
        lines += ["", f"{args.sheet}: {drawn.pictures:,} pictures, {drawn.undecodable:,} of them cannot be decoded"]
    print(f"{public(args.dir)}: {describe(manifest)}")
    for line in [*warnings(manifest), *lines]:
        print(line)
    if manifest.store is None:
        print(f"\nthis was a look; `alasca verify {shlex.quote(args.dir)}` hashes everything")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Print what differs and the classes; return 1 where anything differs; raises InputError."""
    from shards import inspection, progress
    from shards.readers.record import counted
    from shards.url import public
    from shards.verify import verify

    with progress.for_user() as shown:
        report = verify(args.dir, shown, decode=args.decode)
    name = public(args.dir)
    print(f"{name}: {describe(report.manifest)}")
    lines = warnings(report.manifest)
    if report.labels is not None:
        lines += inspection.class_lines(report.manifest.classes, report.labels)
        lines += inspection.noise_lines(report.labels)
    if report.copies is not None:
        copies = report.copies
        lines.append(
            f"{counted(copies.images, 'image')} more than once, byte for byte; {copies.mislabelled:,} share their bytes"
            f" with an image of another label (as {' and '.join(copies.pair)})"
        )
    for line in lines:
        print(line)
    for line in report.differences:
        print(f"DIFFERS  {line}")
    for key, reason in report.undecodable[:_UNDECODABLE]:
        print(f"UNDECODABLE  {key}: {reason}")
    if args.decode:
        print(f"{counted(len(report.undecodable), 'image')} cannot be decoded; training gives such no weight")
    count = len(report.differences)
    print(f"{name}: {counted(count, 'difference')}" if count else f"{name}: every byte is as the manifest says")
    return 1 if count or report.undecodable else 0
