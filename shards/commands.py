"""The sub-commands `shard` and `verify` of the command line."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shards.readers import LAYOUTS

if TYPE_CHECKING:  # everything heavy is imported where it is used, so that --help is quick
    from shards.manifest import Manifest
    from shards.verify import Report

MANY_CLASSES = 30

_SHARD_EXAMPLES = """examples:
  alasca shard digits --split train --noise symmetric:0.4 --out data/digits/train
  alasca shard imagefolder --root raw/clothing --split train --resize 256 --out data/clothing/train
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
            parser.add_argument(
                f"--{option.name.replace('_', '-')}",
                help=option.help,
                metavar=option.metavar,
                choices=option.choices,
                default=option.default,
            )
        parser.set_defaults(run=run_shard, reader=name)

    verify = subparsers.add_parser(
        "verify",
        help="compare a dataset folder with its manifest, byte for byte",
        description="Hash every file again, count and index every shard again, compare labels, and print the classes.\n"
        "Exit status 0 where all agrees, 1 where anything differs.",
        epilog="example:\n  alasca verify data/clothing/train",
        formatter_class=raw,
    )
    verify.add_argument("dir", type=Path, metavar="DIR", help="a folder written by `alasca shard`")
    verify.set_defaults(run=run_verify)


def _add_shard_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, metavar="RAW", help="folder of the raw dataset")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--split", help="which split to read (default: train)")
    parser.add_argument("--noise", metavar="KIND:RATE", help="make labels wrong, as in symmetric:0.4 (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the noise (default: 0)")
    parser.add_argument(
        "--resize", type=int, metavar="N", help="shrink the short side to N pixels (default: keep bytes)"
    )
    parser.add_argument("--samples-per-shard", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per CPU)")
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
    from shards.build import build
    from shards.readers import find

    began = time.monotonic()
    wanted = noise.parse(args.noise) if args.noise is not None else None
    options = {option.name: getattr(args, option.name) for option in LAYOUTS[args.reader].options}
    source = find(args.reader)(args.root, args.split, **options)
    with progress.for_user() as shown:
        for note in source.notes:
            shown.say(f"{args.root}: {note}")
        manifest = build(
            source,
            args.out,
            seed=args.seed,
            noise=wanted,
            resize=args.resize,
            samples_per_shard=args.samples_per_shard,
            workers=args.workers,
            allow_missing=args.allow_missing,
            progress=shown,
        )
    for line in _warnings(manifest):
        print(line)
    print(f"{args.out}: {describe(manifest)}, {time.monotonic() - began:.1f} s")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Print what differs and the classes; return 1 where anything differs; raises InputError."""
    from shards import progress
    from shards.verify import verify

    with progress.for_user() as shown:
        report = verify(args.dir, shown)
    print(f"{args.dir}: {describe(report.manifest)}")
    for line in [*_warnings(report.manifest), *_class_lines(report)]:
        print(line)
    for line in report.differences:
        print(f"DIFFERS  {line}")
    count = len(report.differences)
    print(
        f"{args.dir}: {count:,} difference{'s' * (count > 1)}"
        if count
        else f"{args.dir}: every byte is as the manifest says"
    )
    return 1 if count else 0


def describe(manifest: "Manifest") -> str:
    """Return one line: images, classes, shards, size, noise."""
    noise = "no noise added"
    if manifest.noise:
        noise = f"{manifest.noise['kind']} noise on {manifest.noise['realised']:.2%} of the labels"
    size = sum(shard.bytes for shard in manifest.shards)
    return (
        f"{manifest.num_samples:,} images, {manifest.num_classes:,} classes, {len(manifest.shards):,} shards, "
        f"{size / 1e6:,.1f} MB, {noise}"
    )


def _warnings(manifest: "Manifest") -> list[str]:
    count = manifest.source["counts"]["unreadable"]
    if not count:
        return []
    first = "; ".join(f"{bad['key']}: {bad['reason']}" for bad in manifest.source["unreadable"])
    return [f"WARNING  {count:,} images cannot be read; kept as they are, training gives them no weight ({first})"]


def _class_lines(report: "Report") -> list[str]:
    if report.given is None:
        return []
    order = range(len(report.given))
    lines = [f"{'given':>10} {'clean':>10}  class" if report.clean is not None else f"{'given':>10}  class"]
    for label in order:
        clean = f" {report.clean[label]:>10,}" if report.clean is not None else ""
        lines.append(f"{report.given[label]:>10,}{clean}  {report.manifest.classes[label]}")
    if len(order) > MANY_CLASSES:
        half = MANY_CLASSES // 2
        lines[half + 1 : -half] = [f"{'...':>10}  {len(order) - 2 * half:,} more classes"]
    if report.noise_rate is not None:
        lines.append(f"{report.noise_rate:.2%} of the given labels are wrong, where the clean label is known")
    return lines
