"""Linear evaluation: how much of the clean labels a linear classifier reads from the frozen features of each stage."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.data.batch import Batch
from pipeline.data.loader import EvalBatches, Feed, eval_keys
from pipeline.data.pixels import normalise
from pipeline.model.pair import first_network
from pipeline.train import dist
from pipeline.train.evaluate import open_set
from pipeline.train.stored import StoredRun
from shards.errors import InputError
from shards.manifest import Manifest
from shards.progress import for_user

LIMIT = 20_000
ITERATIONS = 300

_BATCH, _SEED = 64, 0  # not the run's: every run is probed on the same images

Array = NDArray[Any]


def probe_run(folder: Path, train: str, test: str, *, limit: int = LIMIT, trust: bool = False) -> dict[str, Any]:
    """Probe the newest checkpoint of a run, in this one process; of a pair of networks, the first.

    Per stage, multinomial logistic regression (L2 with C = 1 on the sum over images, L-BFGS, features of mean 0 and
    deviation 1 over the training images) on the stage's output, averaged over the map. Nothing is chosen, on the test
    images or otherwise. The features of all stages of both sets are held in memory: 4 bytes each, 0.3 GB for 20,000
    images of a ResNet-50, and that again for the widest stage while it is fitted.

    Args:
        folder: of the run.
        train: dataset whose clean labels are learnt.
        test: dataset on which accuracy is measured. Clean by definition: its given labels count where it knows no
            clean ones.
        limit: images of each set at most; of more, a seeded choice, the same for every run.
        trust: take the given labels of `train` for clean where it knows no clean ones.

    Returns:
        What JSON can hold: `run`, `step`; `train` and `test`, each with `data`, `images` (used), `bad` (undecodable,
        left out), `of` (in the set); `stages`, each with `stage`, `features`, `train_top1`, `top1` (0 to 1),
        `converged` (within `ITERATIONS`).

    Raises:
        InputError: no run, no dataset, other classes than the run's, one dataset given twice, unknown clean labels, a
            limit below 1, fewer than two classes to learn, or nothing to test on; all but the last two before an image
            is read.
    """
    if limit < 1:
        raise InputError(f"--limit {limit}: must be 1 or more")
    if dist.world_size() > 1:
        raise InputError("alasca probe is one process: start it without a launcher")
    run = StoredRun(folder)
    cache = run.config.data.fetched
    learnt = open_set(train, run.classes, "--train", cache)
    asked = open_set(test, run.classes, "--test", cache)
    if learnt.fingerprint == asked.fingerprint:
        raise InputError(
            f"--train and --test are one dataset, '{learnt.place}': an accuracy on it would be of what was learnt"
        )
    labels = {"train": clean_labels(learnt, trust=trust), "test": clean_labels(asked, trust=True)}
    module = first_network(run.module(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    found: dict[str, dict[str, Array]] = {}
    about: dict[str, Any] = {"run": str(folder), "step": run.step}
    targets = {}
    for name, manifest in (("train", learnt), ("test", asked)):
        found[name], ids, bad = features(module, run, manifest, limit)
        targets[name] = labels[name][ids]
        about[name] = {"data": manifest.place, "images": len(ids), "bad": bad, "of": manifest.num_samples}
        classes, needed = len(np.unique(targets[name])), 2 if name == "train" else 1
        if classes < needed:
            raise InputError(
                f"--{name} '{manifest.place}': {len(ids)} images of {classes} classes are too few for a linear"
                " classifier; raise --limit or give another dataset"
            )
    about["stages"] = []
    for stage in list(found["train"]):
        pair = {name: found[name].pop(stage) for name in found}
        width = pair["train"].shape[1]
        about["stages"].append({"stage": stage, "features": width, **_fit(pair, targets)})
    return about


def clean_labels(manifest: Manifest, *, trust: bool) -> NDArray[np.int64]:
    """Clean labels of a dataset, int64 [N]; where it knows none, the given ones if they are trusted.

    Raises:
        InputError: some are unknown and not trusted.
    """
    clean = manifest.clean_labels.astype(np.int64)
    unknown = clean < 0
    if unknown.any() and not trust:
        raise InputError(
            f"--train '{manifest.place}': {int(unknown.sum()):,} of {manifest.num_samples:,} clean labels are unknown:"
            " give another dataset, or --labels-are-clean if its labels were checked"
        )
    return np.where(unknown, manifest.labels, clean)


@torch.no_grad()
def features(
    module: nn.Module, run: StoredRun, manifest: Manifest, limit: int
) -> tuple[dict[str, Array], NDArray[np.int64], int]:
    """Every stage's output averaged over its map, in float32, of the evaluation view of each image that decodes.

    Returns:
        Features by stage ("stage1", ...), float32 [N, C]; the images' ids, int64 [N]; how many did not decode.
    """
    data, device = run.config.data, next(module.parameters()).device
    dataset = EvalBatches(manifest, crop=data.crop, augment=data.augment, max_pixels=data.max_pixels)
    chosen = list(_chosen(manifest.num_samples, limit))
    seen: dict[str, torch.Tensor] = {}
    parts: dict[str, list[torch.Tensor]] = {}
    ids: list[torch.Tensor] = []
    bad = 0
    with ExitStack() as stack:
        for name, stage in module.named_children():
            if name.startswith("layer"):
                parts[name] = []
                handle = stage.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
                stack.callback(handle.remove)
        progress = stack.enter_context(for_user())
        progress.start(sum(stop - start for start, stop in chosen), "images")
        ahead = dataset.ahead(chosen, data.workers, share=1)
        feed = stack.enter_context(closing(Feed(dataset, chosen, data.workers, pin=device.type == "cuda", ahead=ahead)))
        for host_batch in feed:
            batch: Batch = host_batch.to(device)
            module(normalise(batch.images, run.config.engine.channels_last))
            for name, output in seen.items():
                parts[name].append(output.mean(dim=(2, 3))[batch.valid].cpu())
            ids.append(host_batch.positions[host_batch.valid])
            progress.advance(len(host_batch.labels))
            bad += len(host_batch.bad)
    stages = {name.replace("layer", "stage"): torch.cat(own).numpy() for name, own in parts.items()}
    return stages, torch.cat(ids).numpy(), bad


def _chosen(count: int, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of ids: all, or a seeded choice that holds `limit`. Shards are shuffled, so neighbours are no kin."""
    ranges = list(eval_keys(count, _BATCH, 0, 1))
    if limit >= count:
        yield from ranges
        return
    left = limit
    kept = []
    for number in np.argsort(np.random.Philox(key=_SEED).random_raw(len(ranges)), kind="stable"):
        first, stop = ranges[number]
        stop = min(stop, first + left)
        kept.append((first, stop))
        left -= stop - first
        if left == 0:
            break
    yield from sorted(kept)


def _fit(features: dict[str, Array], targets: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Learn on "train"; accuracies (0 to 1) on both."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler, model = StandardScaler(), LogisticRegression(max_iter=ITERATIONS)
    # In float64: float32 gradients end L-BFGS early.
    inputs = scaler.fit_transform(features["train"].astype(np.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result says so
        model.fit(inputs, targets["train"])
    return {
        "train_top1": float(model.score(inputs, targets["train"])),
        "top1": float(model.score(scaler.transform(features["test"].astype(np.float64)), targets["test"])),
        "converged": bool(model.n_iter_[0] < ITERATIONS),
    }
