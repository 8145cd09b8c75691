"""Running statistics: one update a step with the mean over micro-batches, against numbers of their own."""

import numpy as np
import torch
from torch import nn

from pipeline.train.batchnorm import RunningStatistics
from pipeline.train.dist import World

COUNTS, SKIPPED = torch.tensor(False), torch.tensor(True)


def test_one_update_a_step_with_the_mean_over_micro_batches(world: World) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    norm = module[1]
    statistics = RunningStatistics(module)
    mean, var = np.zeros(4), np.ones(4)
    for step in range(3):
        means, variances = [], []
        for _ in range(step + 1):
            x = torch.randn(5, 3, 8, 8) * (step + 1)
            hidden = module[0](x).detach().double().numpy()
            means.append(hidden.mean(axis=(0, 2, 3)))
            variances.append(hidden.var(axis=(0, 2, 3), ddof=1))
            module(x)
            statistics.collect()
        statistics.finish_step(COUNTS)
        mean = 0.9 * mean + 0.1 * np.mean(means, axis=0)
        var = 0.9 * var + 0.1 * np.mean(variances, axis=0)
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-5, atol=1e-6)
        assert norm.num_batches_tracked == step + 1


def test_the_batch_is_normalised_as_ever(world: World) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 4)
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    RunningStatistics(ours)
    assert torch.equal(ours(x), theirs(x))


def test_loaded_statistics_are_taken_up(world: World) -> None:
    module = nn.BatchNorm1d(2)
    statistics = RunningStatistics(module)
    module.load_state_dict(
        {
            "weight": torch.ones(2),
            "bias": torch.zeros(2),
            "running_mean": torch.tensor([5.0, 7.0]),
            "running_var": torch.ones(2),
            "num_batches_tracked": torch.tensor(9),
        }
    )
    statistics.reload()
    module(torch.tensor([[1.0, 1.0], [3.0, 5.0]]))
    statistics.collect()
    statistics.finish_step(COUNTS)
    torch.testing.assert_close(module.running_mean, torch.tensor([4.7, 6.6]))
    assert module.num_batches_tracked == 10


def test_a_skipped_step_leaves_them_as_they_were(world: World) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    statistics = RunningStatistics(module)

    def step(skipped: torch.Tensor, *batches: torch.Tensor) -> dict[str, torch.Tensor]:
        for x in batches:
            module(x)
            statistics.collect()
        statistics.finish_step(skipped)
        return {name: buffer.clone() for name, buffer in module.named_buffers()}

    x = torch.randn(3, 5, 3, 8, 8)
    before = step(COUNTS, x[0])
    for bad in (x[1], x[1] * np.nan, x[1] * np.inf):
        after = step(SKIPPED, bad, x[2])
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert before["1.num_batches_tracked"] == 1
    ended = step(COUNTS, x[1], x[2])
    assert ended["1.num_batches_tracked"] == 2
    assert all(torch.isfinite(ended[name]).all() and not torch.equal(before[name], ended[name]) for name in before)
