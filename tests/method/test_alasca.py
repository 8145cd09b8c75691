"""The rows of docs/method.md that concern one head and one label; references in float64 numpy."""

import numpy as np
import pytest
import torch
from references import log_softmax, softmax

from pipeline.method.alasca import AdaptiveSmoothing, averaged_prediction, smoothed_cross_entropy
from pipeline.method.bank import SampleBank
from shards.errors import InputError


def soft_target(y, alpha, classes):
    """Row "smoothed target", entry by entry."""
    rows = []
    for label, own in zip(y, alpha, strict=True):
        row = [(1 - own) / (classes - 1)] * classes
        row[label] = own
        rows.append(row)
    return np.array(rows)


def drawn(classes, batch=12, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (batch, classes)), rng.integers(0, classes, batch), rng.uniform(0, 1, batch)


def test_smoothed_target_by_hand():
    # p = (1/2, 1/4, 1/4), alpha = 0.6 on class 1, 0.2 on each other: 0.6 ln 4 + 0.2 ln 2 + 0.2 ln 4.
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    loss = smoothed_cross_entropy(logits, torch.tensor([1]), torch.tensor([0.6]))
    assert loss.item() == pytest.approx(0.8 * np.log(4) + 0.2 * np.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_smoothed_cross_entropy_and_its_gradient(classes, scale, dtype):
    z, y, alpha = drawn(classes, scale=scale)
    logits = torch.tensor(z).to(dtype).requires_grad_()
    z = logits.detach().double().numpy()
    confidence = torch.tensor(alpha, dtype=torch.float32, requires_grad=True)
    loss = smoothed_cross_entropy(logits, torch.tensor(y), confidence)
    target = soft_target(y, alpha, classes)
    assert loss.dtype == torch.float32
    np.testing.assert_allclose(loss.detach().numpy(), -(target * log_softmax(z)).sum(axis=1), rtol=2e-5)
    loss.sum().backward()
    rounding = 2**-8 if dtype == torch.bfloat16 else 0
    np.testing.assert_allclose(logits.grad.double().numpy(), softmax(z) - target, rtol=rounding, atol=2e-6)
    assert confidence.grad is None


def test_full_confidence_is_cross_entropy():
    z, y, _ = drawn(5)
    loss = smoothed_cross_entropy(torch.tensor(z), torch.tensor(y), torch.ones(12))
    np.testing.assert_allclose(loss.numpy(), -np.log(softmax(z)[np.arange(12), y]), rtol=1e-5)


def test_bfloat16_logits_are_computed_in_float32():
    z, y, alpha = drawn(10)
    half = torch.tensor(z, dtype=torch.bfloat16)
    loss = smoothed_cross_entropy(half, torch.tensor(y), torch.tensor(alpha))
    assert torch.equal(loss, smoothed_cross_entropy(half.float(), torch.tensor(y), torch.tensor(alpha)))
    target = soft_target(y, alpha, 10)
    np.testing.assert_allclose(loss.numpy(), -(target * np.log(softmax(z))).sum(axis=1), atol=0.08)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 1000])
def test_extreme_logits(classes, dtype):
    z = torch.zeros(3, classes, dtype=dtype)
    z[0, 0], z[1, 1], z[1, 0], z[2] = 1e4, 1e4, -1e4, -1e4
    z.requires_grad_(True)
    y = torch.zeros(3, dtype=torch.int64)
    alpha = AdaptiveSmoothing().confidence(z, y, epoch=60)
    assert alpha.tolist() == pytest.approx([1.0, 0.0, 1 / classes])
    loss = smoothed_cross_entropy(z, y, alpha)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() <= 1


def test_alpha_divides_by_the_temperature_and_stops_the_gradient():
    z, y, _ = drawn(10)
    logits = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    alpha = AdaptiveSmoothing(warmup_epochs=0).confidence(logits, torch.tensor(y), epoch=0)
    np.testing.assert_allclose(alpha.numpy(), softmax(z / 0.333)[np.arange(12), y], rtol=2e-4, atol=1e-9)
    assert not alpha.requires_grad
    assert alpha.dtype == torch.float32
    assert alpha.shape == (12,)


def test_defaults_are_the_released_ones():
    assert AdaptiveSmoothing() == AdaptiveSmoothing(momentum=0.7, temperature=0.333, warmup_epochs=30)


def test_warm_up_and_its_borders():
    z, y, _ = drawn(10)
    z, y = torch.tensor(z), torch.tensor(y)
    full = AdaptiveSmoothing(warmup_epochs=0).confidence(z, y, epoch=0).double()
    smoothing = AdaptiveSmoothing(warmup_epochs=30)
    assert torch.equal(smoothing.confidence(z, y, epoch=0), torch.ones(12))
    for epoch, share in ((1, 1 / 30), (10, 1 / 3), (29, 29 / 30)):
        wanted = share * full + (1 - share)
        torch.testing.assert_close(smoothing.confidence(z, y, epoch).double(), wanted, rtol=1e-6, atol=1e-7)
    for epoch in (30, 31, 500):
        assert torch.equal(smoothing.confidence(z, y, epoch).double(), full)


def test_with_the_bank_over_three_visits():
    # Row "EMA_i": EMA of the logits, from zeros, updated before it is read; then row "alpha".
    visits = [np.array([[2.0, -1.0, 0.5]]), np.array([[-4.0, 3.0, 0.0]]), np.array([[1.0, 1.0, 1.0]])]
    y, bank, smoothing = torch.tensor([1]), SampleBank(7, 8, 3), AdaptiveSmoothing(warmup_epochs=0)
    average = np.zeros((1, 3))
    for z in visits:
        average = 0.7 * average + 0.3 * z
        rows = bank.update(torch.tensor([7]), torch.tensor(z), smoothing.momentum)
        alpha = smoothing.confidence(rows, y, epoch=0)
        np.testing.assert_allclose(alpha.numpy(), softmax(average / 0.333)[:, 1], rtol=1e-4)


def test_clothing1m_variant():
    z, y, _ = drawn(14)
    smoothing = AdaptiveSmoothing.current()
    assert smoothing.warmup_epochs == 3
    alpha = smoothing.confidence(torch.tensor(z), torch.tensor(y), epoch=3)
    np.testing.assert_allclose(alpha.numpy(), softmax(z)[np.arange(12), y], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"momentum": -0.1}, "momentum = -0.1"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"warmup_epochs": -1}, "warmup_epochs = -1"),
    ],
)
def test_settings_out_of_range(values, word):
    with pytest.raises(InputError, match=word):
        AdaptiveSmoothing(**values)


def test_prediction_is_the_mean_of_main_and_last():
    main, first, last = (torch.full((2, 3), value) for value in (1.0, 100.0, 4.0))
    assert torch.equal(averaged_prediction(main, [first, last]), torch.full((2, 3), 2.5))
    assert torch.equal(averaged_prediction(main, []), main)
    assert averaged_prediction(main.bfloat16(), [last.bfloat16()]).dtype == torch.float32
