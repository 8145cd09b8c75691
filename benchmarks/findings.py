"""What the methods are worth: trains them on CIFAR-10 images with wrong labels, by seeds, and keeps the tables."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks import cifar, commandline, machine
from benchmarks.commandline import positive
from pipeline import configfile
from shards.errors import InputError

EXAMPLE = """example:
  python -m benchmarks.findings small --images cifar10-images.zip --labels cifar10n-labels.csv
  python -m benchmarks.findings large --images cifar10-images.zip --labels CIFAR-10_human.pt --minutes 9

--images: a zip of train/CLASS/*.jpg and test/CLASS/*.jpg; --labels: CIFAR-10N's own
CIFAR-10_human.pt, or a CSV file with the columns path, clean and worst.
small: a narrow ResNet-10, 4,000 images, 2 CPU processes, some hours. large: ResNet-34, 50,000 images, one GPU.
The same command goes on where it was stopped, and only writes the tables when all is trained."""

HERE = Path("build/findings")
RECIPES = Path("benchmarks/recipes")
RESULTS = Path("benchmarks/results")
TABLE = "comparison.csv"
OF_EACH_CLASS = 400
_SECONDS_TO_SAVE = 60.0


@dataclass(frozen=True)
class Data:
    """A dataset: images of each class (None: all), whose labels, and noise that is added to them."""

    name: str
    of_each: int | None
    human: bool
    noise: str | None = None


SMALL = (Data("symmetric", OF_EACH_CLASS, human=False, noise="symmetric:0.5"), Data("worst", OF_EACH_CLASS, human=True))
LARGE = (Data("worst-all", None, human=True),)
# Recipes are compare files; each trains on what stands in it.
FINDINGS = {"small": (SMALL, ("symmetric", "worst", "others")), "large": (LARGE, ("cifar10n",))}

# A try of the script, in minutes on a CPU: its figures mean nothing.
TOY = {
    "data": {"lanes": 2, "micro_batch": 8, "workers": 0},
    "model": {"name": "resnet10", "width": 8},
    "optim": {"epochs": 2, "milestones": [1]},
    "track": {"every": 5},
    "checkpoint": {"every_steps": 5},
    "eval": {"every": 1},
}
TOY_OF_EACH = 8


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = commandline.parser("findings", __doc__, EXAMPLE)
    add = parser.add_argument
    add("finding", choices=FINDINGS)
    add("--images", type=Path, required=True, metavar="ZIP")
    add("--labels", type=Path, required=True, metavar="FILE")
    add("--minutes", type=positive, help="stop then, saved; status 1 until all is trained (default: no limit)")
    add("--toy", action="store_true", help="few images, two epochs: whether the script works")
    return parser.parse_args(given)


def prepare(images: Path, labels: Path, sets: Iterable[Data], here: Path, test_of_each: int | None = None) -> None:
    """Unpack the images, write the lists, and shard them with the commands that a user would type."""
    here.mkdir(parents=True, exist_ok=True)
    raw = cifar.unpack(images, here / "raw")
    known = cifar.read(labels, cifar.classes(raw, "train"))
    for data in sets:
        chosen = cifar.drawn(known, data.of_each)
        rows = [(i.path, i.human if data.human else i.clean, i.clean) for i in chosen]
        _shard(here, raw, data.name, rows, ["--noise", data.noise] if data.noise else [])
    _shard(here, raw, "test", cifar.rows_of_tests(raw, test_of_each), ["--split", "test"])


def _shard(here: Path, raw: Path, name: str, rows: list[tuple[str, int, int]], options: list[str]) -> None:
    wanted = here / f"{name}.csv"
    cifar.write_list(wanted, rows)
    command = [sys.executable, "-m", "pipeline", "shard", "csv", "--root", str(raw), "--list", str(wanted)]
    if subprocess.run([*command, "--out", str(here / name), *options]).returncode:
        raise InputError(f"{here / name} could not be made; see above")


def toy(recipe: Path, here: Path) -> Path:
    """Write a recipe that trains the same methods for two epochs on what lies in `here`; return its place."""
    tables = tomllib.loads(recipe.read_text(encoding="utf-8"))
    base = tomllib.loads(Path(tables["config"]).read_text(encoding="utf-8"))
    for method in tables["methods"].values():
        changed: dict[str, Any] = {"data": {"train": base["data"]["train"]}}
        configfile.merge(changed, method)
        changed["data"]["train"] = str(here / Path(changed["data"]["train"]).name)
        configfile.merge(changed, TOY)
        configfile.merge(changed, {"eval": {"test": {"data": str(here / "test")}}})
        method |= changed
    tables |= {"dir": str(here / "runs" / recipe.stem), "seeds": tables["seeds"][:1]}
    small = here / recipe.name
    small.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return small


def compare(recipe: Path, until: float | None) -> int:
    """Run `alasca compare`, interrupted when the time is up; its runs then save and go on the next time."""
    command = [sys.executable, "-m", "pipeline", "compare", str(recipe)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(None if until is None else max(1.0, until - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        # As Ctrl-C does: to all of its processes at once.
        os.killpg(process.pid, signal.SIGINT)
        return process.wait() or 1


def main(given: list[str]) -> int:
    """Run it; 1 if something is still to be trained, 2 for a user's mistake."""
    options = arguments(given)
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes - _SECONDS_TO_SAVE
    sets, recipes = FINDINGS[options.finding]
    here, results = (HERE / "toy", HERE / "toy" / "results") if options.toy else (HERE, RESULTS)
    if options.toy:
        sets = tuple(Data(data.name, TOY_OF_EACH, data.human, data.noise) for data in sets)
    print(machine.in_words(machine.facts()), flush=True)
    try:
        prepare(options.images, options.labels, sets, here, TOY_OF_EACH if options.toy else None)
    except InputError as error:
        print(f"benchmarks.findings: {error}", file=sys.stderr)
        return 2
    for name in recipes:
        recipe = RECIPES / f"{name}.toml"
        status = compare(toy(recipe, here) if options.toy else recipe, until)
        if status:
            print(f"benchmarks.findings: {name} is not done; the same command goes on", file=sys.stderr)
            return 1
        results.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(here / "runs" / name / TABLE, results / f"finding-{name}.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
