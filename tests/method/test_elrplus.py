"""ELR+ against float64 numpy: what each network learns from, and what the other one's average teaches it."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from references import Array, log_softmax, softmax

from pipeline.data.batch import Batch
from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.elr import EarlyLearning
from pipeline.method.elrplus import ElrPlus, ramp
from pipeline.method.evidence import Evidence
from pipeline.method.mixup import draw
from pipeline.method.objective import Objective
from shards.errors import InputError

BATCH, SIZE = 6, 2
PLACES = torch.arange(BATCH)
PLACE = (3, 11, 4)  # seed, step, lane


def clamped(p: Array) -> Array:
    return np.clip(p, 1e-4, 1 - 1e-4)


def drawn(classes: int, scale: float, heads: int = 0, seed: int = 0) -> tuple[Array, Array]:
    """Logits of both networks for mixed images, and of both averages for unmixed ones: [2, 1 + heads, B, K]."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (2, 1 + heads, BATCH, classes)), rng.normal(0, scale, (2, 1 + heads, BATCH, classes))


def batch(y: NDArray[np.int64], valid: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(y), PLACES, valid)


def stacked(
    logits: Array, dtype: torch.dtype = torch.float32, grad: bool = False
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """As a pair gives them."""
    main, *heads = (torch.tensor(logits[:, head]).to(dtype).requires_grad_(grad) for head in range(logits.shape[1]))
    return main, heads


def built(teachers: Array, classes: int, weight: float = 3.0, **options: Any) -> ElrPlus:
    banks = [{"elr": SampleBank(0, BATCH, classes)} for _ in range(2)]
    objectives = [Objective(banks=each) for each in banks]
    elr = [EarlyLearning(each["elr"], weight=weight) for each in banks]
    return ElrPlus(*objectives, elr, lambda _: stacked(teachers), PLACE[0], **options)


def step(method: ElrPlus, students: Array, given: Batch, dtype: torch.dtype = torch.float32, epoch: float = 2.0) -> Any:
    images = method.inputs(given, *PLACE[1:])
    main, heads = stacked(students, dtype, grad=True)
    losses = method(main, heads, given.labels, given.positions, given.valid, epoch)
    losses.total.backward()
    return images, losses, [main, *heads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("classes", "scale"), [(2, 2.0), (5, 2.0), (1000, 3.0), (5, 60.0), (2, 1e4), (1000, 1e4)])
def test_value_and_gradient(classes: int, scale: float, dtype: torch.dtype) -> None:
    students, teachers = drawn(classes, scale)
    students = torch.tensor(students).to(dtype).double().numpy()
    y = np.random.default_rng(1).integers(0, classes, BATCH)
    valid = torch.tensor([True, True, False, True, True, True])
    method = built(teachers, classes)
    _, losses, (leaf, *_) = step(method, students, batch(y, valid), dtype)
    total, gradient = 0.0, np.zeros((2, BATCH, classes))
    for number in range(2):
        mix = draw(valid, 1.0, PLACE, number)
        seen = softmax(teachers[1 - number, 0])
        t = 0.3 * seen / seen.sum(axis=1, keepdims=True)
        for i in np.flatnonzero(valid.numpy()):
            j, share = int(mix.partner[i]), mix.share
            q = share * t[i] + (1 - share) * t[j]
            label = share * np.eye(classes)[y[i]] + (1 - share) * np.eye(classes)[y[j]]
            log_p = log_softmax(students[number, 0, i])
            p, kept = clamped(np.exp(log_p)), (np.exp(log_p) > 1e-4) & (np.exp(log_p) < 1 - 1e-4)
            total += -(label * log_p).sum() + 3 * np.log(1 - q @ p)
            along = -3 / (1 - q @ p) * q * kept  # d / dp, then through the softmax
            gradient[number, i] = np.exp(log_p) - label + np.exp(log_p) * (along - (along * np.exp(log_p)).sum())
    assert losses.total.item() == pytest.approx(total / BATCH, rel=1e-4, abs=1e-4)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-4
    np.testing.assert_allclose(leaf.grad.double().numpy(), gradient / BATCH, rtol=tolerance, atol=tolerance)
    assert losses.parts["loss/base"].item() == pytest.approx(total, rel=1e-4, abs=1e-3)


def test_targets_move_with_the_other_networks_average_and_only_of_valid_samples() -> None:
    students, teachers = drawn(5, 2.0)
    valid = torch.tensor([True, False, True, True, True, True])
    method, y = built(teachers, 5), np.arange(BATCH) % 5
    for _ in range(2):
        step(method, students, batch(y, valid))
    for number in range(2):
        seen = softmax(teachers[1 - number, 0])
        wanted = (0.3 + 0.7 * 0.3) * seen / seen.sum(axis=1, keepdims=True)
        wanted[1] = 0
        np.testing.assert_allclose(method.banks[f"network{number + 1}/elr"].rows.numpy(), wanted, rtol=1e-5, atol=1e-7)


def test_each_network_sees_its_own_mix_of_what_decoded() -> None:
    students, teachers = drawn(5, 2.0)
    valid = torch.tensor([True, True, False, True, True, False])
    given = batch(np.arange(BATCH) % 5, valid)
    images, *_ = step(built(teachers, 5), students, given)
    assert images.shape == (2, BATCH, SIZE, SIZE, 3)
    for number in range(2):
        mix = draw(valid, 1.0, PLACE, number)
        values = given.images.double()
        torch.testing.assert_close(images[number].double(), mix.share * values + (1 - mix.share) * values[mix.partner])


def test_what_did_not_decode_adds_nothing_be_it_nan() -> None:
    students, teachers = drawn(5, 2.0)
    valid = torch.tensor([True, True, False, True, True, True])
    y = np.arange(BATCH) % 5
    _, clean, leaves = step(built(teachers, 5), students, batch(y, valid))
    students[:, :, 2], teachers[:, :, 2], y[2] = np.nan, np.nan, 0
    _, spoilt, others = step(built(teachers, 5), students, batch(y, valid))
    assert torch.equal(clean.total, spoilt.total)
    for leaf, other in zip(leaves, others, strict=True):
        assert torch.equal(leaf.grad, other.grad)
        assert not leaf.grad[:, 2].any()


def test_a_micro_batch_of_which_nothing_decoded() -> None:
    students, teachers = np.full((2, 2, 1, BATCH, 5), np.nan)
    method = built(teachers, 5)
    _, losses, (leaf,) = step(method, students, batch(np.full(BATCH, -1), torch.zeros(BATCH, dtype=torch.bool)))
    assert losses.total == 0 and losses.right == 0 and not leaf.grad.any()
    assert not any(bank.rows.any() for bank in method.banks.values())


def test_alasca_smooths_both_labels_by_what_the_average_says_of_the_unmixed_images() -> None:
    classes, heads = 5, 3
    students, teachers = drawn(classes, 2.0, heads)
    y, every = np.arange(BATCH) % classes, torch.ones(BATCH, dtype=torch.bool)
    clean = torch.tensor((np.arange(BATCH) + (np.arange(BATCH) > 2)) % classes, dtype=torch.int32)
    objectives, elr = [], []
    for number in range(2):
        banks = {name: SampleBank(0, BATCH, classes) for name in ("elr", "alasca")}
        trust = Trust(warmup_epochs=0, bank=banks["alasca"])
        evidence = Evidence(clean, 0) if number == 0 else None
        objectives.append(Objective(aux=Alasca(trust), banks=banks, evidence=evidence, trust=trust))
        elr.append(EarlyLearning(banks["elr"]))
    method = ElrPlus(*objectives, elr, lambda _: stacked(teachers), PLACE[0])
    _, losses, (_, *leaves) = step(method, students, batch(y, every))
    aux, confidences = 0.0, []
    for number in range(2):
        mix = draw(every, 1.0, PLACE, number)
        average = 0.3 * teachers[number, 0]
        confidence = softmax(average / 0.333)[np.arange(BATCH), y]
        confidences.append(confidence)
        target = np.where(np.eye(classes)[y] > 0, confidence[:, None], (1 - confidence[:, None]) / (classes - 1))
        target = mix.share * target + (1 - mix.share) * target[mix.partner.numpy()]
        for head in range(heads):
            p = softmax(students[number, 1 + head])
            aux += -(target * np.log(p)).sum()
            np.testing.assert_allclose(
                leaves[head].grad[number].numpy(), 2 * (p - target) / BATCH, rtol=1e-4, atol=1e-5
            )
        rows = method.banks[f"network{number + 1}/alasca"].rows.numpy()
        np.testing.assert_allclose(rows, average, rtol=1e-5, atol=1e-6)
    assert losses.parts["loss/aux"].item() == pytest.approx(aux, rel=1e-5)
    assert losses.parts["confidence"].item() == pytest.approx(np.sum(confidences) / 2, rel=1e-5)
    answers = teachers[0, 0].argmax(axis=1)
    assert losses.right.item() == (answers == y).sum()
    part, whole = losses.shares["evidence/true_top1"]
    assert (part.item(), whole.item()) == ((answers == clean.numpy()).sum(), BATCH)
    part, _ = losses.shares["evidence/confidence_right"]
    assert part.item() == pytest.approx(confidences[0][clean.numpy() == y].sum(), rel=1e-5)


def test_nothing_waits_for_the_device() -> None:
    banks = [{"elr": SampleBank(0, BATCH, 5, device="meta")} for _ in range(2)]
    answers = torch.zeros(2, BATCH, 5, device="meta")
    method = ElrPlus(
        *(Objective(banks=b) for b in banks), [EarlyLearning(b["elr"]) for b in banks], lambda _: (answers, []), 0
    )
    given = batch(np.zeros(BATCH, dtype=np.int64), torch.ones(BATCH, dtype=torch.bool))
    given = Batch(*(getattr(given, name).to("meta") for name in ("images", "labels", "positions", "valid")))
    method.inputs(given, 0, 0)
    main = torch.zeros(2, BATCH, 5, device="meta", requires_grad=True)
    method(main, [], given.labels, given.positions, given.valid, 1.0).total.backward()
    method.settle(given.valid.any())
    assert main.grad is not None


@pytest.mark.parametrize(
    ("epoch", "epochs", "factor"),
    [
        *((0, 0, 1), (5, 0, 1), (0, 8, 0.006737946999085467), (2, 8, 0.06005466789530794)),
        *((4, 8, 0.2865047968601901), (7.5, 8, 0.980658249139539), (8, 8, 1), (9, 8, 1)),
    ],
)
def test_the_weight_of_the_targets_rises_and_nothing_else_does(epoch: float, epochs: float, factor: float) -> None:
    assert ramp(epoch, epochs) == pytest.approx(factor, rel=1e-12)
    students, teachers = drawn(5, 2.0)
    given = batch(np.arange(BATCH) % 5, torch.ones(BATCH, dtype=torch.bool))
    full, none = built(teachers, 5), built(teachers, 5, weight=0.0)
    found = built(teachers, 5, ramp_epochs=epochs)
    losses = [step(each, students, given, epoch=epoch) for each in (found, full, none)]
    value, whole, plain = (each.total.item() for _, each, _ in losses)
    assert value == pytest.approx(plain + factor * (whole - plain), rel=1e-6)
    gradient, whole, plain = (leaf.grad for *_, (leaf, *_) in losses)
    torch.testing.assert_close(gradient, plain + factor * (whole - plain), rtol=1e-5, atol=1e-7)


def test_a_ramp_is_no_shorter_than_nothing() -> None:
    with pytest.raises(InputError, match=r"ramp_epochs = -1 in \[method.elr_plus\]"):
        built(drawn(5, 1.0)[1], 5, ramp_epochs=-1)


def test_a_share_needs_a_distribution() -> None:
    with pytest.raises(InputError, match=r"mixup_alpha = 0.0 in \[method.elr_plus\]"):
        built(drawn(5, 1.0)[1], 5, mixup_alpha=0.0)
