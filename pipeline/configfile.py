"""A TOML file and `--section.key VALUE` words -> a configuration, or one line that says what is wrong with them."""

import difflib
import os
import sys
import tomllib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config import Config, EvalSet
from pipeline.section import Section
from shards.errors import InputError
from shards.url import public, redact

_SHORT = ("resume", "max-minutes")


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and lay `--section.key VALUE` pairs over it.

    The run's name defaults to the name of the file.

    Raises:
        InputError: no such file, broken TOML, an unknown key (the nearest is named), a value out of range.
    """
    return parse(read_toml(path), overrides, name=Path(path).stem, where=str(path))


def store(path: Path, config: Config) -> None:
    """Write a resolved configuration, whole or not at all; where a URL in it holds a secret, for this user alone.

    Raises:
        InputError: it cannot be written.
    """
    tables = config.model_dump(mode="json")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        mode = 0o666 if public(tables) == tables else 0o600
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(config.to_toml())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def parse(tables: dict[str, Any], overrides: Sequence[str] = (), *, name: str, where: str) -> Config:
    """Build a configuration from nested tables; `where` names their origin in messages."""
    overlay(tables, overrides)
    if isinstance(run := tables.setdefault("run", {}), dict):
        run.setdefault("name", name)
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, Config)}") from None


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Tables of a TOML file.

    Raises:
        InputError: no such file, or broken TOML (with its line and column).
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None


def merge(tables: dict[str, Any], over: dict[str, Any]) -> None:
    """Lay nested tables over others, in place."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tables.get(key), dict):
            merge(tables[key], value)
        else:
            tables[key] = value


def overlay(tables: dict[str, Any], overrides: Sequence[str]) -> None:
    """Lay `--section.key VALUE` or `--section.key=VALUE` over nested tables; values are TOML, else plain strings.

    `--resume` and `--max-minutes` are short for keys of `[run]`.
    """
    words = list(overrides)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if key in _SHORT:
            key = f"run.{key}"
        if not word.startswith("--") or "." not in key:
            raise InputError(f"unknown argument '{redact(word)}': configuration goes as --section.key VALUE")
        if not equals:
            if not words:
                raise InputError(f"--{key} has no value: write --{key} VALUE")
            value = words.pop(0)
        *path, leaf = key.replace("-", "_").split(".") if not key.startswith("eval.") else key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise InputError(f"--{key}: '{part}' is a value, not a table")
        table[leaf] = value if _takes_text(path, leaf) else _value(value)


def _takes_text(path: list[str], leaf: str) -> bool:
    """Whether a key is a plain string, so that a run may be called 2024-01-01 or 1e5."""
    field = _fields(path, Config).get(leaf)
    return field is not None and _section_of(field.annotation) is str


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def explain(error: ValidationError, model: type[Section]) -> str:
    """All that is wrong with a file, in one line."""
    return "; ".join(_clause(detail, model) for detail in error.errors())


def _clause(error: Any, model: type[Section]) -> str:
    *path, leaf = [str(part) for part in error["loc"]] or [""]
    dotted = ".".join([*(p for p in path if p != "sets"), leaf])
    if error["type"] == "extra_forbidden":
        known = list(_fields(path, model))
        near = difflib.get_close_matches(leaf, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"unknown key '{dotted}'; {hint}"
    if error["type"] == "missing":
        return f"'{dotted}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    given = "" if isinstance(value, dict | BaseModel) else f" = {redact(repr(value))}"
    return f"{dotted}{given}: {message}" if dotted else message


def _fields(path: list[str], model: Any) -> dict[str, Any]:
    """Fields of the section that a pydantic location leads to, from the file's own model."""
    for part in path:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return EvalSet.model_fields if "sets" in path else {}
        model = _section_of(field.annotation)
    return model.model_fields if hasattr(model, "model_fields") else {}


def _section_of(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((a for a in get_args(annotation) if isinstance(a, type)), None)
    return annotation


if __name__ == "__main__":  # the scripts in launch/ ask where the run is going to be
    try:
        print(load(sys.argv[1], sys.argv[2:]).folder)
    except InputError as error:
        print(f"alasca: {error}", file=sys.stderr)
        sys.exit(2)
