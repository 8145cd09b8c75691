"""Other losses of the heads against plain float64 numpy, values and gradients: labels, smoothed labels, a teacher."""

import numpy as np
import pytest
import torch
from references import drawn, gradient, softmax

from pipeline.method.outputs import Outputs
from pipeline.method.supervision import SelfDistillation, Supervision
from shards.errors import InputError

KINDS = {
    "deep": lambda: Supervision(),
    "smoothing": lambda: Supervision(2.0, 0.1),
    "distillation": lambda: SelfDistillation(),
    "all-distilled": lambda: SelfDistillation(alpha=1.0, temperature=0.5),
}


def outputs(main, heads, y):
    every = torch.ones(len(y), dtype=torch.bool)
    return Outputs.of(main, heads, torch.as_tensor(y), torch.arange(len(y)), every, 0)


def reference(kind, main, head, y):
    """Loss of one head; the main head is no variable of it."""
    classes, own = head.shape[1], np.eye(head.shape[1])[y]
    if kind in ("deep", "smoothing"):
        target = own if kind == "deep" else 0.9 * own + 0.1 / classes
        return -(target * np.log(softmax(head))).sum(axis=1)
    alpha, temperature = (0.3, 3.0) if kind == "distillation" else (1.0, 0.5)
    teacher, student = softmax(main / temperature), softmax(head / temperature)
    divergence = (teacher * (np.log(teacher) - np.log(student))).sum(axis=1)
    return -(1 - alpha) * (own * np.log(softmax(head))).sum(axis=1) + alpha * divergence


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients(kind, classes, dtype):
    scale = 1.0 if kind == "all-distilled" else 3.0  # numpy's probabilities may not be 0
    (z0, y), *zs = (drawn(classes, 4, scale, seed) for seed in range(3))
    main, *heads = (torch.tensor(z, dtype=dtype, requires_grad=True) for z in (z0, *(z for z, _ in zs)))
    z0, *zs = (logits.detach().double().numpy() for logits in (main, *heads))
    loss = KINDS[kind]()
    found = loss(outputs(main, heads, y))
    assert found.dtype == torch.float32
    wanted = sum(reference(kind, z0, z, y) for z in zs)
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=2e-5, atol=1e-6)
    found.sum().backward()
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-4
    for head, z in zip(heads, zs, strict=True):
        slope = gradient(lambda moved: reference(kind, z0, moved, y), z)
        np.testing.assert_allclose(head.grad.float().numpy(), slope, rtol=rounding, atol=1e-5)
    assert main.grad is None or not main.grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits(kind, classes, dtype):
    z = torch.zeros(4, classes, dtype=dtype)
    z[0, 0], z[1, 1], z[2, 0], z[3] = 1e4, 1e4, -1e4, 1e4
    z[1, 0] = -1e4
    main, head = z.flip(0).requires_grad_(True), z.requires_grad_(True)
    found = KINDS[kind]()(outputs(main, [head], np.zeros(4, dtype=np.int64)))
    assert found.isfinite().all()
    found.sum().backward()
    assert head.grad.isfinite().all()
    assert head.grad.abs().max() <= 2.0  # 1 / temperature


def test_a_head_that_says_what_the_main_head_says_has_nothing_to_learn_from_it():
    z, y = torch.randn(9, 5), torch.randint(0, 5, (9,))
    found = SelfDistillation(alpha=1.0)(outputs(z, [z.clone(), z + 7.0], y))
    torch.testing.assert_close(found, torch.zeros(9), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Supervision(-0.1), r"aux_weight = -0.1 in \[method.deep\]"),
        (lambda: Supervision(1.0, 1.5), r"epsilon = 1.5 in \[method.smoothing\]"),
        (lambda: SelfDistillation(-1.0), r"aux_weight = -1.0 in \[method.distillation\]"),
        (lambda: SelfDistillation(alpha=1.1), "alpha = 1.1"),
        (lambda: SelfDistillation(temperature=0.0), "temperature = 0.0"),
    ],
)
def test_options_out_of_range(make, words):
    with pytest.raises(InputError, match=words):
        make()
