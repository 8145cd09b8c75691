"""How far a label is trusted, by the main head or by the average of heads, and the main head's loss that goes by it."""

import gc
import weakref

import numpy as np
import pytest
import torch
from references import gradient, log_softmax, softmax

from pipeline.method.alasca import AdaptiveBase, Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.objective import Objective
from pipeline.method.outputs import Outputs
from shards.errors import InputError

BATCH, HEADS = 6, 3
EVERY = torch.ones(BATCH, dtype=torch.bool)
PLACES = torch.arange(BATCH)


def drawn(classes=5, scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (1 + HEADS, BATCH, classes)), rng.integers(0, classes, BATCH)


def outputs(z, y, epoch=9.0, dtype=torch.float32):
    main, *aux = (torch.tensor(each, dtype=dtype) for each in z)
    return Outputs.of(main, aux, torch.tensor(y), PLACES, EVERY, epoch)


def trust(classes, confidence="ema", warmup=4):
    return Trust(warmup_epochs=warmup, confidence=confidence, bank=SampleBank(0, BATCH, classes))


def alpha(average, y, ramp=1.0):
    """In float64, from the averaged logits."""
    return ramp * softmax(average / 0.333)[np.arange(len(y)), y] + 1 - ramp


@pytest.mark.parametrize(("epoch", "ramp"), [(0.0, 0.0), (1.0, 0.25), (4.0, 1.0), (9.0, 1.0)])
@pytest.mark.parametrize("confidence", ["ema", "averaged"])
def test_two_observations_by_hand(confidence, epoch, ramp):
    own = trust(5, confidence)
    (first, y), (second, _) = drawn(), drawn(seed=1)
    seen = [z[0] if confidence == "ema" else (z[0] + z[-1]) / 2 for z in (first, second)]
    own(outputs(first, y, epoch))
    average = 0.7 * (0.3 * seen[0]) + 0.3 * seen[1]
    found = own(outputs(second, y, epoch))
    np.testing.assert_allclose(found.numpy(), alpha(average, y, ramp), rtol=1e-5, atol=1e-6)


def test_several_losses_move_the_average_once():
    own, (z, y) = trust(5), drawn()
    objective = Objective(AdaptiveBase(own), Alasca(own), trust=own)
    main, *aux = (torch.tensor(each, dtype=torch.float32) for each in z)
    objective(main, aux, torch.tensor(y), PLACES, EVERY, 9)
    torch.testing.assert_close(own._bank.rows, 0.3 * main)
    objective(main, aux, torch.tensor(y), PLACES, EVERY, 9)  # the same numbers anew are another observation
    torch.testing.assert_close(own._bank.rows, 0.51 * main)


def test_it_does_not_keep_the_graph_of_a_micro_batch():
    own, (z, y) = trust(5), drawn()
    seen = outputs(z, y)
    own(seen)
    gone = weakref.ref(seen)
    del seen
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("classes", "scale"), [(2, 2.0), (5, 2.0), (1000, 3.0), (5, 60.0), (2, 1e4), (1000, 1e4)])
def test_the_main_heads_loss_and_gradient(classes, scale, dtype):
    z, y = drawn(classes, scale)
    z = torch.tensor(z).to(dtype).double().numpy()
    share = alpha(0.3 * z[0], y)[:, None]
    own = np.eye(classes)[y]
    target = np.where(own > 0, share, (1 - share) / (classes - 1))

    def wanted(main):
        return -(target * log_softmax(main)).sum(axis=1)

    leaf = torch.tensor(z[0]).to(dtype).requires_grad_(True)
    seen = Outputs.of(leaf, [torch.tensor(each).to(dtype) for each in z[1:]], torch.tensor(y), PLACES, EVERY, 9.0)
    found = AdaptiveBase(trust(classes))(seen)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().numpy(), wanted(z[0]), rtol=2e-5, atol=2e-5)
    found.sum().backward()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    np.testing.assert_allclose(leaf.grad.double().numpy(), softmax(z[0]) - target, rtol=tolerance, atol=tolerance)
    if classes == 5 and scale == 2.0 and dtype == torch.float32:  # and by differences
        np.testing.assert_allclose(leaf.grad.numpy(), gradient(wanted, z[0]), rtol=1e-3, atol=1e-4)


def test_the_first_epoch_is_plain_cross_entropy():
    z, y = drawn()
    seen = outputs(z, y, epoch=0.0)
    plain = torch.nn.functional.cross_entropy(seen.main, seen.target, reduction="none")
    torch.testing.assert_close(AdaptiveBase(trust(5))(seen), plain)


def test_a_wrong_name_is_answered():
    with pytest.raises(InputError, match=r'confidence = "main".*ema, averaged, current'):
        Trust(confidence="main")
