"""Forward correction against plain float64 numpy: -log((T^t p)_y)."""

import numpy as np
import pytest
import torch
from references import drawn, gradient, softmax
from torch.nn import functional as F

from pipeline.method.forward import ForwardCorrection
from pipeline.method.outputs import Outputs


def matrix(classes, kind):
    if kind == "pair":  # mostly zeros
        return 0.6 * np.eye(classes) + 0.4 * np.roll(np.eye(classes), 1, axis=1)
    return np.random.default_rng(4).dirichlet(np.full(classes, 0.3), classes) * 0.5 + 0.5 * np.eye(classes)


def corrected(t, z, y):
    every = torch.ones(len(y), dtype=torch.bool)
    outputs = Outputs.of(z, (), torch.as_tensor(y), torch.arange(len(y)), every, 0)
    return ForwardCorrection(torch.tensor(t))(outputs)


def reference(t, z, y):
    return -np.log((softmax(z) @ t)[np.arange(len(y)), y])


@pytest.mark.parametrize("kind", ["pair", "dense"])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(classes, kind, dtype):
    z, y = drawn(classes, 4)
    t, logits = matrix(classes, kind), torch.tensor(z, dtype=dtype, requires_grad=True)
    z = logits.detach().double().numpy()
    loss = corrected(t, logits, y)
    assert loss.dtype == torch.float32 and loss.shape == (4,)
    np.testing.assert_allclose(loss.detach().numpy(), reference(t, z, y), rtol=2e-5, atol=1e-6)
    loss.sum().backward()
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-4
    wanted = gradient(lambda moved: reference(t, moved, y), z)
    np.testing.assert_allclose(logits.grad.float().numpy(), wanted, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("kind", ["pair", "dense"])
@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(classes, kind, dtype):
    z = torch.zeros(4, classes, dtype=dtype)
    z[0, 0], z[1, 1], z[2, 0], z[3] = 1e4, 1e4, -1e4, 1e4
    z[1, 0] = -1e4
    z.requires_grad_(True)
    loss = corrected(matrix(classes, kind), z, np.zeros(4, dtype=np.int64))
    assert loss.isfinite().all()
    # The network is sure of a class that is labelled 0 in six cases of ten.
    if kind == "pair":
        assert loss[0].item() == pytest.approx(-np.log(0.6), abs=1e-6)
    loss.sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() <= 1.0


def test_without_noise_it_is_cross_entropy_and_rows_need_not_sum_to_one():
    z, y = torch.randn(9, 5), torch.randint(0, 5, (9,))
    torch.testing.assert_close(corrected(0.3 * np.eye(5), z, y), F.cross_entropy(z, y, reduction="none"))


def test_its_minimum_is_at_the_true_classes():
    """Theorem 2: labels drawn by T are explained best by the true posterior, not by that of the labels."""
    t, p = matrix(3, "pair"), np.array([[0.8, 0.15, 0.05]])
    of_labels = (p @ t)[0]
    z = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = (torch.tensor(of_labels) * corrected(t, z.expand(3, 3), np.arange(3))).sum()
        total.backward()
        return total

    optimizer.step(closure)
    np.testing.assert_allclose(z.detach().softmax(dim=1).numpy(), p, atol=2e-3)
