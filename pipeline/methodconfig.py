"""The `[method]` section: losses, regularisers and penalties, each with its options and published defaults."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.section import Count, Fraction, NonNegative, Section


class Alasca(Section):
    """ALASCA (Ko, Yi, Yun; AAAI 2023), defaults as released; the warm-up defaults to a quarter of the run.

    All but `aux_weight` is also what base = "adaptive" goes by.
    """

    aux_weight: NonNegative = 2.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.7
    temperature: Annotated[float, Field(gt=0)] = 0.333
    warmup_epochs: NonNegative | None = None
    confidence: Literal["ema", "averaged", "current"] = "ema"


class DeepSupervision(Section):
    """Lee et al. 2015, with the weight of Szegedy et al. 2015."""

    aux_weight: NonNegative = 0.3


class SmoothedSupervision(Section):
    """ALASCA with the same smoothing for all samples: its weight, epsilon of Szegedy et al. 2016."""

    aux_weight: NonNegative = 2.0
    epsilon: Fraction = 0.1


class SelfDistillation(Section):
    """Zhang et al. 2019, defaults as released."""

    aux_weight: NonNegative = 1.0
    alpha: Fraction = 0.3
    temperature: Annotated[float, Field(gt=0)] = 3.0


class LabelSmoothing(Section):
    """Szegedy et al. 2016."""

    epsilon: Fraction = 0.1


class GeneralizedCrossEntropy(Section):
    """Zhang and Sabuncu 2018."""

    q: Annotated[float, Field(gt=0, le=1)] = 0.7


class SymmetricCrossEntropy(Section):
    """Wang et al. 2019; the numbers are those of ALASCA's released code."""

    alpha: NonNegative = 1.0
    beta: NonNegative = 0.4


class NormalizedAndReverse(Section):
    """Ma et al. 2020, as for CIFAR-10; with 100 classes they take 10 and 0.1."""

    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0


class ForwardCorrection(Section):
    """Patrini et al. 2017; `matrix` is a file of K rows, or "known": counted from the dataset's clean labels."""

    matrix: str | None = None


class EarlyLearning(Section):
    """Liu et al. 2020, as for CIFAR-10 with symmetric noise (100 classes: 0.9 and 7). `weight` is their lambda."""

    beta: Annotated[float, Field(ge=0, lt=1)] = 0.7
    weight: NonNegative = 3.0


class Decoupling(Section):
    """Malach and Shalev-Shwartz 2017; before `warmup_epochs`, both networks learn from everything."""

    warmup_epochs: NonNegative = 0.0


class CoTeaching(Section):
    """Han et al. 2018; `forget_rate` (tau) is the noise rate, counted from clean labels unless given."""

    forget_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    ramp_epochs: NonNegative = 10.0  # T_k


class CoTeachingPlus(Section):
    """Yu et al. 2019, as for CIFAR-10; `forget_rate` as of CoTeaching."""

    forget_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    ramp_epochs: NonNegative = 10.0  # E_k
    initial_epochs: NonNegative = 20.0  # of plain co-teaching; theirs 5 for CIFAR-100, 100 for Tiny-ImageNet


class ElrPlus(Section):
    """Liu et al. 2020, appendix; beta and lambda are those of `elr`, `optim.ema` (0.997) is the weight EMA's decay."""

    mixup_alpha: Annotated[float, Field(gt=0)] = 1.0
    ramp_epochs: NonNegative = 0.0  # over which lambda rises; theirs 102 for CIFAR-100 (40,000 steps of 128)


class DivideMix(Section):
    """Li, Socher and Hoi 2020, as for CIFAR-10; on CIFAR-100 they warm up for 30 epochs.

    Their code for Clothing1M and WebVision has 1 epoch of warm-up, alpha 0.5 and unlabelled_weight 0.
    """

    warmup_epochs: Count = 10
    confidence_penalty: NonNegative = 0.0  # in the warm-up; theirs 1 where noise is asymmetric, and on Clothing1M
    alpha: Annotated[float, Field(gt=0)] = 4.0
    temperature: Annotated[float, Field(gt=0)] = 0.5
    unlabelled_weight: NonNegative = 25.0  # lambda_u
    ramp_epochs: NonNegative = 16.0  # over which that weight rises from 0, after the warm-up


