"""Losses of the auxiliary heads that ALASCA is to be held against: other targets, the same heads."""

import torch
from torch.nn import functional as F

from pipeline.method.losses import cross_entropy, label_smoothing
from pipeline.method.outputs import Outputs
from shards.errors import InputError


class Supervision:
    """Cross entropy of every head with the given labels, as they are or smoothed alike for all samples.

    With epsilon 0 plain deep supervision: Lee, Xie, Gallagher, Zhang, Tu: Deeply-Supervised Nets, AISTATS 2015 (arXiv
    1409.5185), by softmax instead of their SVMs and with a weight that stays: the 0.3 of Szegedy et al. 2015 (arXiv
    1409.4842, section 5). With epsilon above 0 ALASCA without what adapts: its alpha is 1 - epsilon + epsilon / K then.

    Args:
        aux_weight: on each head.
        epsilon: as of `losses.label_smoothing`.

    Raises:
        InputError: a negative weight, or epsilon outside [0, 1].
    """

    def __init__(self, aux_weight: float = 0.3, epsilon: float = 0.0) -> None:
        if not aux_weight >= 0.0:
            raise InputError(f"aux_weight = {aux_weight} in [method.deep] or [method.smoothing]: must be 0 or more")
        if not 0.0 <= epsilon <= 1.0:
            raise InputError(f"epsilon = {epsilon} in [method.smoothing]: must be from 0 to 1 (default 0.1)")
        self.aux_weight, self._epsilon = aux_weight, epsilon

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return the losses of the heads."""
        each = [label_smoothing(logits, outputs.target, self._epsilon) for logits in outputs.aux]
        return torch.stack(each).sum(dim=0)


class SelfDistillation:
    """(1 - alpha) CE(head, label) + alpha KL(main || head) of every head, both softened by the temperature.

    Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher, ICCV 2019 (arXiv 1905.08094), with the defaults of its first
    author's code (repository ArchipLab-LinfengZhang/pytorch-self-distillation-final). As there, the main head learns
    nothing from the heads, and gradients are not multiplied by the square of the temperature. Left out: the paper's
    third term, a distance between feature maps (0.03 in that code, through a linear layer for each head).

    Args:
        aux_weight: on each head.
        alpha: share of the main head's answer in what a head learns.
        temperature: divides the logits of both.

    Raises:
        InputError: a negative weight, alpha outside [0, 1], or a temperature not above 0.
    """

    def __init__(self, aux_weight: float = 1.0, alpha: float = 0.3, temperature: float = 3.0) -> None:
        where = "in [method.distillation]: must be"
        if not aux_weight >= 0.0:
            raise InputError(f"aux_weight = {aux_weight} {where} 0 or more (default 1.0)")
        if not 0.0 <= alpha <= 1.0:
            raise InputError(f"alpha = {alpha} {where} from 0 to 1 (default 0.3)")
        if not temperature > 0.0:
            raise InputError(f"temperature = {temperature} {where} above 0 (default 3.0)")
        self.aux_weight, self._alpha, self._temperature = aux_weight, alpha, temperature

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return the losses of the heads."""
        teacher = self._softened(outputs.main.detach())
        total = torch.zeros(len(outputs.target), device=outputs.main.device)
        for head in outputs.aux:
            logits = head.float()  # once: the gradients of both terms are added before they are rounded to 16 bits
            student = self._softened(logits)
            divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
            total = total + (1.0 - self._alpha) * cross_entropy(logits, outputs.target) + self._alpha * divergence
        return total

    def _softened(self, logits: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(logits.float() / self._temperature, dim=1)
