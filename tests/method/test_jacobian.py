"""The Jacobian's penalty against whole Jacobians, and the directions that it is estimated with."""

import math

import numpy as np
import pytest
import torch
from watched import CLASSES, by_hand, drawn, everyone, gradients, made

from pipeline.method.lipschitz import (
    InputJacobian,
    jacobian_penalty,
    random_directions,
)
from shards.errors import InputError


def jacobian(net, x):
    """d z_m / d x_n of the batch as a whole, [m, K, n, pixels]."""
    whole = torch.autograd.functional.jacobian(lambda x: net(x)[0], x)
    return whole.flatten(3)


def test_jacobian_penalty_against_the_whole_jacobian():
    net, (x, _) = made(), drawn(batch=3, size=4)
    j = jacobian(net, x).numpy()
    v = random_directions(0, 0, torch.arange(3), 5, CLASSES).double()
    x.requires_grad_()
    found = jacobian_penalty(net(x)[0], x, v).detach().numpy()
    for n in range(3):
        squares = []
        for p in range(5):
            squares.append(np.square(sum(v[p, m].numpy() @ j[m, :, n] for m in range(3))).sum())
        assert found[n] == pytest.approx(CLASSES / 2 * np.mean(squares), rel=1e-10)


def test_mean_over_directions_is_half_the_squared_frobenius_norm():
    net, (x, _) = made(), drawn(batch=3, size=4)
    j = jacobian(net, x).numpy()
    exact = np.square(j).sum(axis=(0, 1, 3)) / 2
    v = random_directions(7, 0, torch.arange(3), 20_000, CLASSES).double().numpy()
    estimates = CLASSES / 2 * np.square(np.einsum("pmk,mknd->pnd", v, j)).sum(axis=2)
    error = estimates.std(axis=0) / math.sqrt(20_000)
    assert (np.abs(estimates.mean(axis=0) - exact) < 4 * error).all()
    assert (error < 0.02 * exact).all()


def test_unit_vectors_give_the_exact_norm_where_nothing_couples_samples():
    net, (x, _) = made().eval(), drawn(batch=3, size=4)
    j = jacobian(net, x)
    x.requires_grad_()
    basis = torch.eye(CLASSES, dtype=torch.float64).unsqueeze(1).expand(-1, 3, -1)
    found = jacobian_penalty(net(x)[0], x, basis)
    for n in range(3):
        assert found[n].item() == pytest.approx(float(j[n, :, n].square().sum()) / 2, rel=1e-10)


def test_input_jacobian_is_the_function_with_its_own_directions():
    net, (x, y) = made(), drawn()
    penalty, places = InputJacobian(net, n_proj=3, seed=11), torch.tensor([40, 7, 8, 0, 123_456])
    found = penalty(net(x)[0], y, places, everyone(5)[1], 2)
    leaf = x.clone().requires_grad_()
    expected = jacobian_penalty(by_hand(net, leaf)[0], leaf, random_directions(11, 2, places, 3, CLASSES))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients(found.sum(), net), gradients(expected.sum(), net), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
    assert not x.requires_grad


def test_directions_belong_to_samples():
    places = torch.randperm(1000)[:64] * 2400
    whole = random_directions(5, 3, places, 2, 10)
    assert whole.shape == (2, 64, 10) and whole.dtype == torch.float32
    for parts in (1, 2, 8):
        split = [random_directions(5, 3, part, 2, 10) for part in places.chunk(parts)]
        assert torch.equal(torch.cat(split, dim=1), whole)
    order = torch.randperm(64)
    assert torch.equal(random_directions(5, 3, places[order], 2, 10), whole[:, order])
    # Pinned: other values would change every run in progress.
    pinned = random_directions(1, 2, torch.tensor([3]), 1, 4)[0, 0]
    torch.testing.assert_close(
        pinned, torch.tensor([-0.2739435, 0.2269876, 0.8991310, 0.2549412]), rtol=1e-5, atol=1e-6
    )


def test_directions_are_uniform_on_the_sphere_and_independent():
    count, k = 20_000, 5
    draws = {
        "one": random_directions(0, 0, torch.arange(count), 1, k)[0],
        "epoch": random_directions(0, 1, torch.arange(count), 1, k)[0],
        "seed": random_directions(1, 0, torch.arange(count), 1, k)[0],
        "seed, high word": random_directions(1 << 32, 0, torch.arange(count), 1, k)[0],
        "projection": random_directions(0, 0, torch.arange(count), 2, k)[1],
        "neighbour": random_directions(0, 0, torch.arange(1, count + 1), 1, k)[0],
    }
    error = 5 / math.sqrt(count)  # five deviations of a mean of values within 1
    for name, v in draws.items():
        torch.testing.assert_close(v.norm(dim=1), torch.ones(count))
        assert v.mean(dim=0).abs().max() < error, name
        assert (v.T @ v / count - torch.eye(k) / k).abs().max() < error, name
        assert (v**4).mean().item() == pytest.approx(3 / (k * (k + 2)), abs=error), name
        if name != "one":
            assert (v.T @ draws["one"] / count).abs().max() < error, name
            assert ((v * draws["one"]).sum(dim=1) > 0.999).sum() < 20, name
    # In time as well: the epochs of one sample.
    v = torch.cat([random_directions(0, epoch, torch.tensor([17]), 1, k)[0] for epoch in range(2000)])
    assert (v.T @ v / 2000 - torch.eye(k) / k).abs().max() < 5 / math.sqrt(2000)


def test_wrong_number_of_directions():
    with pytest.raises(InputError, match="n_proj = 0"):
        InputJacobian(made(), n_proj=0)