class HiddenGradients(Section):
    """HAR (Cao et al. 2021); the mean of `class_errors`, files of `alasca eval`, gives its weights by class."""

    class_errors: tuple[str, ...] | None = None

    @field_validator("class_errors", mode="before")
    @classmethod
    def _one_is_enough(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given


class InputJacobian(Section):
    """Hoffman, Roberts and Yaida 2019."""

    n_proj: Count = 1


# Published defaults: HAR's 0.1 on gradients of a mean over 128 samples, ours on those of a sum; the Jacobian's 0.01.
_PENALTY_WEIGHTS = {"none": 0.0, "har": 0.1 / 128, "jacobian": 0.01}


class Method(Section):
    """Base loss on the main head, regulariser on the auxiliary heads; a penalty on the network, or a pair of them."""

    base: Literal["ce", "adaptive", "ls", "gce", "sce", "nce_rce", "forward", "elr"] = "ce"
    aux: Literal["none", "alasca", "deep", "smoothing", "distillation"] = "alasca"
    pair: Literal["none", "decoupling", "coteaching", "coteaching+", "elr+", "dividemix"] = "none"
    penalty: Literal["none", "har", "jacobian"] = "none"
    penalty_weight: NonNegative | None = None  # of the penalty's paper, unless given
    alasca: Alasca = Alasca()
    deep: DeepSupervision = DeepSupervision()
    smoothing: SmoothedSupervision = SmoothedSupervision()
    distillation: SelfDistillation = SelfDistillation()
    ls: LabelSmoothing = LabelSmoothing()
    gce: GeneralizedCrossEntropy = GeneralizedCrossEntropy()
    sce: SymmetricCrossEntropy = SymmetricCrossEntropy()
    nce_rce: NormalizedAndReverse = NormalizedAndReverse()
    forward: ForwardCorrection = ForwardCorrection()
    elr: EarlyLearning = EarlyLearning()
    decoupling: Decoupling = Decoupling()
    coteaching: CoTeaching = CoTeaching()
    coteaching_plus: CoTeachingPlus = CoTeachingPlus()
    elr_plus: ElrPlus = ElrPlus()
    dividemix: DivideMix = DivideMix()
    har: HiddenGradients = HiddenGradients()
    jacobian: InputJacobian = InputJacobian()

    @model_validator(mode="after")
    def _weight_needs_a_penalty(self) -> Self:
        if self.penalty == "none" and self.penalty_weight is not None:
            raise ValueError("penalty_weight needs penalty = 'har' or 'jacobian'")
        return self

    @model_validator(mode="after")
    def _correction_needs_a_matrix(self) -> Self:
        if self.base == "forward" and self.forward.matrix is None:
            raise ValueError("base = 'forward' needs forward.matrix: a file of K rows of K numbers, or 'known'")
        return self

    @model_validator(mode="after")
    def _average_needs_heads(self) -> Self:
        if self.trusts and self.alasca.confidence == "averaged" and self.aux == "none":
            raise ValueError("alasca.confidence = 'averaged' is of the heads and needs an aux; without one take 'ema'")
        return self

    @model_validator(mode="after")
    def _penalty_of_one_network(self) -> Self:
        if self.pair != "none" and self.penalty != "none":
            raise ValueError(f"penalty = '{self.penalty}' is for one network: drop it, or pair = '{self.pair}'")
        return self

    @model_validator(mode="after")
    def _one_base_loss(self) -> Self:
        if self.pair == "elr+" and self.base not in ("ce", "elr"):
            raise ValueError(
                f"pair = 'elr+' has a base loss of its own, that of [method.elr]: drop base = '{self.base}'"
            )
        if self.pair == "dividemix" and self.base != "ce":
            raise ValueError(f"pair = 'dividemix' has base losses of its own: drop base = '{self.base}'")
        return self

    @property
    def effective(self) -> Self:
        """The same method, with the options that it does not go by at their defaults."""
        used = {self.base, self.aux, self.pair_section, self.penalty}
        used |= {"alasca"} if self.trusts else set()
        used |= {"elr"} if self.pair == "elr+" else set()
        idle = {name: type(table)() for name, table in self if isinstance(table, Section) and name not in used}
        if self.trusts:
            unused = ["momentum", "temperature"] if self.alasca.confidence == "current" else []
            unused += ["aux_weight"] if self.aux != "alasca" else []
            defaults = {key: getattr(Alasca(), key) for key in unused}
            idle["alasca"] = self.alasca.model_copy(update=defaults)
        return self.model_copy(update=idle)

    @property
    def idle(self) -> dict[str, Any]:
        """What was given and is not gone by: values by dotted name, below `method`."""
        effective = self.effective
        return {
            f"{name}.{key}": value
            for name, table in self
            if isinstance(table, Section)
            for key, value in table
            if value != getattr(getattr(effective, name), key)
        }

    @property
    def views(self) -> int:
        """How many random views of each image it takes."""
        return 2 if self.pair == "dividemix" else 1

    @property
    def networks(self) -> int:
        """How many are trained."""
        return 1 if self.pair == "none" else 2

    @property
    def pair_section(self) -> str:
        """Name of the table with the pair's options."""
        return self.pair.replace("+", "_plus")

    @property
    def pair_options(self) -> dict[str, Any]:
        """They themselves; empty without a pair."""
        return {} if self.pair == "none" else getattr(self, self.pair_section).model_dump()

    @property
    def weight_of_penalty(self) -> float:
        """Factor on the penalty's mean over the micro-batch."""
        return _PENALTY_WEIGHTS[self.penalty] if self.penalty_weight is None else self.penalty_weight

    @property
    def trusts(self) -> bool:
        """Whether labels are trusted more or less: what `alasca` says beside `aux_weight` is of this."""
        return self.aux == "alasca" or self.base == "adaptive"

    @property
    def banks(self) -> tuple[str, ...]:
        """What the method keeps per sample, by name, of each network; each is K numbers."""
        kept = {
            "alasca": self.trusts and self.alasca.confidence != "current",
            "elr": self.base == "elr" or self.pair == "elr+",
        }
        return tuple(name for name, keeps in kept.items() if keeps)

    @property
    def base_options(self) -> dict[str, float]:
        """Keyword arguments of the base loss."""
        table = getattr(self, self.base, None)
        return table.model_dump() if table is not None else {}
