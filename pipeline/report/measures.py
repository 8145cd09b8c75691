"""What is reported of a method: accuracies, costs, times to a target, each against another method's runs."""

from dataclasses import dataclass

from pipeline.report import fair
from pipeline.report.finished import HEADS, Run
from pipeline.report.statistics import Difference, Spread, paired, ratio, spread

COSTS = ("images_per_s", "step_seconds", "data_wait", "memory_gb", "train_seconds")


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy (0 to 1) of one head on one set; `choice` is "last" or "chosen" (by the validation set).

    Differences are to the same head, or to the main head where the other method has no such head; of the same set and
    choice, over the seeds common to both methods.
    """

    set: str
    head: str
    choice: str
    spread: Spread
    to_baseline: Difference | None
    to_reference: Difference | None


@dataclass(frozen=True)
class Cost:
    """What training took; `ratio` is to the mean of `Method.compared_to`, None where nothing is like for like."""

    name: str
    spread: Spread
    ratio: float | None


@dataclass(frozen=True)
class Reach:
    """Training seconds until an evaluation first showed the target; of the seeds that got there (None: none did)."""

    set: str
    head: str
    seeds: int
    seconds: Spread | None
    ratio: float | None


def accuracies(runs: list[Run], baseline: list[Run], reference: list[Run], sets: list[str]) -> list[Accuracy]:
    """Of every set and head that has one, against the same of the baseline and of the reference (which may be none)."""
    found = []
    for key in _keys(sets):
        for choice in ("last", "chosen"):
            own = _spread(runs, key, choice)
            if own is not None:
                gaps = (_gap(own, other, key, choice) for other in (baseline, reference))
                name, _, head = key.rpartition("/")
                found.append(Accuracy(name, head, choice, own, *gaps))
    return found


def costs(runs: list[Run], same: list[Run]) -> list[Cost]:
    """All of them; `same` are the runs they may be set in relation to."""
    return [_cost(name, runs, same) for name in COSTS]


def reaches(runs: list[Run], same: list[Run], sets: list[str]) -> list[Reach]:
    """Where a target was asked for, of every set and head; `same` as in `costs`."""
    return [reach for key in _keys(sets) if (reach := _reach(key, runs, same)) is not None]


def _spread(runs: list[Run], key: str, choice: str) -> Spread | None:
    if choice == "last":
        return spread({run.seed: run.last.get(key) for run in runs})
    return spread({run.seed: run.chosen[key].accuracy for run in runs if key in run.chosen})


def _gap(own: Spread, others: list[Run], key: str, choice: str) -> Difference | None:
    name, _, _ = key.rpartition("/")
    return paired(own, _spread(others, key, choice) or _spread(others, f"{name}/main", choice))


def _cost(name: str, runs: list[Run], same: list[Run]) -> Cost:
    own = fair.figure(runs, name)
    # A run of other length is not like for like in its length.
    comparable = same and (name != "train_seconds" or len({run.epochs for run in (*runs, *same)}) == 1)
    return Cost(name, own, ratio(own, fair.figure(same, name)) if comparable else None)


def _reach(key: str, runs: list[Run], same: list[Run]) -> Reach | None:
    """None where the target was not asked for, or nothing was evaluated."""
    if not any(key in run.reached for run in runs):
        return None
    own, other = (spread({run.seed: run.reached.get(key) for run in group}) for group in (runs, same))
    # A mean over the lucky seeds only would flatter.
    complete = own and other and len(own.seeds) == len(runs) and len(other.seeds) == len(same)
    name, _, head = key.rpartition("/")
    return Reach(name, head, len(runs), own, ratio(own, other) if complete else None)


def _keys(sets: list[str]) -> list[str]:
    return [f"{name}/{head}" for name in sets for head in HEADS]


def differences(found: dict[str, list[Run]]) -> dict[str, dict[str, str]]:
    """Configuration keys whose values differ between methods (several values of one method: joined by "or")."""
    table: dict[str, dict[str, str]] = {}
    for key in sorted({key for runs in found.values() for run in runs for key in run.config}):
        values = {}
        for method, runs in found.items():
            own = list(dict.fromkeys(run.config[key] for run in runs if key in run.config))
            if own:
                values[method] = " or ".join(own)
        if len(set(values.values())) > 1 or len(values) < len(found):
            table[key] = values
    return table
