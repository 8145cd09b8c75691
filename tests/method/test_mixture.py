"""The mixture over losses: what the authors' settings find, for any cut of the samples into ranks."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from pipeline.method.bank import SampleBank
from pipeline.method.dividemix import DivideMix
from pipeline.method.mixture import Mixture
from pipeline.method.objective import Objective


def losses_of(clean: int, wrong: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.gamma(1.5, 0.2, clean), rng.normal(3.0, 0.6, wrong).clip(0.1)])
    return rng.permutation(drawn).astype(np.float32)


@pytest.mark.parametrize(("clean", "wrong"), [(600, 400), (100, 900), (950, 50), (7, 5)])
def test_probabilities_are_those_of_the_authors_settings(clean: int, wrong: int) -> None:
    losses = losses_of(clean, wrong)
    found = Mixture.fit(losses)
    x = losses.astype(np.float64)[:, None]
    x = (x - x.min()) / (x.max() - x.min())
    theirs = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x)
    expected = theirs.predict_proba(x)[:, theirs.means_.argmin()]
    assert found.clean(losses) == pytest.approx(expected, abs=1e-5)
    # By hand, from the densities.
    densities = [
        w * np.exp(-((x[:, 0] - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
        for w, m, v in zip(found.weights, found.means, found.variances, strict=True)
    ]
    assert found.clean(losses) == pytest.approx(densities[0] / sum(densities), abs=1e-9)
    assert found.means[0] < found.means[1] and sum(found.weights) == pytest.approx(1)
    assert min(found.variances) >= 5e-4
    assert np.mean(found.clean(losses) > 0.5) == pytest.approx(clean / (clean + wrong), abs=0.1)


def test_equal_losses_give_equal_bits_and_slices_the_same_probabilities() -> None:
    losses = losses_of(3000, 2000)
    whole = Mixture.fit(losses)
    for ranks in (1, 2, 4):
        slices = np.array_split(losses, ranks)
        found = Mixture.fit(np.concatenate(slices))
        assert found == whole
        assert np.concatenate([found.clean(part) for part in slices]).tobytes() == whole.clean(losses).tobytes()


def test_losses_that_tell_nothing_apart_are_taken_for_clean() -> None:
    for losses in (np.full(9, 0.7, np.float32), np.zeros(0, np.float32)):
        assert (Mixture.fit(losses).clean(losses) == 1).all()
    far = np.array([0.0, 1e-3, 2e-3, 1e30], np.float32)
    found = Mixture.fit(far).clean(far)
    assert np.isfinite(found).all() and found[:3].min() > 0.5 > found[3]


def test_the_end_of_an_epoch_divides_the_same_for_any_number_of_ranks() -> None:
    """Samples that were never seen are unlabelled, and not in the mixture."""
    losses = losses_of(300, 180)
    losses[[5, 471]] = 0
    wanted = Mixture.fit(losses[losses > 0]).clean(losses).astype(np.float32)
    wanted[[5, 471]] = 0
    assert 0.55 < (wanted > 0.5).mean() < 0.7
    for world in (1, 2, 4):
        cuts = np.array_split(losses, world)
        found = []
        for rank, own in enumerate(cuts):
            start = rank * len(own)
            # What comes of `gather` on this rank: losses of all; then the mixture, which all of them found.
            method = divided(own, start, lambda item, cuts=cuts: cuts if isinstance(item, np.ndarray) else [item])
            method.end_epoch(1)
            assert not method.banks["network1/clean"].rows.any()
            method.end_epoch(2)
            found.append(method.banks["network1/clean"].rows[:, 0].numpy())
            assert np.array_equal(found[-1], method.banks["network2/clean"].rows[:, 0].numpy())
        assert np.concatenate(found).tobytes() == wanted.tobytes()


def divided(losses: NDArray[np.float32], start: int, gather: Any) -> DivideMix:
    objectives = []
    for _ in range(2):
        banks = {name: SampleBank(start, start + len(losses), 1) for name in DivideMix.BANKS}
        banks["loss"].rows.copy_(torch.from_numpy(losses).unsqueeze(1))
        objectives.append(Objective(banks=banks))
    return DivideMix(*objectives, lambda images: (images, []), gather, 0, 5, warmup_epochs=2)
