"""The whole configuration of a run: every section and key, its type, its range and its default. Frozen.

Those of `[method]` are in methodconfig.py.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.methodconfig import Method
from pipeline.section import Count, Fraction, NonNegative, Section
from shards.cache import Cache

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # of a run, and so of its folder


class Run(Section):
    """Where the run lives and what makes it repeatable."""

    name: Annotated[str, Field(pattern=NAME)] = "run"
    dir: str = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    resume: str = "none"  # auto | none | the path of a checkpoint
    max_steps: Count | None = None  # stop here for now, saved: to try a set-up
    max_minutes: Annotated[float, Field(gt=0)] | None = None  # of this process; then it stops, saved


class Data(Section):
    """What is read, in which order and how it is augmented."""

    train: str  # as eval.NAME.data: a folder, s3://..., http(s)://... or another fsspec URL
    lanes: Count = 8
    micro_batch: Annotated[int, Field(ge=2)] = 32  # BatchNorm needs two values per channel
    workers: Annotated[int, Field(ge=0)] = 4
    crop: Count = 224
    augment: Literal["resized_crop", "pad_crop", "none"] = "resized_crop"
    flip: bool = True
    shuffle_shards: Count = 16
    subset: float | str | None = None  # a share, a part as in "1/2", or a file of ids or keys
    relabel: str | None = None  # a CSV file: id or key, label (a class, or drop)
    balance: bool | int = False  # class-balanced epochs; a number: of so many samples
    max_bad_fraction: Fraction = 0.001
    max_pixels: Count = 178_956_970  # Pillow's own limit for a decompression bomb
    cache: str | None = None  # folder for what URLs hold (~/.cache/alasca); given, it stands before local folders too
    cache_gb: Annotated[float, Field(gt=0)] = 50.0  # 10^9 bytes, of all that is in there
    fetch_timeout: Annotated[float, Field(gt=0)] = 300.0  # seconds for one file, whoever fetches it, with all retries

    @field_validator("subset", "balance", mode="plain")
    @classmethod
    def _a_number_or_not(cls, given: Any, info: ValidationInfo) -> Any:
        """Numbers stay numbers: pydantic would take a share out of range for the name of a file."""
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if info.field_name == "balance":
            if not isinstance(given, bool) and not (isinstance(given, int) and given >= 1):
                raise ValueError("must be true, false, or a number of samples from 1")
        elif number and not 0 < given <= 1:
            raise ValueError("a share must be above 0 and at most 1; a part is '1/2', a file a path")
        elif not number and not isinstance(given, str | None):
            raise ValueError("must be a share, a part as in '1/2', or the path of a file")
        return float(given) if number and info.field_name == "subset" else given

    @property
    def fetched(self) -> Cache:
        """Where the files of datasets that lie elsewhere are kept."""
        return Cache(Path(self.cache) if self.cache else None, round(self.cache_gb * 1e9), self.fetch_timeout)


class Model(Section):
    """The network; `heads` follows the method unless named."""

    name: str = "resnet50"
    stem: Literal["imagenet", "small"] = "imagenet"
    width: Count | None = None  # channels of the first stage, of resnet10 (64) and resnet20 (16)
    heads: Literal["light", "bottleneck", "none"] | None = None
    pretrained: str = "none"  # none | a weights file | a name of torchvision's weights


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
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of an average of the weights, which is evaluated; 0 = off
    max_nonfinite_steps: Count = 3  # so many in a row, each of which changes nothing, end the run

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones go with schedule = 'multistep', and only with it")
        if any(b <= a for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(f"milestones {list(self.milestones)} must rise")
        if self.milestones and self.milestones[-1] >= self.epochs:
            raise ValueError(f"milestone {self.milestones[-1]:g} is not before the end of the {self.epochs} epochs")
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
    select_by: str | None = None  # a clean validation set: the checkpoint with its best main/top1 is kept too
    sets: dict[str, EvalSet] = Field(default_factory=dict)

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
    every_minutes: Annotated[float, Field(gt=0)] | None = None  # besides, where the last save is so long ago
    keep: Count = 2


class Track(Section):
    """`every` steps a line of figures, every `norms` steps the Jacobian's norms; wandb is a view that may fail."""

    every: Count = 20
    norms: Annotated[int, Field(ge=0)] = 100  # 0 = never; at 100 the cost stays under 1 %
    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "alasca"
    group: str | None = None
    reference: str | None = None  # folder of a run, to whose figures ours are set in relation


class Dist(Section):
    """Seconds without progress, and without a sign of life of a process, after which the run ends."""

    timeout: Annotated[float, Field(gt=0)] = 600.0
    heartbeat: Annotated[float, Field(gt=0)] = 30.0


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

    @model_validator(mode="before")
    @classmethod
    def _average_as_published(cls, raw: Any) -> Any:
        """The decay that ELR+ takes, where the file has none."""
        method, optim = (raw.get(name) for name in ("method", "optim")) if isinstance(raw, dict) else (None, None)
        if not isinstance(method, dict) or method.get("pair") != "elr+" or not isinstance(optim, dict):
            return raw
        return raw | {"optim": {"ema": 0.997} | optim}

    @model_validator(mode="after")
    def _heads_follow_method(self) -> Self:
        if self.method.aux == "none" and self.model.heads not in (None, "none"):
            raise ValueError(f"model.heads = '{self.model.heads}' would never learn with method.aux = 'none': drop one")
        if self.method.aux != "none" and self.model.heads == "none":
            raise ValueError(f"method.aux = '{self.method.aux}' needs heads: model.heads = 'light' or 'bottleneck'")
        return self

    @model_validator(mode="after")
    def _average_for_its_targets(self) -> Self:
        if self.method.pair == "elr+" and self.optim.ema == 0:
            raise ValueError("method.pair = 'elr+' learns from the EMA of the weights: drop optim.ema = 0 for 0.997")
        return self

    @model_validator(mode="after")
    def _something_follows_the_beginning(self) -> Self:
        name = {"dividemix": "warmup_epochs", "coteaching+": "initial_epochs", "decoupling": "warmup_epochs"}.get(
            self.method.pair
        )
        epochs = self.method.pair_options[name] if name else 0
        if epochs and epochs >= self.optim.epochs:
            raise ValueError(
                f"method.{self.method.pair_section}.{name} = {epochs:g} leaves none of optim.epochs ="
                f" {self.optim.epochs}: lower it"
            )
        return self

    @model_validator(mode="after")
    def _select_by_a_set(self) -> Self:
        if self.eval.select_by is not None and self.eval.select_by not in self.eval.sets:
            raise ValueError(f"eval.select_by = '{self.eval.select_by}' names none of [eval.NAME]")
        return self

    @property
    def heads(self) -> str:
        """Kind of auxiliary heads in use."""
        return self.model.heads or ("none" if self.method.aux == "none" else "light")

    @property
    def pretrained(self) -> str | None:
        """Weights to start from, if any."""
        return None if self.model.pretrained == "none" else self.model.pretrained

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
        """The resolved configuration, as a file that `configfile.load` accepts; unset keys are left out."""
        return tomli_w.dumps(self.to_tables())

    def to_tables(self) -> dict[str, Any]:
        """The same as nested tables."""
        tables = self.model_dump(mode="json", exclude_none=True)
        tables["eval"] |= tables["eval"].pop("sets")
        return tables
