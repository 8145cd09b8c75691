"""How evenly classes are spread over lanes, and when that is worth a warning."""

import itertools

import numpy as np
import pytest

from shards.mix import Mix


def test_the_figures_of_a_small_case() -> None:
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 1], dtype=np.int32)  # lanes 000 1, 10 11 of 4 each
    mix = Mix.of(labels, 3, lanes=2)
    assert (mix.lanes, mix.lane) == (2, 0)
    assert mix.distance == pytest.approx(0.25)
    assert (mix.label, mix.in_lane, mix.in_whole) == (0, 0.75, 0.5)


def test_chance_is_the_mean_over_all_shuffles() -> None:
    """4 of 8 samples are of class 0: a lane of 4 holds k of them in C(4, k)^2 of 70 ways."""
    expected = sum(ways * abs(k / 4 - 0.5) for k, ways in enumerate((1, 16, 36, 16, 1))) / 70
    exact = [
        abs(sum(chosen) / 4 - 0.5) for chosen in itertools.combinations([0, 0, 0, 0, 1, 1, 1, 1], 4)
    ]  # the other lane is as far away
    assert np.mean(exact) == pytest.approx(expected)
    labels = np.array([0, 1] * 4)
    found = Mix.of(labels, 2, lanes=2).chance
    spread = np.std(exact) / np.sqrt(50)
    assert found == pytest.approx(expected, abs=4 * spread)
    assert found == Mix.of(labels[::-1], 2, lanes=2).chance


@pytest.mark.parametrize(("samples", "classes"), [(64, 10), (1_437, 10), (50_000, 1_000), (300_000, 5_000)])
def test_sorted_samples_are_told_and_shuffled_ones_are_not(samples: int, classes: int) -> None:
    labels = np.random.default_rng(0).integers(0, classes, samples)
    mix = Mix.of(labels, classes)
    assert not mix.bad
    assert mix.distance == pytest.approx(mix.chance, rel=0.2)
    assert Mix.of(np.sort(labels), classes).bad
    # Sorted within tars, whose classes are all there: as bad as sorted, since lanes are parts of tars.
    tars = np.concatenate([np.sort(part) for part in np.array_split(labels, 4)])
    assert samples < 100 or Mix.of(tars, classes).bad
    if samples > 10_000:  # in a hundred tars the same is no harm
        many = np.concatenate([np.sort(part) for part in np.array_split(labels, 100)])
        assert not Mix.of(many, classes).bad


def test_no_fair_shuffle_warns() -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        classes, samples = int(rng.integers(1, 40)), int(rng.integers(1, 2_000))
        shares = rng.dirichlet(np.full(classes, 0.3))  # some classes are rare
        assert not Mix.of(rng.choice(classes, samples, p=shares), classes).bad, seed


def test_it_says_lane_figures_and_class() -> None:
    mix = Mix.of(np.repeat(np.arange(4), 200), 4)
    assert mix.line().startswith(
        "of 8 lanes, the classes of the worst differ from the whole by 75.0% (a fair shuffle: "
    )
    text = mix.warning(["ant", "bee", "cat", "dog"])
    assert "lane 0 has other classes than the whole in 75.0% of its samples" in text
    assert "100.0% of it are 'ant', 25.0% of the whole" in text
