"""What makes two attempts the same run: a resume must agree with it."""

from importlib.metadata import version
from typing import Any

from pipeline.config import Config
from shards.errors import InputError
from shards.manifest import Manifest

# What may change between attempts: where things lie, how fast they are read, what is logged and when.
_FREE = {
    "data": {"train", "workers", "max_bad_fraction", "max_pixels"},
    "model": {"pretrained"},
    "engine": {"bank_device", "channels_last"},
}
_LEARNING = ("data", "model", "method", "optim", "engine")


def identity(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Every value that decides what is learned, by its dotted name."""
    tables = config.model_dump(mode="json")
    found: dict[str, Any] = {"run.seed": config.run.seed, "model.heads": config.heads}
    for section in _LEARNING:
        kept = {key: value for key, value in tables[section].items() if key not in _FREE.get(section, ())}
        found = _flat(section, kept) | found
    return found | {"data.train (fingerprint)": manifest.fingerprint, "classes": manifest.num_classes}


def refuse_difference(then: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Compare the identity in a checkpoint with this run's.

    Raises:
        InputError: they differ; every difference is named.
    """
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if names:
        differences = ", ".join(f"{name} ({then.get(name)} there, {now.get(name)} here)" for name in names)
        raise InputError(f"{where} is of another run: {differences}. Set them back, or give another --run.name")


def versions() -> dict[str, str]:
    """Versions of what the figures rest on."""
    return {name: version(name) for name in ("alasca", "torch", "torchvision", "deepspeed", "numpy", "simplejpeg")}


def _flat(prefix: str, table: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(f"{prefix}.{key}", value) if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return flat
