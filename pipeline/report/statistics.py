"""Means over seeds and paired differences. What one seed cannot say is left out, never made up."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """One value a seed; `std` is the sample standard deviation (n - 1), None with one seed."""

    seeds: list[int]
    values: list[float]
    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Mean over `seeds` of value minus other value; `low` and `high` bound its 95 % interval, None with one seed."""

    seeds: list[int]
    mean: float
    low: float | None
    high: float | None


def spread(by_seed: Mapping[int, float | None]) -> Spread | None:
    """Mean and standard deviation over the seeds that have a value; None where none has."""
    present = {seed: value for seed, value in sorted(by_seed.items()) if value is not None}
    values = list(present.values())
    if not values:
        return None
    return Spread(list(present), values, fmean(values), stdev(values) if len(values) > 1 else None)


def paired(own: Spread | None, other: Spread | None) -> Difference | None:
    """Difference over the seeds common to both; its interval is of the paired t test, n - 1 degrees of freedom."""
    if own is None or other is None:
        return None
    others = dict(zip(other.seeds, other.values, strict=True))
    gaps = {s: value - others[s] for s, value in zip(own.seeds, own.values, strict=True) if s in others}
    found = spread(gaps)
    if found is None:
        return None
    if found.std is None:
        return Difference(found.seeds, found.mean, None, None)
    count = len(found.seeds)
    reach = t_quantile(count - 1) * found.std / count**0.5
    return Difference(found.seeds, found.mean, found.mean - reach, found.mean + reach)


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t distribution."""
    # scikit-learn brings it; imported where needed, since it takes a while.
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return float(stdtrit(freedom, 0.975))


def ratio(own: Spread | None, other: Spread | None) -> float | None:
    """Mean over mean; None where one is missing or there is nothing to divide by."""
    return own.mean / other.mean if own is not None and other is not None and other.mean else None
