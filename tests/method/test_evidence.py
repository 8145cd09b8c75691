"""Evidence on labels, counted one sample at a time."""

import numpy as np
import pytest
import torch
from references import softmax

from pipeline.method.alasca import Alasca, Trust
from pipeline.method.evidence import Evidence
from pipeline.method.objective import Objective
from pipeline.method.outputs import Outputs

BATCH, CLASSES, START = 40, 4, 100


def drawn():
    """Logits, given and true labels (some unknown), validity, confidence."""
    rng = np.random.default_rng(5)
    z, given = rng.normal(0, 2, (BATCH, CLASSES)), rng.integers(0, CLASSES, BATCH)
    clean = np.where(rng.random(BATCH) < 0.6, given, rng.integers(0, CLASSES, BATCH))
    clean = np.where(rng.random(BATCH) < 0.2, -1, clean)
    return z, given, clean, rng.random(BATCH) > 0.15, rng.random(BATCH)


def test_shares_are_those_that_a_person_would_count():
    z, given, clean, valid, confidence = drawn()
    places = np.random.default_rng(6).permutation(BATCH)
    table = np.empty(BATCH, dtype=np.int32)
    table[places] = clean
    logits = torch.tensor(z, dtype=torch.float32)
    logits[torch.tensor(~valid)] = float("nan")
    outputs = Outputs.of(logits, (), torch.tensor(given), torch.tensor(places + START), torch.tensor(valid), 0)
    trust = torch.tensor(confidence, dtype=torch.float32)
    found = Evidence(torch.tensor(table), START)(outputs, trust)

    known = [n for n in range(BATCH) if valid[n] and clean[n] >= 0]
    right, wrong = [n for n in known if clean[n] == given[n]], [n for n in known if clean[n] != given[n]]
    kept = [n for n in known if confidence[n] > 0.5]
    said, p = z.argmax(axis=1), softmax(z)[np.arange(BATCH), given]
    assert min(len(right), len(wrong), len(kept)) > 5 and len(known) < valid.sum()
    wanted = {
        "true_top1": (sum(said[n] == clean[n] for n in known), known),
        "memorised": (sum(said[n] == given[n] for n in wrong), wrong),
        "probability_right": (sum(p[n] for n in right), right),
        "probability_wrong": (sum(p[n] for n in wrong), wrong),
        "confidence_right": (sum(confidence[n] for n in right), right),
        "confidence_wrong": (sum(confidence[n] for n in wrong), wrong),
        "precision": (len({*right} & {*kept}), kept),
        "recall": (len({*right} & {*kept}), right),
    }
    assert found.keys() == {f"evidence/{name}" for name in wanted}
    for name, (part, whole) in wanted.items():
        share = found[f"evidence/{name}"]
        assert share.part.item() == pytest.approx(part, rel=1e-5), name
        assert share.whole.item() == len(whole), name
        assert not share.part.requires_grad
    assert found.keys() - Evidence(torch.tensor(table), START)(outputs, None).keys() == {
        f"evidence/{name}" for name in ("confidence_right", "confidence_wrong", "precision", "recall")
    }


def test_it_rides_with_the_losses_and_changes_none_of_them():
    z, given, clean, valid, _ = drawn()
    inputs = [torch.tensor(given), torch.arange(BATCH), torch.tensor(valid)]
    totals = []
    for evidence in (None, Evidence(torch.tensor(clean), 0)):
        main, head = (torch.tensor(z, dtype=torch.float32, requires_grad=True) for _ in range(2))
        trust = Trust(confidence="current", warmup_epochs=0)
        objective = Objective(aux=Alasca(trust), evidence=evidence, trust=trust)
        losses = objective(main, [head], *inputs, 3)
        losses.total.backward()
        totals.append((losses.total.item(), main.grad.sum().item(), head.grad.sum().item(), losses.parts["confidence"]))
        assert len(losses.shares) == (8 if evidence else 0)
    assert totals[0] == totals[1]
    # The confidence is ALASCA's: its sums over right and wrong labels are all of it, but for labels not known.
    shares = [losses.shares[f"evidence/confidence_{kind}"] for kind in ("right", "wrong")]
    p = softmax(z)[np.arange(BATCH), given]
    assert sum(s.part.item() for s in shares) == pytest.approx(p[valid & (clean >= 0)].sum(), rel=1e-5)


def test_it_waits_for_no_device():
    places, valid = torch.arange(BATCH, device="meta"), torch.ones(BATCH, dtype=torch.bool, device="meta")
    outputs = Outputs(torch.zeros(BATCH, CLASSES, device="meta"), (), places, places, valid, 0)
    table = torch.zeros(BATCH, dtype=torch.int32, device="meta")
    assert len(Evidence(table, 0)(outputs, torch.ones(BATCH, device="meta"))) == 8
