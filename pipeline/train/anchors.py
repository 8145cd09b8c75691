"""The anchor-point estimate of a noise matrix, from what a network trained on noisy labels says of a set."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.train import dist
from pipeline.train.evaluate import Answers
from shards.errors import InputError

_TOGETHER = 4096  # images that are ranked at a time, or more


class _Ranked(NamedTuple):
    """Highest probabilities of each class, [N, K] descending, and the ids they are of."""

    values: torch.Tensor
    ids: torch.Tensor

    def best(self, count: int) -> "_Ranked":
        """Of equals, those that stand first."""
        order = self.values.argsort(dim=0, descending=True, stable=True)[:count]
        return _Ranked(self.values.gather(0, order), self.ids.gather(0, order))

    @staticmethod
    def joined(parts: "list[_Ranked]") -> "_Ranked":
        return _Ranked(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


@torch.inference_mode()
def anchors(answers: Answers, percentile: float = 100.0) -> NDArray[np.int64]:
    """For each class, the image that stands for it: its id, int64 [K], the same on every rank.

    Patrini et al. 2017 (arXiv 1609.03683): the image with the highest probability of the class (100), or,
    as outliers would count most, the one at a percentile of all images (they take 97 with up to 10 classes, and 100 on
    CIFAR-100). Undecodable images are not among them; of equals it is the one of the lowest id. All ranks call this
    together.

    Raises:
        InputError: no image decodes.
    """
    kept = int(len(answers) * (100.0 - percentile) / 100.0) + 1
    classes, images = answers.manifest.num_classes, 0
    ranked = [_Ranked(torch.empty(0, classes), torch.empty(0, classes, dtype=torch.int64))]
    for batch, main, _ in answers:
        probabilities, ids = main.softmax(dim=1)[batch.valid].cpu(), batch.positions[batch.valid].cpu()
        ranked.append(_Ranked(probabilities, ids.unsqueeze(1).expand(-1, classes)))
        images += len(ids)
        if sum(len(part.values) for part in ranked[1:]) >= max(kept, _TOGETHER):
            ranked = [_Ranked.joined(ranked).best(kept)]
    found = dist.gather((tuple(_Ranked.joined(ranked).best(kept)), images))
    images = sum(number for _, number in found)
    if not images:
        raise InputError(f"{answers.manifest.place}: no image decodes, so none can stand for its class")
    # Ranks hold ranges of ids in their order, and so the lowest id stays first among equals.
    whole = _Ranked.joined([_Ranked(*part) for part, _ in found]).best(kept)
    return whole.ids[int(images * (100.0 - percentile) / 100.0)].numpy()


@torch.inference_mode()
def probabilities(answers: Answers) -> NDArray[np.float64]:
    """Softmax of the main head for each image, float64 [N, K] in the order of their ids; on all ranks together."""
    own = [main.double().softmax(dim=1).cpu() for _, main, _ in answers]
    return torch.cat([rows for share in dist.gather(own) for rows in share]).numpy()
