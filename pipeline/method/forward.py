"""Forward loss correction (Patrini, Rozza, Krishna Menon, Nock, Qu; CVPR 2017; arXiv 1609.03683)."""

import torch
from torch.nn import functional as F

from pipeline.method.outputs import Outputs


class ForwardCorrection:
    """-log of the probability of the GIVEN label, sum_i p_i T_iy, [B] in float32 (theorem 2 of the paper).

    So the softmax p is about true classes, and T makes of it what labels would say. Computed with logarithms, so that
    logits of +-1e4 give finite values and gradients.

    Args:
        matrix: T, [K, K] on the device of the logits: T_ij is the share of true class i that is labelled j. Its rows
            are divided by their sums. Every column has a positive entry: else such a label's loss would be infinite.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        matrix = matrix.double()
        # Row y: log T_iy of every true class i.
        self._log_of_label = (matrix / matrix.sum(dim=1, keepdim=True)).log().float().T.contiguous()

    def __call__(self, outputs: Outputs) -> torch.Tensor:
        """Return the losses."""
        log_p = F.log_softmax(outputs.main.float(), dim=1)
        return -torch.logsumexp(log_p + self._log_of_label[outputs.target], dim=1)
