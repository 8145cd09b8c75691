"""The noise matrix that forward correction is given: from a file, or counted from clean labels."""

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.data.balance import quotas
from pipeline.data.selection import Selection
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers.record import first
from shards.transitions import Matrix, read_matrix

KNOWN = "known"


def noise_matrix(config: Config, manifest: Manifest, selection: Selection) -> Matrix | None:
    """Row i: the shares of true class i that get each label; None where the method corrects nothing.

    Raises:
        InputError: a file that cannot be read or is of other classes; clean labels that are not there, at all or of a
            class; a label that occurs although no class gets it.
    """
    given = config.method.forward.matrix
    if config.method.base != "forward" or given is None:
        return None
    where = f"method.forward.matrix = '{given}'"
    matrix = _counted(config, manifest, selection, where) if given == KNOWN else read_matrix(given, where)
    if len(matrix.values) != manifest.num_classes:
        raise InputError(
            f"{where}: {len(matrix.values)} rows, but {manifest.place} has {manifest.num_classes:,} classes; write a"
            f" row and a column for each, in this order: {first(manifest.classes)}"
        )
    labels = np.bincount(selection.active_labels, minlength=manifest.num_classes)
    never = np.flatnonzero(~matrix.values.any(axis=0) & (labels > 0))
    if len(never):
        names = first([manifest.classes[k] for k in never])
        raise InputError(
            f"{where}: no class is ever labelled {names} (column {never[0] + 1} is 0): the loss of such a label would"
            " be infinite; write a small share there"
        )
    return matrix


def label_weights(config: Config, labels: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """How often an epoch draws a sample of each given label, [K], up to a factor: rare ones more often if balanced.

    As if one lane had all samples: what a lane lacks, though others have it, is not seen.

    labels: [N], of the samples in use.
    """
    balance, counts = config.data.balance, np.bincount(labels, minlength=num_classes)
    if balance is False:
        return np.ones(num_classes)
    there = np.flatnonzero(counts)
    available = counts[there].astype(np.int64)
    samples = int(available.min()) * len(there) if balance is True else min(balance, len(labels))
    weights = np.zeros(num_classes)
    weights[there] = quotas(available, samples, 0) / available
    return weights


def _counted(config: Config, manifest: Manifest, selection: Selection, where: str) -> Matrix:
    """Of the samples in use whose clean label is known, as an epoch draws them."""
    clean, given = manifest.clean_labels[selection.ids], selection.active_labels
    known, classes = clean >= 0, manifest.num_classes
    if not known.any():
        raise InputError(f"{where}: {manifest.place} knows no clean labels to count from; give a file or an estimate")
    pairs = clean[known].astype(np.int64) * classes + given[known]
    counts = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.float64)
    counts *= label_weights(config, given, classes)
    empty = np.flatnonzero(counts.sum(axis=1) == 0)
    if len(empty):
        names = first([manifest.classes[k] for k in empty])
        raise InputError(
            f"{where}: {manifest.place} has no sample known to be {names}, of {np.count_nonzero(known):,} with a clean"
            " label; give a file, or estimate one with alasca eval --noise-matrix"
        )
    return Matrix(counts / counts.sum(axis=1, keepdims=True), where)
