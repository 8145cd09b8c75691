"""What makes two attempts the same run: a resume must agree with it."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pipeline.config import Config
from pipeline.data.selection import Selection
from pipeline.train.compose import read_class_errors
from pipeline.train.noisematrix import noise_matrix
from shards.errors import InputError
from shards.manifest import Manifest

# What may change between attempts: where things lie, how fast they are read, what is logged and when.
_FREE = {
    "data": {
        *("train", "subset", "relabel", "workers", "max_bad_fraction", "max_pixels"),
        *("cache", "cache_gb", "fetch_timeout"),
    },
    "model": {"pretrained"},
    "optim": {"max_nonfinite_steps"},
    "engine": {"bank_device", "channels_last"},
}
_LEARNING = ("data", "model", "method", "optim", "engine")

_SOME = 5  # names of classes in a message


def identity(config: Config, manifest: Manifest, selection: Selection) -> dict[str, Any]:
    """Every value that decides what is learned, by its dotted name."""
    found: dict[str, Any] = {"run.seed": config.run.seed, "model.heads": config.heads}
    method = config.method.effective
    tables = config.model_dump(mode="json") | {"method": method.model_dump(mode="json")}
    if method.har.class_errors is not None:  # what is in the file counts, not where it lies
        tables["method"]["har"]["class_errors"] = read_class_errors(method.har.class_errors, manifest)
    if (matrix := noise_matrix(config, manifest, selection)) is not None:
        tables["method"]["forward"]["matrix"] = matrix.sha256
    return (
        _learning(tables)
        | found
        | {
            "data.train (fingerprint)": manifest.fingerprint,
            "data.subset and data.relabel (fingerprint)": selection.fingerprint,
            "classes": manifest.num_classes,
        }
    )


def refuse_difference(
    then: dict[str, Any],
    now: dict[str, Any],
    where: str,
    classes: tuple[Sequence[str], Sequence[str]] = ((), ()),
    instead: str = "give another --run.name",
) -> None:
    """Compare the identity in a checkpoint with this run's; a key that came later counts as its default then.

    Args:
        then: the identity there.
        now: the identity here.
        where: that is.
        classes: their names, there and here, where they are known; an identity has their number alone.
        instead: of setting them back, what to do.

    Raises:
        InputError: they differ; every difference is named.
    """
    defaults = _learning(Config.model_validate({"data": {"train": ""}, "optim": {"epochs": 1}}).model_dump(mode="json"))
    then = defaults | then
    found = {
        name: f"{_shown(then.get(name))} there, {_shown(now.get(name))} here"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    }
    there, here = map(list, classes)
    if there != here:
        sides = (("only there", set(there) - set(here)), ("only here", set(here) - set(there)))
        words = [f"{side}: {', '.join(sorted(names)[:_SOME])}" for side, names in sides if names]
        found["classes"] = "; ".join(words) or "the same names in another order"
    if found:
        differences = ", ".join(f"{name} ({how})" for name, how in found.items())
        raise InputError(f"{where} is of another run: {differences}. Set them back, or {instead}")


def _shown(value: Any) -> Any:
    return "not given" if value is None else value


def _learning(tables: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section in _LEARNING:
        kept = {key: value for key, value in tables[section].items() if key not in _FREE.get(section, ())}
        flat |= _flat(section, kept)
    return flat


def versions() -> dict[str, str]:
    """Versions of what the figures rest on."""
    return {name: version(name) for name in ("alasca", "torch", "torchvision", "deepspeed", "numpy", "simplejpeg")}


def _flat(prefix: str, table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(f"{prefix}.{key}", value) if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return flat
