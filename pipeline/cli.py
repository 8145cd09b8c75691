"""The `alasca` command: sub-commands, and errors as one line with an exit status."""

import argparse
import atexit
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeAlias

from pipeline.bench import commands as bench_commands
from shards import commands as shard_commands
from shards.errors import InputError, OwnError, one_line

Parser = argparse.ArgumentParser
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Run = Callable[[argparse.Namespace], int]

_SECONDS_TO_SPEAK = 30.0


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Be the process: `main`, then leave with its status.

    Exit handlers run and output is flushed, but Python is not taken down piece by piece: threads of torch's collectives
    may still be letting go of tensors then, and now and then that ended a finished run with SIGABRT.
    """
    status = main(argv)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    with contextlib.suppress(OSError):  # a terminal that was closed
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
        if not _speaks(error):
            # The first process of the node reports the mistake, and its end makes the launcher end this one. Leaving at
            # once would make the launcher end the first before its line is out. Who is still here found it alone.
            time.sleep(_SECONDS_TO_SPEAK)
        print(f"alasca: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("alasca: interrupted", file=sys.stderr)
        return 130


def _speaks(error: InputError) -> bool:
    """Of the processes that a launcher started on a node, the first reports what all of them found."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, OwnError)


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
    bench_commands.register(commands)
    _add_doctor(commands)
    return parser


def _command(commands: Commands, name: str, help_: str, run: Run, examples: str, usage: str | None = None) -> Parser:
    """Add a sub-command; `run` takes the parsed arguments and returns an exit status."""
    parser = commands.add_parser(
        name,
        help=help_,
        description=help_[0].upper() + help_[1:] + ".",
        usage=usage,
        epilog=f"example:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: Commands) -> None:
    parser = _command(
        commands,
        "train",
        "train one run; the same under torchrun, deepspeed or alone",
        _train,
        "  alasca train configs/imagefolder.toml --data.train data/clothing/train --optim.epochs 5\n"
        "  torchrun --nproc-per-node 8 launch/train.py configs/imagefolder.toml --resume auto",
        usage="alasca train CONFIG [--section.key VALUE ...] [--resume auto|PATH|none] [--max-minutes X]",
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file; pipeline/config.py lists the keys")
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="any key of the file, over it; --resume X and --max-minutes X are short for those of [run]",
    )


def _train(args: argparse.Namespace) -> int:
    if {"-h", "--help"} & set(args.overrides):
        return main(["train", "--help"])

    from pipeline.train.launcher import Launcher
    from pipeline.train.stop import Stop

    with Stop(Launcher()) as stop:  # before anything that takes long, imports among it
        try:
            from pipeline import configfile

            chosen = configfile.load(args.config, args.overrides)

            from pipeline.train.loop import train

            failures = train(chosen, stop)
        except InputError as error:
            if stop.signalled and not _speaks(error):
                return 2  # the launcher waits for this one's end already
            raise
    if failures:
        more = f" (and {len(failures) - 1:,} more)" if len(failures) > 1 else ""
        print(f"alasca: ended, but {failures[-1]}{more}", file=sys.stderr)
    return 1 if failures else 0


def _add_eval(commands: Commands) -> None:
    parser = _command(
        commands,
        "eval",
        "accuracy of a run's newest checkpoint on a dataset",
        _eval,
        "  alasca eval runs/demo/alasca-seed0 --data data/digits/test\n"
        "  alasca eval runs/half --held-out --class-errors errors.json\n"
        "  alasca eval runs/ce --data data/digits/train --noise-matrix noise.csv",
    )
    parser.add_argument("folder", metavar="RUN", help="folder of the run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--data", metavar="DIR|URL", help="dataset with the classes of the run")
    which.add_argument("--held-out", action="store_true", help="what data.subset left out of its own training data")
    parser.add_argument(
        "--class-errors", metavar="FILE", help="also write the error of each class, for method.har.class_errors"
    )
    parser.add_argument(
        "--noise-matrix",
        metavar="FILE",
        help="also write an estimate of the label noise, for method.forward.matrix: of each class's anchor, the image"
        " that is most surely of it (Patrini et al. 2017), what the run says of all classes",
    )
    parser.add_argument(
        "--anchor-percentile",
        type=float,
        default=100.0,
        metavar="P",
        help="take the image at this percentile instead of the first, against outliers (the paper: 97 with up to 10"
        " classes, else 100; %(default)g)",
    )


def _eval(args: argparse.Namespace) -> int:
    from pathlib import Path

    from pipeline.train import dist
    from pipeline.train.evaluate import open_set
    from pipeline.train.stored import StoredRun

    run = StoredRun(Path(args.folder))
    for option, file in (("--class-errors", args.class_errors), ("--noise-matrix", args.noise_matrix)):
        if file and not Path(file).absolute().parent.is_dir():
            raise InputError(f"{option} {file}: no such folder")
    if not 0 < args.anchor_percentile <= 100:
        raise InputError(f"--anchor-percentile {args.anchor_percentile:g}: must be above 0 and at most 100")
    part, cache = None, run.config.data.fetched
    if args.held_out:
        manifest, part = run.held_out()
    else:
        manifest = open_set(args.data, run.classes, "--data", cache)
    world = dist.start(run.config.dist.timeout)
    figures = run.evaluate(manifest, world, part)
    errors = run.class_errors(manifest, world, part) if args.class_errors else {}
    noise = run.noise_matrix(manifest, world, part, args.anchor_percentile) if args.noise_matrix else None
    dist.stop()
    if world.rank == 0:
        if args.class_errors:
            Path(args.class_errors).write_text(json.dumps(errors, indent=1) + "\n", encoding="utf-8")
        if noise is not None:
            text = "".join(",".join(f"{share:.9g}" for share in row) + "\n" for row in noise)
            Path(args.noise_matrix).write_text(text, encoding="utf-8")
        width = max(len(name) for name in figures)
        for name, value in figures.items():
            print(f"{name:<{width}}  {f'{value:.2%}' if '/top' in name else f'{value:g}'}")
    return 0


def _add_probe(commands: Commands) -> None:
    parser = _command(
        commands,
        "probe",
        "accuracy of linear classifiers on the frozen features of a run's stages, learnt from clean labels",
        _probe,
        "  alasca probe runs/demo/alasca-seed0 --train data/digits/train --test data/digits/test",
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


def _add_compare(commands: Commands) -> None:
    parser = _command(
        commands,
        "compare",
        "train several methods on the same batches and print one table; finished runs are reused",
        _compare,
        "  alasca compare configs/compare/demo.toml\n\n"
        "CONFIG holds: config (what the runs share), dir (where they go), [methods.NAME] (what each changes, such as\n"
        "method = { base = 'gce', aux = 'none' }), and at will ranks, seeds, baseline, reference, equal_time, target,\n"
        "select_by, title. docs/method.md has the methods and their options.",
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file naming methods and seeds")


def _compare(args: argparse.Namespace) -> int:
    from pipeline.report.compare import compare

    return compare(args.config)


def _add_doctor(commands: Commands) -> None:
    _command(
        commands,
        "doctor",
        "look at the installation, the GPUs and this machine, and say what to type where something is wrong",
        _doctor,
        "  alasca doctor\n\nNeeds no network. Exit status 1 where anything fails, else 0.",
    )


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.doctor.examine import examine

    return examine()
