"""DivideMix on one micro-batch, sample by sample in float64 numpy; what it keeps, and what does not count."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from references import Array, log_softmax, softmax

from pipeline.data.batch import Batch
from pipeline.method.alasca import Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.dividemix import DivideMix
from pipeline.method.evidence import Evidence
from pipeline.method.mixup import draw
from pipeline.method.objective import Losses, Objective
from shards.errors import InputError

BATCH, SIZE, STEPS = 6, 4, 5
PLACE = (3, 4 * STEPS, 1)  # seed, step, lane: two of the ramp's four epochs after a warm-up of two
OPTIONS: dict[str, Any] = {"warmup_epochs": 2, "ramp_epochs": 4.0}
CLEAN = np.array([[0.9, 0.2, 0.6, 0.5, 0.1, 0.99], [0.7, 0.8, 0.1, 0.4, 0.95, 0.3]])  # by each network
EVERY = torch.ones(BATCH, dtype=torch.bool)


def drawn(classes: int, scale: float = 2.0, heads: int = 0, seed: int = 0) -> tuple[Array, Array]:
    """What both networks say of mixed and of unmixed views: [2, 1 + heads, 2 * BATCH, K]."""
    rng = np.random.default_rng(seed)
    shape = (2, 1 + heads, 2 * BATCH, classes)
    return rng.normal(0, scale, shape), rng.normal(0, scale, shape)


def stacked(logits: Array, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, list[torch.Tensor]]:
    main, *heads = (torch.tensor(logits[:, head]).to(dtype) for head in range(logits.shape[1]))
    return main, heads


def batch(y: NDArray[np.int64], valid: torch.Tensor = EVERY) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, BATCH, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.tensor(y), torch.arange(BATCH), valid)


def built(teachers: Array, aux: bool = False, clean: NDArray[np.int64] | None = None, **options: Any) -> DivideMix:
    classes, objectives = teachers.shape[-1], []
    for number in range(2):
        banks = {"loss": SampleBank(0, BATCH, 1), "clean": SampleBank(0, BATCH, 1)}
        trust = None
        if aux:
            banks["alasca"] = SampleBank(0, BATCH, classes)
            trust = Trust(warmup_epochs=0, bank=banks["alasca"])
        evidence = None if clean is None or number else Evidence(torch.tensor(clean), 0)
        heads = Alasca(trust) if trust else None
        objectives.append(Objective(aux=heads, banks=banks, evidence=evidence, trust=trust))
        banks["clean"].rows.copy_(torch.tensor(CLEAN[number]).unsqueeze(1))
    return DivideMix(
        *objectives, lambda _: stacked(teachers), lambda item: [item], PLACE[0], STEPS, **OPTIONS | options
    )


def step(
    method: DivideMix, students: Array, given: Batch, dtype: torch.dtype = torch.float32, at: int = PLACE[1]
) -> tuple[torch.Tensor, Losses, list[torch.Tensor]]:
    images = method.inputs(given, at, PLACE[2])
    main, heads = stacked(students, dtype)
    leaves = [main.requires_grad_(), *(head.requires_grad_() for head in heads)]
    losses = method(main, heads, given.labels, given.positions, given.valid, 4)
    losses.total.backward()
    return images, losses, leaves


def by_hand(
    students: Array,
    teachers: Array,
    y: NDArray[np.int64],
    valid: NDArray[np.bool_],
    weight: float = 12.5,
    at: int = PLACE[1],
) -> list[dict[str, Any]]:
    """Of each network: losses, and the gradient of labelled + weight * unlabelled + prior."""
    n, classes, found = valid.sum(), students.shape[-1], []
    p = [[softmax(teachers[who, 0, v * BATCH : (v + 1) * BATCH]) for v in range(2)] for who in range(2)]
    for who in range(2):
        w = CLEAN[1 - who]
        target = []
        for i in range(BATCH):
            own = (p[who][0][i] + p[who][1][i]) / 2
            if w[i] > 0.5:
                soft = w[i] * np.eye(classes)[y[i]] + (1 - w[i]) * own
            else:
                soft = (own + (p[1 - who][0][i] + p[1 - who][1][i]) / 2) / 2
            target.append(soft**2 / (soft**2).sum())
        mix = draw(torch.tensor(np.tile(valid, 2)), 4.0, (PLACE[0], at, PLACE[2]), who)
        assert 0.5 <= mix.share < 1
        z, kinds = students[who, 0], {True: [], False: []}
        q, log_q = softmax(z), log_softmax(z)
        for row in range(2 * BATCH):
            if valid[row % BATCH]:
                kinds[bool(w[row % BATCH] > 0.5)].append(row)
        with_label, without = kinds[True], kinds[False]
        log_mean = np.logaddexp.reduce(log_q[with_label + without], axis=0) - np.log(2 * n)
        result = {"labelled": 0.0, "unlabelled": 0.0, "prior": -(np.log(classes) + log_mean).mean()}
        slope = np.zeros_like(z)
        for row in with_label + without:
            partner = int(mix.partner[row])
            t = mix.share * target[row % BATCH] + (1 - mix.share) * target[partner % BATCH]
            along = -np.exp(log_q[row] - log_mean) / classes / (2 * n)  # times q
            slope[row] = along - q[row] * along.sum()
            if row in with_label:
                result["labelled"] -= (t * log_q[row]).sum() / len(with_label)
                slope[row] += (q[row] - t) / len(with_label)
            else:
                off = q[row] - t
                result["unlabelled"] += (off**2).mean() / len(without)
                slope[row] += weight * 2 / classes / len(without) * q[row] * (off - off @ q[row])
        found.append({**result, "slope": slope * n / BATCH, "kept": len(with_label) // 2})
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("classes", "scale"), [(2, 2.0), (5, 2.0), (1000, 3.0), (2, 1e4), (1000, 1e4)])
@pytest.mark.parametrize("bad", [(), (2, 4)])
def test_value_and_gradient(classes: int, scale: float, dtype: torch.dtype, bad: tuple[int, ...]) -> None:
    students, teachers = drawn(classes, scale)
    students = torch.tensor(students).to(dtype).double().numpy()
    y = np.random.default_rng(1).integers(0, classes, BATCH)
    valid = ~np.isin(np.arange(BATCH), bad)
    _, losses, (leaf,) = step(built(teachers), students, batch(y, torch.tensor(valid)), dtype)
    each, n = by_hand(students, teachers, y, valid), valid.sum()
    total = sum(found["labelled"] + 12.5 * found["unlabelled"] + found["prior"] for found in each) * n
    assert losses.total.item() == pytest.approx(total / BATCH, rel=1e-4)
    assert losses.parts["loss/base"].item() == pytest.approx(total, rel=1e-4)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4
    wanted = np.stack([found["slope"] for found in each])
    np.testing.assert_allclose(leaf.grad.double().numpy(), wanted, rtol=tolerance, atol=tolerance / 10)
    kept = [found["kept"] for found in each]
    assert losses.shares["labelled"] == (sum(kept), 2 * n)
    for name, counts in (("labelled", kept), ("unlabelled", [n - k for k in kept]), ("prior", [n, n])):
        part, whole = losses.shares[f"loss/{name}"]
        assert whole.item() == sum(counts)
        assert part.item() == pytest.approx(sum(f[name] * k for f, k in zip(each, counts, strict=True)), rel=1e-4)


def test_each_network_sees_its_own_mix_of_both_views() -> None:
    students, teachers = drawn(5)
    valid = torch.tensor([True, True, False, True, True, False])
    given = batch(np.arange(BATCH) % 5, valid)
    images, *_ = step(built(teachers), students, given)
    assert images.shape == (2, 2 * BATCH, SIZE, SIZE, 3)
    views = torch.cat([given.images[0], given.images[1]]).double()
    mixes = [draw(valid.repeat(2), 4.0, PLACE, who) for who in range(2)]
    for mix, seen in zip(mixes, images, strict=True):
        torch.testing.assert_close(
            seen.double(), mix.share * views + (1 - mix.share) * views[mix.partner], rtol=1e-5, atol=1e-3
        )
    assert mixes[0].share != mixes[1].share


def test_the_warm_up_is_cross_entropy_of_the_first_view_and_keeps_its_loss() -> None:
    students, teachers = drawn(5)
    y, valid = np.arange(BATCH) % 5, torch.tensor([True, True, True, False, True, True])
    for penalty in (0.0, 1.0):
        method, given = built(teachers, confidence_penalty=penalty), batch(y, valid)
        assert torch.equal(method.inputs(given, 2 * STEPS - 1, 0), given.images[0])
        main = torch.tensor(students[:, 0, :BATCH], dtype=torch.float32)
        losses = method(main, [], given.labels, given.positions, given.valid, 1)
        log_p = np.log([softmax(z) for z in students[:, 0, :BATCH]])
        ce, entropy = -log_p[:, np.arange(BATCH), y], -(np.exp(log_p) * log_p).sum(axis=2)
        wanted = (ce - penalty * entropy)[:, valid.numpy()].sum()
        assert losses.total.item() == pytest.approx(wanted / BATCH, rel=1e-5)
        assert set(losses.parts) == {"loss/base", "agreement"} and not losses.shares
        for who in range(2):
            rows = method.banks[f"network{who + 1}/loss"].rows[:, 0].numpy()
            np.testing.assert_allclose(rows, np.where(valid.numpy(), ce[who], 0), rtol=1e-5)


def test_later_the_loss_kept_is_the_mean_of_both_unmixed_views() -> None:
    students, teachers = drawn(5)
    y, valid = np.arange(BATCH) % 5, torch.tensor([False, True, True, True, True, True])
    method = built(teachers)
    method.banks["network1/loss"].rows[0] = 0.75
    step(method, students, batch(y, valid))
    ce = -np.log(softmax(teachers[0, 0]))[np.arange(2 * BATCH), np.tile(y, 2)].reshape(2, BATCH).mean(axis=0)
    ce[0] = 0.75  # did not decode: what it was
    np.testing.assert_allclose(method.banks["network1/loss"].rows[:, 0].numpy(), ce, rtol=1e-5)
    method.settle(torch.tensor(True))
    assert method.banks["network1/loss"].rows[:, 0].tolist() == [0.75, 0, 0, 0, 0, 0]


def test_what_did_not_decode_adds_nothing_be_it_nan() -> None:
    students, teachers = drawn(5, heads=1)
    y, valid = np.arange(BATCH) % 5, torch.tensor([True, True, False, True, True, True])
    _, clean, leaves = step(built(teachers, aux=True), students, batch(y, valid))
    for spoilt in (students, teachers):
        spoilt[:, :, [2, BATCH + 2]] = np.nan
    y[2] = 0
    _, losses, others = step(built(teachers, aux=True), students, batch(y, valid))
    assert torch.equal(clean.total, losses.total)
    for leaf, other in zip(leaves, others, strict=True):
        assert torch.equal(leaf.grad, other.grad)
        assert not leaf.grad[:, [2, BATCH + 2]].any()


def test_in_the_first_step_after_the_warm_up_the_unlabelled_do_not_weigh_yet() -> None:
    students, teachers = drawn(5)
    y, at = np.arange(BATCH) % 5, 2 * STEPS
    images, losses, (leaf,) = step(built(teachers), students, batch(y), at=at)
    each = by_hand(students, teachers, y, EVERY.numpy(), weight=0.0, at=at)
    assert images.shape == (2, 2 * BATCH, SIZE, SIZE, 3)
    assert losses.total.item() == pytest.approx(sum(found["labelled"] + found["prior"] for found in each), rel=1e-4)
    np.testing.assert_allclose(leaf.grad.numpy(), [found["slope"] for found in each], rtol=1e-4, atol=1e-5)
    assert losses.shares["loss/unlabelled"].part > 0


def test_a_micro_batch_of_which_nothing_decoded() -> None:
    students, teachers = np.full((2, 2, 1, 2 * BATCH, 5), np.nan)
    for at in (0, PLACE[1]):
        method = built(teachers)
        given = batch(np.full(BATCH, -1), torch.zeros(BATCH, dtype=torch.bool))
        _, losses, (leaf,) = step(method, students[:, :, : BATCH if at == 0 else None], given, at=at)
        assert losses.total == 0 and losses.right == 0 and not leaf.grad.any()
        assert not any(method.banks[f"network{n}/loss"].rows.any() for n in (1, 2))
        assert all(part == 0 for part, _ in losses.shares.values())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_micro_batch_of_one_kind_is_as_good_as_another(value: float) -> None:
    students, teachers = drawn(5)
    method = built(teachers)
    for bank in ("network1/clean", "network2/clean"):
        method.banks[bank].rows.fill_(value)
    _, losses, (leaf,) = step(method, students, batch(np.arange(BATCH) % 5))
    assert torch.isfinite(losses.total) and torch.isfinite(leaf.grad).all() and leaf.grad.any()
    empty = "labelled" if value == 0 else "unlabelled"
    assert losses.shares[f"loss/{empty}"] == (0, 0)


def test_alasca_smooths_the_heads_labels_of_both_mixed_samples() -> None:
    classes, heads = 5, 2
    students, teachers = drawn(classes, heads=heads)
    y = np.arange(BATCH) % classes
    clean = (np.arange(BATCH) + (np.arange(BATCH) > 2)) % classes
    method = built(teachers, aux=True, clean=clean)
    _, losses, (_, *leaves) = step(method, students, batch(y))
    aux, confidences = 0.0, []
    for who in range(2):
        average = 0.3 * teachers[who, 0, :BATCH]
        confidence = softmax(average / 0.333)[np.arange(BATCH), y]
        confidences.append(confidence)
        soft = np.where(np.eye(classes)[y] > 0, confidence[:, None], (1 - confidence[:, None]) / (classes - 1))
        mix = draw(EVERY.repeat(2), 4.0, PLACE, who)
        target = mix.share * np.tile(soft, (2, 1)) + (1 - mix.share) * np.tile(soft, (2, 1))[mix.partner.numpy()]
        for head in range(heads):
            p = softmax(students[who, 1 + head])
            aux += -(target * np.log(p)).sum() / 2  # the mean of two views
            np.testing.assert_allclose(leaves[head].grad[who].numpy(), (p - target) / BATCH, rtol=1e-4, atol=1e-5)
        rows = method.banks[f"network{who + 1}/alasca"].rows.numpy()
        np.testing.assert_allclose(rows, average, rtol=1e-5, atol=1e-6)
    assert losses.parts["loss/aux"].item() == pytest.approx(aux, rel=1e-5)
    assert losses.parts["confidence"].item() == pytest.approx(np.sum(confidences) / 2, rel=1e-5)
    # Evidence goes by what network 2 takes for clean, since network 1 learns by that.
    kept, right = CLEAN[1] > 0.5, clean == y
    assert losses.shares["evidence/precision"] == ((kept & right).sum(), kept.sum())
    assert losses.shares["evidence/recall"] == ((kept & right).sum(), right.sum())
    part, whole = losses.shares["evidence/confidence_right"]
    assert (part.item(), whole) == (pytest.approx(CLEAN[1][right].sum()), right.sum())
    assert losses.right.item() == (teachers[0, 0, :BATCH].argmax(axis=1) == y).sum()


def test_nothing_waits_for_the_device() -> None:
    objectives = [
        Objective(banks={name: SampleBank(0, BATCH, 1, device="meta") for name in DivideMix.BANKS}) for _ in range(2)
    ]
    answers = torch.zeros(2, 2 * BATCH, 5, device="meta")
    method = DivideMix(*objectives, lambda _: (answers, []), lambda item: [item], 0, STEPS, **OPTIONS)
    given = batch(np.zeros(BATCH, dtype=np.int64))
    given = Batch(*(getattr(given, name).to("meta") for name in ("images", "labels", "positions", "valid")))
    for at, rows in ((0, BATCH), (20, 2 * BATCH)):
        method.inputs(given, at, 0)
        main = torch.zeros(2, rows, 5, device="meta", requires_grad=True)
        method(main, [], given.labels, given.positions, given.valid, 1.0).total.backward()
        method.settle(given.valid.any())
        assert main.grad is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup_epochs": 0}, "warmup_epochs = 0"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"unlabelled_weight": -1.0}, "unlabelled_weight = -1.0"),
        ({"ramp_epochs": float("nan")}, "ramp_epochs = nan"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"{words}.* in \[method.dividemix\]: must be"):
        built(drawn(5)[1], **options)
