"""ELR against plain float64 numpy: the loss from the paper's formula, the targets sample by sample over epochs."""

import numpy as np
import pytest
import torch
from references import drawn, gradient, softmax

from pipeline.method.bank import SampleBank
from pipeline.method.elr import EarlyLearning
from pipeline.method.outputs import Outputs
from shards.errors import InputError


def outputs(z, y, positions, valid=None):
    positions = torch.as_tensor(positions)
    every = torch.ones(len(positions), dtype=torch.bool)
    return Outputs.of(z, (), torch.as_tensor(y), positions, every if valid is None else torch.as_tensor(valid), 0)


def clamped(z):
    return np.clip(softmax(z), 1e-4, 1 - 1e-4)


def reference(z, y, targets, weight=3.0):
    """Losses for given targets, which are no function of z."""
    p_y = softmax(z)[np.arange(len(y)), y]
    return -np.log(p_y) + weight * np.log(1 - (targets * clamped(z)).sum(axis=1))


def next_targets(targets, z, beta=0.7):
    p = clamped(z)
    return beta * targets + (1 - beta) * p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(classes, dtype):
    (before, _), (z, y) = drawn(classes, seed=1), drawn(classes)
    logits = torch.tensor(z, dtype=dtype, requires_grad=True)
    earlier, z = torch.tensor(before, dtype=dtype), logits.detach().double().numpy()
    loss = EarlyLearning(SampleBank(100, 112, classes))
    places = np.arange(100, 112)
    loss(outputs(earlier, y, places))
    found = loss(outputs(logits, y, places))
    targets = next_targets(next_targets(0.0, earlier.double().numpy()), z)
    assert found.dtype == torch.float32 and found.shape == (12,)
    np.testing.assert_allclose(found.detach().numpy(), reference(z, y, targets), rtol=2e-5, atol=2e-5)
    found.sum().backward()
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-4
    wanted = gradient(lambda moved: reference(moved, y, targets), z)
    np.testing.assert_allclose(logits.grad.float().numpy(), wanted, rtol=rounding, atol=1e-5)


def test_the_gradient_is_that_of_the_papers_lemma():
    # Inside the clamp: p - y, and lambda g with g_k = p_k / (1 - <t, p>) * sum over j of (t_j - t_k) p_j.
    z, y = drawn(6, scale=1.0)
    (earlier, _), logits = drawn(6, scale=1.0, seed=2), torch.tensor(z, dtype=torch.float32, requires_grad=True)
    loss = EarlyLearning(SampleBank(0, 12, 6), beta=0.9, weight=7.0)
    loss(outputs(torch.tensor(earlier), y, np.arange(12)))
    loss(outputs(logits, y, np.arange(12))).sum().backward()
    t, p = next_targets(next_targets(0.0, earlier, 0.9), z, 0.9), softmax(z)
    agreement = (t * p).sum(axis=1, keepdims=True)
    g = p / (1 - agreement) * (agreement - t * p.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(logits.grad.numpy(), p - np.eye(6)[y] + 7.0 * g, rtol=1e-4, atol=1e-6)
    # Where network and target agree, it pushes on where cross-entropy has nothing left to say.
    assert (g[np.arange(12), p.argmax(axis=1)] < 0).sum() > 6


def test_targets_are_a_plain_recomputation_over_epochs():
    """Other micro-batches in every epoch, samples that do not decode, a step that is taken back."""
    samples, classes, rng = 30, 4, np.random.default_rng(3)
    bank = SampleBank(50, 50 + samples, classes)
    loss, wanted = EarlyLearning(bank), np.zeros((samples, classes))
    for epoch in range(5):
        order, logits = rng.permutation(samples), rng.normal(0, 3 + epoch, (samples, classes))
        for step in range(3):
            valid, skipped = rng.random(samples) > 0.2, (epoch, step) == (2, 1)
            for micro_batch in np.split(order[10 * step : 10 * step + 10], 2):
                z = torch.tensor(logits[micro_batch], dtype=torch.float32)
                z[~torch.tensor(valid[micro_batch])] = float("nan")
                found = loss(outputs(z, np.zeros(5, dtype=np.int64), micro_batch + 50, valid[micro_batch]))
                for i, sample in enumerate(micro_batch):
                    if valid[sample]:
                        target = next_targets(wanted[sample : sample + 1], logits[sample : sample + 1])
                        p = reference(logits[sample : sample + 1], [0], target)
                        np.testing.assert_allclose(found[i].item(), p[0], rtol=1e-4, atol=1e-4)
                        if not skipped:
                            wanted[sample] = target[0]
            bank.settle(torch.tensor(skipped))
    np.testing.assert_allclose(bank.rows.numpy(), wanted, atol=1e-6)
    assert (np.abs(wanted.sum(axis=1) - 1) < 0.7**2).sum() > 20  # most were seen more than once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 1000])
def test_extreme_logits_however_often_they_are_seen(classes, stored, dtype):
    z = torch.zeros(4, classes, dtype=dtype)
    z[0, 0], z[1, 1], z[2, 0], z[3] = 1e4, 1e4, -1e4, 1e4
    z[1, 0] = -1e4
    z.requires_grad_(True)
    loss = EarlyLearning(SampleBank(0, 4, classes, dtype=stored))
    for _ in range(40):
        z.grad = None
        found = loss(outputs(z, np.zeros(4, dtype=np.int64), np.arange(4)))
        assert found.isfinite().all()
        found.sum().backward()
        assert z.grad.isfinite().all()
        assert z.grad.abs().max() <= 1 + 3


@pytest.mark.parametrize(
    ("options", "words"),
    [({"beta": 1.0}, r"beta = 1.0 in \[method.elr\]"), ({"weight": -1.0}, r"weight = -1.0 in \[method.elr\]")],
)
def test_options_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        EarlyLearning(SampleBank(0, 1, 3), **options)
