"""The sub-commands `bench plan`, `bench loader` and `bench step` of the command line."""

import argparse
from collections.abc import Callable

# Everything heavy is imported where it is used, so that --help is quick.

_PLAN = """examples:
  alasca bench plan
  alasca bench plan data/own/train --lanes 8 --world 8
"""
_LOADER = """examples:
  alasca bench loader data/own/train
  alasca bench loader s3://photos/v1/train --workers 8 --micro-batch 32 --images 20000

Images of a URL are fetched into the cache before the clock starts.
"""
_STEP = """examples:
  alasca bench step configs/imagefolder.toml --data.workers 8
  torchrun --nproc-per-node 8 -m pipeline bench step configs/imagefolder.toml

Nothing of the run is evaluated, saved or recorded.
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-commands; each sets `run`, a function from the parsed arguments to an exit status."""
    bench = subparsers.add_parser(
        "bench",
        help="how fast the order, the loader or a training step is on this machine",
        description="Time one part of a run on this machine, in repeats, and print the figures with their spread.",
        epilog="`alasca bench plan|loader|step --help` lists the options.\n" + _LOADER.rpartition("\n\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = bench.add_subparsers(title="parts", metavar="PART", required=True)

    plan = _part(kinds, "plan", "seconds and memory of the order of an epoch, and of a first batch", run_plan, _PLAN)
    plan.add_argument("data", nargs="?", metavar="DIR|URL", help="dataset whose shards to take (default: made up)")
    _count(plan, "--samples", 14_000_000, "of a made-up dataset")
    _count(plan, "--shards", 14_000, "of a made-up dataset")
    _count(plan, "--lanes", 8, "as data.lanes")
    _count(plan, "--micro-batch", 32, "as data.micro_batch")
    _count(plan, "--world", 8, "processes that share the lanes; the first one's order is made")
    _count(plan, "--repeats", 5, "each of another epoch")

    loader = _part(
        kinds, "loader", "images/s of the loader, of a bare loop of its work, and of bytes alone", run_loader, _LOADER
    )
    loader.add_argument("data", metavar="DIR|URL", help="dataset to read")
    loader.add_argument("--workers", type=_at_least(0), default=2, metavar="N", help="as data.workers (%(default)s)")
    _count(loader, "--crop", 224, "as data.crop")
    _count(loader, "--micro-batch", 64, "images of a batch")
    _count(loader, "--images", 2048, "of a repeat")
    _count(loader, "--repeats", 5, "in turn")

    step = _part(kinds, "step", "images/s of a recipe's training step, split in data wait and compute", run_step, _STEP)
    step.usage = "alasca bench step [--steps N] [--repeats N] CONFIG [--section.key VALUE ...]"
    step.add_argument("config", metavar="CONFIG", help="TOML file of a run")
    _count(step, "--steps", 10, "of a repeat")
    _count(step, "--repeats", 5, "one after the other")
    step.add_argument("overrides", nargs=argparse.REMAINDER, metavar="...", help="any key of the file, over it")


def _part(
    kinds: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    help_: str,
    run: Callable[[argparse.Namespace], int],
    examples: str,
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(
        name,
        help=help_,
        description=help_[0].upper() + help_[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def _count(parser: argparse.ArgumentParser, name: str, default: int, help_: str) -> None:
    parser.add_argument(name, type=_at_least(1), default=default, metavar="N", help=f"{help_} (%(default)s)")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number from {least}")
        return int(text)

    return number


def run_plan(args: argparse.Namespace) -> int:
    """Print what the order costs; raises InputError."""
    from pipeline.bench import plan
    from shards.manifest import Manifest

    sizes = Manifest.load(args.data) if args.data else plan.even_shards(args.samples, args.shards)
    figures = plan.measure(
        sizes, lanes=args.lanes, micro_batch=args.micro_batch, world=args.world, repeats=args.repeats
    )
    print("\n".join(plan.lines(figures)))
    return 0


def run_loader(args: argparse.Namespace) -> int:
    """Print images/s of reading and decoding; raises InputError."""
    from pipeline.bench import loader
    from shards.headline import describe
    from shards.manifest import Manifest
    from shards.url import public

    manifest = Manifest.load(args.data)
    names = ("workers", "crop", "micro_batch", "images", "repeats")
    setting = loader.Setting(**{name: getattr(args, name) for name in names})
    print(f"{public(args.data)}: {describe(manifest)}")
    print("\n".join(loader.lines(loader.measure(manifest, setting))))
    return 0


def run_step(args: argparse.Namespace) -> int:
    """Print images/s of training steps; raises InputError."""
    import os

    from pipeline import configfile
    from pipeline.bench import step

    if {"-h", "--help"} & set(args.overrides):
        args.parser.print_help()
        return 0
    config = configfile.load(args.config, args.overrides)
    figures = step.measure(config, steps=args.steps, repeats=args.repeats)
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(step.lines(figures)))
    return 0
