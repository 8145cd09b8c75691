"""Which runs may be compared in speed: like for like, or each method at its best, never a mixture unlabelled."""

from typing import Any

from pipeline.report.finished import Run
from pipeline.report.statistics import Spread, spread

# What decides speed besides the method; the number of heads belongs to the method.
_SETTINGS = ("data.", "engine.", "model.name", "model.stem", "model.width")
_METHOD = ("method.", "model.heads")


def figure(runs: list[Run], name: str) -> Spread:
    """A cost over seeds; every run has every cost."""
    found = spread({run.seed: getattr(run, name) for run in runs})
    assert found is not None, "a method without runs"
    return found


def unlike(runs: list[Run], others: list[Run]) -> list[str]:
    """Settings in which not all of these runs agree: data, network, precision, processes, device, versions."""
    every = [_settings(run) for run in (*runs, *others)]
    names = sorted({name for settings in every for name in settings})
    return [name for name in names if any(settings.get(name) != every[0].get(name) for settings in every)]


def kin(name: str, found: dict[str, list[Run]]) -> list[str]:
    """The method, then those that are the same method under other settings."""
    own = _part(found[name][0], _METHOD)
    return [name, *(other for other, runs in found.items() if other != name and _part(runs[0], _METHOD) == own)]


def like(name: str, reference: str, found: dict[str, list[Run]]) -> str | None:
    """The reference, or its kin with the settings of method `name`; None if there is no such run."""
    return next((other for other in kin(reference, found) if not unlike(found[name], found[other])), None)


def fastest(name: str, found: dict[str, list[Run]]) -> str:
    """Of the method and its kin, the one with most images/s."""
    return max(kin(name, found), key=lambda other: figure(found[other], "images_per_s").mean)


def _settings(run: Run) -> dict[str, Any]:
    versions = {f"version of {name}": value for name, value in run.versions.items()}
    return _part(run, _SETTINGS) | {"processes": run.world, "device": run.device} | versions


def _part(run: Run, prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key.startswith(prefixes)}
