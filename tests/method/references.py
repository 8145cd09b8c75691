"""What the tests of losses share: logits to try, and float64 numpy to hold them against."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    """Over the last axis."""
    e: Array = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(z: Array) -> Array:
    """Over the last axis."""
    shifted: Array = z - z.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def drawn(classes: int, batch: int = 12, scale: float = 3.0, seed: int = 0) -> tuple[Array, NDArray[np.int64]]:
    """Logits and labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (batch, classes)), rng.integers(0, classes, batch)


def gradient(loss: Callable[[Array], Array], z: Array) -> Array:
    """Central differences of losses [B], each a function of its own row of logits."""
    out, h = np.zeros_like(z), 1e-6
    for k in range(z.shape[1]):
        step = np.zeros_like(z)
        step[:, k] = h
        out[:, k] = (loss(z + step) - loss(z - step)) / (2 * h)
    return out
