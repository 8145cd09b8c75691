"""The whole configuration of a run: frozen, typed, from one TOML file and `--section.key VALUE` on the command line."""

import difflib
import os
import tomllib
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shards.errors import InputError

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


class Run(Section):
    """Where the run lives and what makes it repeatable."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    dir: str = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    resume: str = "none"  # auto | none | the path of a checkpoint


class Data(Section):
    """What is read, in which order and how it is augmented."""

    train: str
    lanes: Count = 8
    micro_batch: Annotated[int, Field(ge=2)] = 32  # BatchNorm needs two values per channel
    workers: Annotated[int, Field(ge=0)] = 4
    crop: Count = 224
    augment: Literal["resized_crop", "pad_crop", "none"] = "resized_crop"
    flip: bool = True
    shuffle_shards: Count = 16
    max_bad_fraction: Fraction = 0.001
    max_pixels: Count = 178_956_970  # Pillow's own limit for a decompression bomb


class Model(Section):
    """The network; `heads` follows the method unless named."""

    name: str = "resnet50"
    stem: Literal["imagenet", "small"] = "imagenet"
    heads: Literal["light", "bottleneck", "none"] | None = None
    pretrained: str | None = None


class Alasca(Section):
    """ALASCA (Ko, Yi, Yun; AAAI 2023), defaults as released; the warm-up defaults to a quarter of the run."""

    aux_weight: NonNegative = 2.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.7
    temperature: Annotated[float, Field(gt=0)] = 0.333
    warmup_epochs: NonNegative | None = None
    confidence: Literal["ema", "current"] = "ema"


class LabelSmoothing(Section):
    """Szegedy et al. 2016."""

    epsilon: Fraction = 0.1


class GeneralizedCrossEntropy(Section):
    """Zhang and Sabuncu 2018."""

    q: Annotated[float, Field(gt=0, le=1)] = 0.7


class SymmetricCrossEntropy(Section):
    """Wang et al. 2019."""

    alpha: NonNegative = 1.0
    beta: NonNegative = 0.4


class Method(Section):
    """Base loss on the main head, regulariser on the auxiliary heads."""

    base: Literal["ce", "ls", "gce", "sce"] = "ce"
    aux: Literal["none", "alasca"] = "alasca"
    alasca: Alasca = Alasca()
    ls: LabelSmoothing = LabelSmoothing()
    gce: GeneralizedCrossEntropy = GeneralizedCrossEntropy()
    sce: SymmetricCrossEntropy = SymmetricCrossEntropy()

    @property
    def base_options(self) -> dict[str, float]:
        """Keyword arguments of the base loss."""
        table = getattr(self, self.base, None)
        return table.model_dump() if table is not None else {}


class Optim(Section):
    """SGD and its schedule; every epoch count becomes steps of the plan."""

    epochs: Count
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 5e-4
    decay_norm_and_bias: bool = False
    schedule: Literal["cosine", "multistep", "constant"] = "cosine"
    milestones: tuple[NonNegative, ...] = ()  # epochs
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup_epochs: NonNegative = 0.0
    clip: NonNegative = 0.0  # gradient norm; 0 = off

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones go with schedule = 'multistep', and only with it")
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones {list(self.milestones)} must rise")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be shorter than the {self.epochs} epochs")
        return self


class Engine(Section):
    """How the arithmetic is done; `auto` is bfloat16 where the GPU has it, else float32."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    bank_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bank_device: Literal["auto", "cpu"] = "auto"  # auto: beside the model


class EvalSet(Section):
    """One named evaluation set."""

    data: str


class Eval(Section):
    """`every` epochs, and at the end, on each `[eval.NAME]`."""

    every: Count = 1
    sets: dict[str, EvalSet] = {}

    @model_validator(mode="before")
    @classmethod
    def _named_tables(cls, raw: Any) -> Any:
        """`[eval.NAME]` tables stand beside the section's own keys in the file."""
        if not isinstance(raw, dict) or "sets" in raw:
            return raw
        tables = {k: v for k, v in raw.items() if isinstance(v, dict)}
        return {k: v for k, v in raw.items() if k not in tables} | {"sets": tables}


class Checkpoint(Section):
    """When to save and how many to keep; every_steps = 0 saves at the end of each epoch."""

    every_steps: Annotated[int, Field(ge=0)] = 0
    keep: Count = 2


class Track(Section):
    """`every` steps a line of figures; wandb is a view that may fail."""

    every: Count = 20
    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "alasca"
    group: str | None = None


class Dist(Section):
    """Seconds after which a collective that hangs ends the run."""

    timeout: Annotated[float, Field(gt=0)] = 600.0


class Config(Section):
    """One run. Unchanging, so that it can be compared, stored and trusted."""

    run: Run = Run()
    data: Data
    model: Model = Model()
    method: Method = Method()
    optim: Optim
    engine: Engine = Engine()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Track()
    dist: Dist = Dist()

    @model_validator(mode="after")
    def _heads_follow_method(self) -> Self:
        if self.method.aux == "none" and self.model.heads not in (None, "none"):
            raise ValueError(f"model.heads = '{self.model.heads}' would never learn with method.aux = 'none': drop one")
        if self.method.aux != "none" and self.model.heads == "none":
            raise ValueError(
                f"method.aux = '{self.method.aux}' needs heads: set model.heads to 'light' or 'bottleneck'"
            )
        return self

    @property
    def heads(self) -> str:
        """Kind of auxiliary heads in use."""
        return self.model.heads or ("none" if self.method.aux == "none" else "light")

    @property
    def alasca_warmup_epochs(self) -> float:
        """Warm-up of the smoothing, in epochs: a quarter of the run unless given (30 of 120 as released)."""
        given = self.method.alasca.warmup_epochs
        return self.optim.epochs / 4 if given is None else given

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return Path(self.run.dir) / self.run.name

    def to_toml(self) -> str:
        """The resolved configuration, as a file that `load` accepts; unset keys are left out."""
        tables = self.model_dump(exclude_none=True)
        tables["eval"] |= tables["eval"].pop("sets")
        return tomli_w.dumps(tables)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and lay `--section.key VALUE` pairs over it.

    The run's name defaults to the name of the file.

    Raises:
        InputError: no such file, broken TOML, an unknown key (the nearest is named), a value out of range.
    """
    return parse(read_toml(path), overrides, name=Path(path).stem, where=str(path))


def parse(tables: dict[str, Any], overrides: Sequence[str] = (), *, name: str, where: str) -> Config:
    """Build a configuration from nested tables; `where` names their origin in messages."""
    overlay(tables, overrides)
    tables.setdefault("run", {}).setdefault("name", name)
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
    """Lay `--section.key VALUE` or `--section.key=VALUE` over nested tables; values are TOML, else plain strings."""
    words = list(overrides)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in key:
            raise InputError(f"unknown argument '{word}': configuration goes as --section.key VALUE")
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
        table[leaf] = _value(value)


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
    given = "" if isinstance(value, dict | BaseModel) else f" = {value!r}"
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
