"""The parts of DivideMix, values and gradients, against float64 numpy written from the paper."""

import numpy as np
import pytest
import torch
from references import Array, drawn, gradient, log_softmax, softmax

from pipeline.method.mixmatch import (
    guessed,
    labelled_loss,
    mean_probabilities,
    negative_entropy,
    prior_loss,
    ramp,
    refined,
    sharpen,
    unlabelled_loss,
)

CASES = [(2, 3.0), (10, 3.0), (1000, 3.0), (5, 60.0), (2, 1e4), (1000, 1e4)]
AMONG = np.arange(12) % 3 != 0


def leaf(z: Array, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(z).to(dtype).requires_grad_()


def targets(classes: int) -> Array:
    return softmax(np.random.default_rng(7).normal(0, 2, (12, classes)))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("classes", [2, 1000])
def test_sharpening_keeps_sums_and_brings_the_largest_forward(classes: int, temperature: float) -> None:
    p = targets(classes)
    wanted = (p / p.max(axis=1, keepdims=True)) ** (1 / temperature)
    wanted /= wanted.sum(axis=1, keepdims=True)
    found = sharpen(torch.tensor(p, dtype=torch.float32), temperature)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-3, atol=1e-6)
    certain = torch.eye(classes)[:2]
    assert torch.equal(sharpen(certain, temperature), certain)


@pytest.mark.parametrize(("classes", "scale"), CASES)
def test_targets_are_refined_by_the_other_and_guessed_by_both(classes: int, scale: float) -> None:
    z = np.random.default_rng(1).normal(0, scale, (2, 2, 12, classes))
    y, w = np.arange(12) % classes, np.linspace(0, 1, 12)
    own, other = (mean_probabilities([torch.tensor(view) for view in who]) for who in z)
    assert own.dtype == torch.float32
    p = [(softmax(views[0]) + softmax(views[1])) / 2 for views in z]
    kept = w[:, None] * np.eye(classes)[y] + (1 - w[:, None]) * p[0]
    wanted = kept**2 / (kept**2).sum(axis=1, keepdims=True)
    found = refined(own, torch.tensor(y), torch.tensor(w), 0.5)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-6)
    assert found[-1].argmax() == y[-1] and found[-1].max() == 1
    mean = (p[0] + p[1]) / 2
    wanted = mean**2 / (mean**2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(guessed(own, other, 0.5).numpy(), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("classes", "scale"), CASES)
def test_losses_and_gradients(classes: int, scale: float, dtype: torch.dtype) -> None:
    z, _ = drawn(classes, scale=scale)
    z = torch.tensor(z).to(dtype).double().numpy()
    t, p, log_p, n = targets(classes), softmax(z), log_softmax(z), AMONG.sum()
    off = p - t
    log_mean = np.logaddexp.reduce(log_p[AMONG], axis=0) - np.log(n)
    along = (
        -np.exp(np.where(AMONG[:, None], log_p - log_mean, -np.inf)) / classes / n
    )  # p times d / dp of the prior loss
    wanted = {
        labelled_loss: (-(t * log_p).sum(1)[AMONG].mean(), off / n),
        unlabelled_loss: ((off**2)[AMONG].mean(), 2 / classes / n * p * (off - (off * p).sum(1, keepdims=True))),
        prior_loss: (-np.log(classes) - log_mean.mean(), along - p * along.sum(1, keepdims=True)),
    }
    kept, given = torch.tensor(AMONG), torch.tensor(t, dtype=torch.float32)
    for loss, (value, slope) in wanted.items():
        logits = leaf(z, dtype)
        found = loss(logits, kept) if loss is prior_loss else loss(logits, given, kept)
        assert found.dtype == torch.float32 and found.shape == ()
        assert found.item() == pytest.approx(value, rel=1e-4, abs=1e-6), loss.__name__
        found.backward()
        exact = np.where(AMONG[:, None], slope, 0)
        near = {"rtol": 1e-2, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-7}
        np.testing.assert_allclose(logits.grad.double().numpy(), exact, err_msg=loss.__name__, **near)


def test_the_prior_wants_all_classes_alike() -> None:
    """Its smallest value, 0, is where the mean over samples is uniform; then samples themselves may be certain."""
    certain = torch.eye(5).repeat(2, 1) * 40
    assert prior_loss(certain, torch.ones(10, dtype=torch.bool)).item() == pytest.approx(0, abs=1e-6)
    assert prior_loss(certain, torch.arange(10) % 5 < 4).item() > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e4, 1e-4])
@pytest.mark.parametrize("classes", [2, 1000])
def test_extreme_logits_and_empty_selections_stay_finite(classes: int, scale: float, dtype: torch.dtype) -> None:
    z, _ = drawn(classes, scale=scale)
    t = torch.tensor(targets(classes), dtype=torch.float32)
    for kept in (torch.tensor(AMONG), torch.zeros(12, dtype=torch.bool)):
        logits = leaf(z, dtype)
        each = [labelled_loss(logits, t, kept), unlabelled_loss(logits, t, kept), prior_loss(logits, kept)]
        torch.stack(each).sum().backward()
        assert torch.isfinite(torch.stack(each)).all() and torch.isfinite(logits.grad).all()
        if not kept.any():
            assert [loss.item() for loss in each] == [0, 0, 0] and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("classes", "scale"), [(2, 3.0), (10, 3.0), (1000, 3.0), (2, 1e4), (1000, 1e4)])
def test_negative_entropy(classes: int, scale: float, dtype: torch.dtype) -> None:
    z, _ = drawn(classes, scale=scale)
    logits = leaf(z, dtype)
    z = logits.detach().double().numpy()
    found = negative_entropy(logits)
    found.sum().backward()
    log_p = log_softmax(z)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), (np.exp(log_p) * log_p).sum(1), rtol=1e-4, atol=1e-5)
    slope = gradient(lambda x: (softmax(x) * log_softmax(x)).sum(1), z)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-3
    np.testing.assert_allclose(logits.grad.double().numpy(), slope, rtol=rounding, atol=1e-5)


def test_the_weight_rises_after_the_warm_up() -> None:
    assert [ramp(epoch, 10, 16) for epoch in (0, 9.9, 10, 14, 26, 300)] == [0, 0, 0, 0.25, 1, 1]
    assert [ramp(epoch, 10, 0) for epoch in (10, 11)] == [1, 1]
