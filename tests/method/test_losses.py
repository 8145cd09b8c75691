"""Against plain numpy in float64: probabilities, one-hot targets, pow and log as the papers write them."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.method.losses import (
    BASE_LOSSES,
    cross_entropy,
    generalized_cross_entropy,
    label_smoothing,
    symmetric_cross_entropy,
)
from shards.errors import InputError


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def one_hot(y, classes):
    return np.eye(classes)[y]


def reference(name, z, y):
    p, t = softmax(z), one_hot(y, z.shape[1])
    p_y = (p * t).sum(axis=1)
    if name == "ce":
        return -np.log(p_y)
    if name == "ls":
        return -((0.9 * t + 0.1 / z.shape[1]) * np.log(p)).sum(axis=1)
    if name == "gce":
        return (1 - p_y**0.7) / 0.7
    log_t = np.where(t > 0, 0.0, -4.0)
    return -np.log(p_y) - 0.4 * (p * log_t).sum(axis=1)


def drawn(classes, batch=12, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (batch, classes)), rng.integers(0, classes, batch)


def gradient(name, z, y):
    """Central differences of the float64 reference."""
    out, h = np.zeros_like(z), 1e-6
    for k in range(z.shape[1]):
        step = np.zeros_like(z)
        step[:, k] = h
        out[:, k] = (reference(name, z + step, y) - reference(name, z - step, y)) / (2 * h)
    return out


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("name", BASE_LOSSES)
def test_values(name, classes):
    z, y = drawn(classes)
    loss = BASE_LOSSES[name](torch.tensor(z), torch.tensor(y))
    assert loss.shape == (12,)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), reference(name, z, y), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("name", BASE_LOSSES)
def test_gradients(name, classes):
    z, y = drawn(classes)
    logits = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    BASE_LOSSES[name](logits, torch.tensor(y)).sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), gradient(name, z, y), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", BASE_LOSSES)
def test_bfloat16_logits_are_computed_in_float32(name):
    z, y = drawn(10)
    half = torch.tensor(z, dtype=torch.bfloat16)
    loss = BASE_LOSSES[name](half, torch.tensor(y))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, BASE_LOSSES[name](half.float(), torch.tensor(y)))
    # bf16 keeps 8 bits: the logits, up to 10 here, are off by up to 0.03, the loss by twice that.
    np.testing.assert_allclose(loss.numpy(), reference(name, z, y), atol=0.08)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("name", BASE_LOSSES)
def test_extreme_logits(name, classes, dtype):
    z = torch.zeros(4, classes, dtype=dtype)
    z[0, 0], z[1, 1], z[2, 0], z[3] = 1e4, 1e4, -1e4, 1e4
    z[1, 0] = -1e4
    z.requires_grad_(True)
    loss = BASE_LOSSES[name](z, torch.zeros(4, dtype=torch.int64))
    assert loss.isfinite().all()
    loss.sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() <= 1.5


def test_limits_at_a_certain_and_at_an_impossible_label():
    z = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    y = torch.tensor([0, 0])
    assert cross_entropy(z, y).tolist() == [0.0, 2e4]
    assert label_smoothing(z, y).tolist() == pytest.approx([1e3, 1.9e4])  # 0.05 and 0.95 of 2e4
    assert generalized_cross_entropy(z, y).tolist() == pytest.approx([0.0, 1 / 0.7])
    assert symmetric_cross_entropy(z, y).tolist() == pytest.approx([0.0, 2e4 + 0.4 * 4])


def test_label_smoothing_is_torchs():
    z, y = torch.randn(9, 5), torch.randint(0, 5, (9,))
    for epsilon in (0.0, 0.1, 0.4, 1.0):
        wanted = F.cross_entropy(z, y, label_smoothing=epsilon, reduction="none")
        torch.testing.assert_close(label_smoothing(z, y, epsilon), wanted)


def test_generalized_cross_entropy_between_its_limits():
    z, y = torch.randn(9, 5), torch.randint(0, 5, (9,))
    torch.testing.assert_close(generalized_cross_entropy(z, y, 1e-4), cross_entropy(z, y), rtol=1e-2, atol=1e-3)
    own = z.softmax(dim=1)[torch.arange(9), y]
    torch.testing.assert_close(generalized_cross_entropy(z, y, 1.0), 1 - own)


@pytest.mark.parametrize(
    ("loss", "options", "word"),
    [
        (generalized_cross_entropy, {"q": 0.0}, "q = 0.0"),
        (generalized_cross_entropy, {"q": 1.5}, "q = 1.5"),
        (generalized_cross_entropy, {"q": float("nan")}, "q = nan"),
        (label_smoothing, {"epsilon": -0.1}, "epsilon = -0.1"),
        (symmetric_cross_entropy, {"beta": -1.0}, "beta = -1.0"),
        (symmetric_cross_entropy, {"alpha": float("nan")}, "alpha = nan"),
    ],
)
def test_options_out_of_range(loss, options, word):
    with pytest.raises(InputError, match=word):
        loss(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), **options)
