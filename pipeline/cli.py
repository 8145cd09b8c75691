"""The `alasca` command: sub-commands, and errors as one line with an exit status."""

import argparse
import atexit
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from shards import commands as shard_commands
from shards.errors import InputError, OwnError

_TRAIN_EXAMPLE = """example:
  alasca train configs/imagefolder.toml --data.train data/clothing/train --optim.epochs 5
  torchrun --nproc-per-node 8 launch/train.py configs/imagefolder.toml --resume auto
"""
_EVAL_EXAMPLE = """example:
  alasca eval runs/demo/alasca-seed0 --data data/digits/test
"""
_PROBE_EXAMPLE = """example:
  alasca probe runs/demo/alasca-seed0 --train data/digits/train --test data/digits/test
"""
_COMPARE_EXAMPLE = """example:
  alasca compare configs/compare/demo.toml
"""

_SECONDS_TO_SPEAK = 30.0


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Be the process: `main`, then leave with its status.

    Exit handlers run and output is flushed, but Python is not taken down piece by piece: threads of torch's collectives
    may still be letting go of tensors then, and now and then that ended a finished run with SIGABRT.
    """
    status = main(argv)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Returns:
        0 on success, 1 for a finding or failure, 2 for a user's mistake, 130 when interrupted.
    """
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except InputError as error:
        if _speaks(error) or _nobody_spoke():
            # From a data worker the message arrives under a traceback; its last line is ours.
            line = str(error).strip().splitlines()[-1].split("Error: ", 1)[-1] if "\n" in str(error) else str(error)
            print(f"alasca: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("alasca: interrupted", file=sys.stderr)
        return 130


def _speaks(error: InputError) -> bool:
    """Of the processes that a launcher started on a node, the first reports what all of them found."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, OwnError)


def _nobody_spoke() -> bool:
    """Wait for the first process of the node to report the mistake; its end makes the launcher end this one.

    Leaving at once would make the launcher end the first process before its line is out. If it does not fail at all,
    the mistake was found here alone, and is reported here.
    """
    time.sleep(_SECONDS_TO_SPEAK)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alasca",
        description="Train image classifiers on large datasets whose labels are wrong.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    shard_commands.register(commands)
    _add_train(commands)
    _add_eval(commands)
    _add_probe(commands)
    _add_compare(commands)
    return parser


def _add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "train",
        help="train one run; the same under torchrun, deepspeed or alone",
        usage="alasca train CONFIG [--section.key VALUE ...] [--resume auto|PATH|none]",
        epilog=_TRAIN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file; pipeline/config.py lists the keys")
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="any key of the file, over it; --resume X is short for --run.resume X",
    )
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    if {"-h", "--help"} & set(args.overrides):
        return main(["train", "--help"])

    from pipeline import configfile

    words = [_resume_key(word) for word in args.overrides]
    chosen = configfile.load(args.config, words)

    from pipeline.train.loop import train

    train(chosen)
    return 0


def _resume_key(word: str) -> str:
    return "--run." + word[2:] if word == "--resume" or word.startswith("--resume=") else word


def _add_eval(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "eval",
        help="accuracy of a run's newest checkpoint on a dataset",
        epilog=_EVAL_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="RUN", help="folder of the run")
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset with the classes of the run")
    parser.add_argument(
        "--class-errors", metavar="FILE", help="also write the error of each class, for method.har.class_errors"
    )
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    from pathlib import Path

    from pipeline.train import dist
    from pipeline.train.evaluate import open_set
    from pipeline.train.stored import StoredRun

    run = StoredRun(Path(args.folder))
    manifest = open_set(args.data, run.classes, "--data")
    world = dist.start(run.config.dist.timeout)
    figures = run.evaluate(manifest, world)
    errors = run.class_errors(manifest, world) if args.class_errors else {}
    dist.stop()
    if world.rank == 0:
        if args.class_errors:
            Path(args.class_errors).write_text(json.dumps(errors, indent=1) + "\n", encoding="utf-8")
        width = max(len(name) for name in figures)
        for name, value in figures.items():
            print(f"{name:<{width}}  {f'{value:.2%}' if '/top' in name else f'{value:g}'}")
    return 0


def _add_probe(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "probe",
        help="accuracy of linear classifiers on the frozen features of a run's stages, learnt from clean labels",
        epilog=_PROBE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="RUN", help="folder of the run")
    parser.add_argument("--train", required=True, metavar="DIR", help="dataset whose clean labels are learnt")
    parser.add_argument("--test", required=True, metavar="DIR", help="clean dataset on which accuracy is measured")
    parser.add_argument(
        "--limit", type=int, default=20_000, metavar="N", help="images of each set at most (%(default)s)"
    )
    parser.add_argument(
        "--labels-are-clean",
        action="store_true",
        help="take the given labels of --train for clean where no clean ones are known",
    )
    parser.set_defaults(run=_probe)


def _probe(args: argparse.Namespace) -> int:
    from pathlib import Path

    from pipeline.train.probe import probe_run

    found = probe_run(Path(args.folder), args.train, args.test, limit=args.limit, trust=args.labels_are_clean)
    for name in ("train", "test"):
        part = found[name]
        print(f"{name:<5}  {part['data']}: {part['images']:,} of {part['of']:,} images, {part['bad']:,} undecodable")
    print(f"{'stage':<7}  {'features':>8}  {'train':>7}  {'test':>7}")
    for stage in found["stages"]:
        note = "" if stage["converged"] else "  (stopped before it converged)"
        figures = f"{stage['features']:>8}  {stage['train_top1']:>7.2%}  {stage['top1']:>7.2%}"
        print(f"{stage['stage']:<7}  {figures}{note}")
    return 0


def _add_compare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "compare",
        help="train several methods on the same batches and print one table; finished runs are reused",
        epilog=_COMPARE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file naming methods and seeds")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    from pipeline.report.compare import compare

    return compare(args.config)
