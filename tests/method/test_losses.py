"""Against plain numpy in float64: probabilities, one-hot targets, pow and log as the papers write them."""

import numpy as np
import pytest
import torch
from references import drawn, gradient, softmax
from torch.nn import functional as F

from pipeline.method.losses import (
    BASE_LOSSES,
    cross_entropy,
    generalized_cross_entropy,
    label_smoothing,
    normalized_and_reverse_cross_entropy,
    symmetric_cross_entropy,
)
from shards.errors import InputError


def reference(name, z, y):
    p, t = softmax(z), np.eye(z.shape[1])[y]
    p_y = (p * t).sum(axis=1)
    reverse = -(p * np.where(t > 0, 0.0, -4.0)).sum(axis=1)
    return {
        "ce": lambda: -np.log(p_y),
        "ls": lambda: -((0.9 * t + 0.1 / z.shape[1]) * np.log(p)).sum(axis=1),
        "gce": lambda: (1 - p_y**0.7) / 0.7,
        "sce": lambda: -np.log(p_y) + 0.4 * reverse,
        "nce_rce": lambda: (t * np.log(p)).sum(axis=1) / np.log(p).sum(axis=1) + reverse,
    }[name]()


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("name", BASE_LOSSES)
def test_values(name, classes):
    z, y = drawn(classes)
    loss = BASE_LOSSES[name](torch.tensor(z), torch.tensor(y))
    assert loss.shape == (12,)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.numpy(), reference(name, z, y), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 7, 1000])
@pytest.mark.parametrize("name", BASE_LOSSES)
def test_gradients(name, classes):
    z, y = drawn(classes)
    logits = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    BASE_LOSSES[name](logits, torch.tensor(y)).sum().backward()
    wanted = gradient(lambda moved: reference(name, moved, y), z)
    np.testing.assert_allclose(logits.grad.numpy(), wanted, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", BASE_LOSSES)
def test_bfloat16_logits_are_computed_in_float32(name):
    z, y = drawn(10)
    half = torch.tensor(z, dtype=torch.bfloat16, requires_grad=True)
    loss = BASE_LOSSES[name](half, torch.tensor(y))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, BASE_LOSSES[name](half.float(), torch.tensor(y)))
    # bf16 keeps 8 bits: the logits, up to 10 here, are off by up to 0.03, the loss by twice that.
    np.testing.assert_allclose(loss.detach().numpy(), reference(name, z, y), atol=0.08)
    loss.sum().backward()
    # Of the logits as they were rounded, only the result is rounded: by half of 2^-8.
    wanted = gradient(lambda moved: reference(name, moved, y), half.detach().double().numpy())
    np.testing.assert_allclose(half.grad.float().numpy(), wanted, rtol=2**-8, atol=1e-5)


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
    # All of the surprise is at the one other class, or at the label.
    assert normalized_and_reverse_cross_entropy(z, y).tolist() == pytest.approx([0.0, 1 + 4])


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
        (normalized_and_reverse_cross_entropy, {"beta": -0.5}, r"beta = -0.5 in \[method.nce_rce\]"),
    ],
)
def test_options_out_of_range(loss, options, word):
    with pytest.raises(InputError, match=word):
        loss(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), **options)
