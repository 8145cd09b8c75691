"""Accuracy on named sets: every image once at any world size, main head and averaged heads apart."""

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.config import Config
from pipeline.data.batch import Batch
from pipeline.data.loader import EvalBatches, Feed, Part, eval_keys
from pipeline.method.alasca import averaged_prediction
from pipeline.model.pair import separate
from pipeline.train import dist
from pipeline.train.bad import BadImages
from pipeline.train.dist import World
from shards.cache import Cache
from shards.errors import InputError
from shards.manifest import Manifest
from shards.progress import Progress
from shards.url import redact

Forward = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


def open_dataset(path: str, what: str, cache: Cache) -> Manifest:
    """The dataset that `what` names: a folder or a URL.

    Raises:
        InputError: no such dataset, or a damaged one.
    """
    try:
        manifest = Manifest.load(path, cache)
    except InputError as error:
        raise InputError(f"{what} = '{redact(path)}': {error}") from None
    # A local table is hashed by `alasca verify` alone; in a loss, such a label would be an index out of range.
    for labels, least in ((manifest.labels, 0), (manifest.clean_labels, -1)):
        outside = np.flatnonzero((labels < least) | (labels >= manifest.num_classes))
        if len(outside):
            raise InputError(
                f"{what} = '{redact(path)}': label {labels[outside[0]]} of sample {outside[0]:,} is none of"
                f" {manifest.num_classes} classes, so samples.npy is damaged; see `alasca verify`, and copy it again"
            )
    return manifest


def open_set(path: str, classes: tuple[str, ...], what: str, cache: Cache) -> Manifest:
    """An evaluation set that fits a model.

    Raises:
        InputError: no such dataset, missing shards, or classes that are not those the model learns.
    """
    manifest = open_dataset(path, what, cache)
    if manifest.classes != classes:
        ours, theirs = set(classes), set(manifest.classes)
        differing = ", ".join(sorted(ours ^ theirs)[:5]) or "the same names in another order"
        raise InputError(
            f"{what} = '{redact(path)}' has {len(theirs)} classes that differ from the {len(ours)} of training"
            f" ({differing}): shard both from the same class list"
        )
    return manifest


class Answers:
    """What a network says of a set: this rank's share of the images, batch after batch. All ranks make one together.

    Args:
        forward: uint8 images [B, H, W, 3] on the device -> (main logits [B, K], auxiliary logits), in evaluation mode;
            of several networks [networks, B, K].
        manifest: the set.
        config: crop, workers and limits.
        world: this process.
        bad: takes up the images that do not decode.
        part: of the set (default: all of it, with its own labels).
        progress: counts this rank's images.
        stop: asked before each batch; anything true cuts the rest off.
    """

    def __init__(
        self,
        forward: Forward,
        manifest: Manifest,
        config: Config,
        world: World,
        bad: BadImages,
        *,
        part: Part | None = None,
        progress: Progress | None = None,
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        self.manifest = manifest
        self.cut_off = False
        self._forward, self._config, self._world, self._bad = forward, config, world, bad
        self._part, self._progress, self._stop = part, progress or Progress(), stop

    def __len__(self) -> int:
        """Images of all ranks."""
        return self.manifest.num_samples if self._part is None else len(self._part.ids)

    def __iter__(self) -> Iterator[tuple[Batch, torch.Tensor, list[torch.Tensor]]]:
        """Batches on this rank's device, with float32 logits of the main head and of the others; of network 1."""
        for batch, networks in self.each():
            yield batch, *networks[0]

    def each(self) -> Iterator[tuple[Batch, list[tuple[torch.Tensor, list[torch.Tensor]]]]]:
        """Batches, with these logits of each network."""
        data, device = self._config.data, self._world.device
        dataset = EvalBatches(
            self.manifest, self._part, crop=data.crop, augment=data.augment, max_pixels=data.max_pixels
        )
        keys = list(eval_keys(len(self), data.micro_batch * 2, self._world.rank, self._world.size))
        self._progress.start(sum(stop - start for start, stop in keys), "images")
        ahead = dataset.ahead(keys, data.workers, dist.neighbours())
        with closing(Feed(dataset, keys, data.workers, pin=device.type == "cuda", ahead=ahead)) as feed:
            for host_batch in feed:
                if self._stop():
                    self.cut_off = True
                    break
                self._bad.add(host_batch.bad)
                batch = host_batch.to(device)
                main, aux = self._forward(batch.images)
                yield batch, separate(main.float(), [logits.float() for logits in aux])
                self._progress.advance(len(batch.labels))
        self._progress.close()


@torch.inference_mode()
def evaluate(answers: Answers) -> dict[str, float] | None:
    """Top-1 and top-5 accuracy (0 to 1) and mean cross-entropy of the main logits, over the images that decode.

    `averaged/...` is of the mean of the main and the last auxiliary logits, where there are heads. Of a pair of
    networks these figures are the first one's: for every run they are what one network reaches. Besides, there are
    those of the second one's main logits, `network2/...`, and of the mean of both, `ensemble/...`. All ranks call this
    together; each reads its own share of the images.

    Returns:
        Fields of an `eval` record: `images` (every one of them), `bad` (of these, undecodable), accuracies, `loss`.
        None, on all ranks, where any of them was cut off.
    """
    sums: dict[str, torch.Tensor] = {}
    for batch, networks in answers.each():
        main, aux = networks[0]
        logits = {"main": main}
        if aux:
            logits["averaged"] = averaged_prediction(main, aux)
        if len(networks) > 1:
            mains = [own for own, _ in networks]
            logits |= {f"network{number}": own for number, own in enumerate(mains[1:], 2)}
            logits["ensemble"] = torch.stack(mains).mean(dim=0)
        loss = F.cross_entropy(main, batch.labels, reduction="none")
        found = {
            "images": torch.ones_like(batch.valid).sum(),
            "valid": batch.valid.sum(),
            "loss": torch.where(batch.valid, loss, 0.0).sum(),
        }
        for name, scores in logits.items():
            ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices == batch.labels[:, None]
            found[f"{name}/top1"] = (ranked[:, 0] & batch.valid).sum()
            found[f"{name}/top5"] = (ranked.any(dim=1) & batch.valid).sum()
        sums = {name: sums.get(name, 0) + value.double() for name, value in found.items()}
    # A rank without any image has no names either, so names travel with the sums.
    own = {name: float(value) for name, value in sums.items()}
    shares = [share for share in dist.gather(None if answers.cut_off else own) if share is not None]
    if len(shares) < torch.distributed.get_world_size():
        return None
    names = dict.fromkeys(name for share in shares for name in share)
    total = {name: sum(share.get(name, 0.0) for share in shares) for name in names}
    images, valid = total.pop("images"), total.pop("valid")
    return {"images": images, "bad": images - valid, **{name: t / max(valid, 1.0) for name, t in total.items()}}


@torch.inference_mode()
def class_errors(answers: Answers) -> dict[str, float | None]:
    """Share of each class's decodable images (0 to 1) that the main head gets wrong; None for a class without images.

    All ranks call this together.
    """
    classes = answers.manifest.classes
    counts = torch.zeros(2, len(classes), dtype=torch.float64)
    for batch, main, _ in answers:
        wrong = main.argmax(dim=1) != batch.labels
        for row, chosen in enumerate((batch.valid, batch.valid & wrong)):
            counts[row] += torch.bincount(batch.labels[chosen].cpu(), minlength=len(classes))
    images, errors = dist.sum_over_ranks(counts)
    shares = [e / n if n else None for e, n in zip(errors.tolist(), images.tolist(), strict=True)]
    return dict(zip(classes, shares, strict=True))
