"""What the command lines of the benchmarks share."""

import argparse


def parser(name: str, description: str | None, example: str) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.NAME`, which prints `example` as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> int:
    """Read a number from 1; raises ArgumentTypeError where it is less."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be 1 or more")
    return value
