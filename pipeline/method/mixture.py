"""How likely a label is right, by its loss: two Gaussians over the losses of all samples."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float32]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians over losses that were brought to [0, 1], the one with the smaller mean first.

    `low` and `high` are the smallest and the largest loss; `weights`, `means` and `variances` are those of the
    Gaussians, after that. With `low` = `high` nothing tells samples apart, and all are taken for clean.
    """

    low: float = 0.0
    high: float = 0.0
    weights: tuple[float, float] = (1.0, 0.0)
    means: tuple[float, float] = (0.0, 1.0)
    variances: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def fit(cls, losses: Losses) -> "Mixture":
        """Fit it to losses [N], all finite.

        Li, Socher and Hoi 2020 (arXiv 2002.07394, section 3.1), with the settings of the authors' code: at most 10
        iterations, tolerance 1e-2, 5e-4 added to the variances. In one thread and from fixed random numbers, so that
        equal losses give equal bits.
        """
        if losses.size == 0 or losses.min() == losses.max():
            at = float(losses.max(initial=0.0))
            return cls(at, at)
        # They take a while to import.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        low, high = float(losses.min()), float(losses.max())
        found = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0)
        with threadpool_limits(limits=1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are all that is asked for
            found.fit(_between(losses, low, high)[:, None])
        order = np.argsort(found.means_[:, 0], kind="stable")
        parts = (found.weights_[order], found.means_[order, 0], found.covariances_[order, 0, 0])
        first, second, third = (tuple(part.tolist()) for part in parts)
        return cls(low, high, first, second, third)

    def clean(self, losses: Losses) -> Probabilities:
        """Return the probability, float64 [N], that each loss [N] is of the Gaussian with the smaller mean."""
        if self.low == self.high:
            return np.ones(losses.shape)
        x = _between(losses, self.low, self.high)
        logs = [
            np.log(weight) - 0.5 * np.log(variance) - (x - mean) ** 2 / (2 * variance)
            for weight, mean, variance in zip(self.weights, self.means, self.variances, strict=True)
        ]
        return np.exp(logs[0] - np.logaddexp(*logs))


def _between(losses: Losses, low: float, high: float) -> NDArray[np.float64]:
    return (losses.astype(np.float64) - low) / (high - low)
