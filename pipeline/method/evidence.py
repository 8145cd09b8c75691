"""What becomes of wrong labels while a network learns them, where the true ones are known."""

import torch

from pipeline.method.losses import log_probability
from pipeline.method.outputs import Outputs, Share


class Evidence:
    """Shares and means over the samples of a micro-batch whose true label is known, as sums; waits for no device.

    A label is right or wrong by the given label that is trained on. What the network says is the main head's answer to
    the augmented image, in the step that learns from it; of ELR+ that of network 1's EMA, of DivideMix network 1's,
    both to the image before it is mixed.

    Args:
        clean: true label of each sample from position `start`, integers [N] on the device of the logits; -1: unknown.
        start: position of the first.
    """

    def __init__(self, clean: torch.Tensor, start: int) -> None:
        self._clean, self._start = clean, start

    def __call__(self, outputs: Outputs, confidence: torch.Tensor | None) -> dict[str, Share]:
        """Return shares by name, below "evidence/".

        - `true_top1`: samples whose true label the network predicts; `memorised`: wrong labels that it predicts.
        - `probability_right`, `probability_wrong`: the mean probability that it gives a right, and a wrong label.
        - With the method's own `confidence` [B] in each label: `confidence_right`, `confidence_wrong`, its means. Above
          0.5 a sample is treated as clean: `precision` is how many of these have a right label, `recall` how many of
          those with a right label are among them.
        """
        truth = self._clean[outputs.positions - self._start]
        known = outputs.valid & (truth >= 0)
        right, wrong = known & (truth == outputs.target), known & (truth != outputs.target)
        predicted = outputs.main.argmax(dim=1)
        probability = log_probability(outputs.main.detach(), outputs.target).exp()
        found = {
            "true_top1": _share(predicted == truth, known),
            "memorised": _share(predicted == outputs.target, wrong),
            "probability_right": _share(probability, right),
            "probability_wrong": _share(probability, wrong),
        }
        if confidence is not None:
            kept = confidence > 0.5
            found |= {
                "confidence_right": _share(confidence, right),
                "confidence_wrong": _share(confidence, wrong),
                "precision": _share(right, known & kept),
                "recall": _share(kept, right),
            }
        return {f"evidence/{name}": share for name, share in found.items()}


def _share(values: torch.Tensor, among: torch.Tensor) -> Share:
    """Of values or yes and no [B], among some samples, bool [B]."""
    return Share(torch.where(among, values, torch.zeros_like(values)).sum(), among.sum())
