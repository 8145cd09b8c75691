"""A look at a dataset folder, from its manifest and sample table alone: no shard is read and nothing is hashed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.manifest import KEYS, SAMPLES, Manifest
from shards.mix import Mix
from shards.readers.record import EXTENSIONS, first

MANY_CLASSES = 30  # above, the histogram shows its two ends
MATRIX_CLASSES = 15  # above, the confusion is its largest pairs
PAIRS = 15
SHORT_SIDE = 224  # pixels; smaller images are enlarged by the usual crop

_LONGEST_VALUE = 60  # of a recorded option, in characters: a matrix of transitions has its place in the manifest


@dataclass(frozen=True)
class Labels:
    """How the labels of a dataset are spread over its K classes.

    given, clean: samples per class, int64 [K]; `clean` is None where no true label is known. known: number of samples
    whose clean label is known. wrong: int64 [P, 3], the pairs (true class, given class, samples) of different classes
    that occur, most samples first.
    """

    given: NDArray[np.int64]
    clean: NDArray[np.int64] | None
    known: int
    wrong: NDArray[np.int64]

    @classmethod
    def of(cls, table: NDArray[Any], num_classes: int) -> Self:
        """Count a sample table, SAMPLE_DTYPE [N]; labels that are no class are left out."""
        given, clean = (np.array(table[column], dtype=np.int64) for column in ("label", "clean_label"))
        inside = (given >= 0) & (given < num_classes)
        known = (clean >= 0) & (clean < num_classes)
        differ = inside & known & (given != clean)
        # Pairs, not a matrix: a dataset of 20,000 classes would need one of 3 GB.
        codes, counts = np.unique(clean[differ] * num_classes + given[differ], return_counts=True)
        pairs = np.stack([codes // num_classes, codes % num_classes, counts], axis=1)
        return cls(
            np.bincount(given[inside], minlength=num_classes),
            np.bincount(clean[known], minlength=num_classes) if known.any() else None,
            int(known.sum()),
            pairs[np.argsort(-counts, kind="stable")],
        )

    @property
    def noise_rate(self) -> float | None:
        """Share of wrong labels among the samples whose clean label is known; None where none is."""
        return float(self.wrong[:, 2].sum() / self.known) if self.known else None

    def confusion(self) -> NDArray[np.float64]:
        """Share of each true class (row) that was given each class (column), float64 [K, K]; nan for an empty row."""
        assert self.clean is not None, "some clean label is known"
        counts = np.zeros((len(self.given), len(self.given)))
        counts[self.wrong[:, 0], self.wrong[:, 1]] = self.wrong[:, 2]
        np.fill_diagonal(counts, self.clean - counts.sum(axis=1))
        totals = counts.sum(axis=1, keepdims=True)
        return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def lines(manifest: Manifest) -> list[str]:
    """Say how a dataset was made, and how its labels and image sizes are spread.

    Raises InputError where the table has labels that are no class, or keys out of order.
    """
    table, starts = manifest.table, np.array(manifest.table["key"])
    for column, least in (("label", 0), ("clean_label", -1)):
        values = table[column]
        if values.min() < least or values.max() >= manifest.num_classes:
            raise InputError(f"{manifest.place}/{SAMPLES}: a {column} is no class; see `alasca verify`")
    ends = np.append(starts[1:], np.uint64(manifest.files[KEYS].bytes))
    if starts[0] != 0 or (ends < starts).any():
        raise InputError(f"{manifest.place}/{SAMPLES}: its keys do not follow one another; see `alasca verify`")
    labels = Labels.of(table, manifest.num_classes)
    return [
        *_origin(manifest),
        "",
        *class_lines(manifest.classes, labels),
        *_balance(manifest.classes, labels.given),
        Mix.of(manifest.labels, manifest.num_classes).line(),
        "",
        *noise_lines(labels),
        *_confusion(manifest.classes, labels),
        "",
        *_sizes(table),
        *_suffixes(manifest, starts, ends),
    ]


def class_lines(classes: Sequence[str], labels: Labels) -> list[str]:
    """Say how many samples each class has, in the order of the classes; of many, the most frequent and the rarest."""
    clean = labels.clean
    table = [f"{'given':>10} {'clean':>10}  class" if clean is not None else f"{'given':>10}  class"]
    order = np.arange(len(classes))
    if many := len(classes) > MANY_CLASSES:
        order = np.argsort(-labels.given, kind="stable")
    for label in order.tolist():
        true = f" {clean[label]:>10,}" if clean is not None else ""
        table.append(f"{labels.given[label]:>10,}{true}  {classes[label]}")
    if many:
        half = MANY_CLASSES // 2
        table[half + 1 : -half] = [f"{'...':>10}  {len(order) - 2 * half:,} more classes"]
    return table


def noise_lines(labels: Labels) -> list[str]:
    """Say how many of the given labels are known to be wrong."""
    if labels.noise_rate is None:
        return ["no clean label is known"]
    images = int(labels.given.sum())
    where = "" if labels.known == images else f" ({labels.known:,} of {images:,} images)"
    return [f"{labels.noise_rate:.2%} of the given labels are wrong, where the clean label is known{where}"]


def _origin(manifest: Manifest) -> list[str]:
    source = manifest.source
    told = {name: value for name, value in source.items() if not isinstance(value, dict | list)}
    told = source.get("options", {}) | {n: v for n, v in told.items() if n not in ("reader", "inputs")}
    counts = source.get("counts", {})
    found = [
        f"split      {manifest.split}",
        f"made by    {source.get('reader', 'an unknown reader')} ({_in_words(told)})",
        f"noise      {_in_words(manifest.noise) if manifest.noise else 'none added'}",
    ]
    if elsewhere := sorted({shard.place for shard in manifest.shards} - {""}):
        found.append(f"shards in  {first(elsewhere)}")
    if counts.get("missing") or counts.get("passed_over"):
        other = f"{counts.get('passed_over', 0):,} files that are no images"
        found.append(f"left out   {counts.get('missing', 0):,} images that were not there, {other}")
    return found


def _in_words(document: dict[str, Any]) -> str:
    def short(value: object) -> str:
        text = "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."

    return ", ".join(f"{name.replace('_', ' ')} {short(value)}" for name, value in document.items())


def _balance(classes: Sequence[str], given: NDArray[np.int64]) -> list[str]:
    most, least = int(given.argmax()), int(given.argmin())
    frequent = f"most frequent: {classes[most]}, {given[most]:,} images"
    if not given[least]:
        none = [classes[label] for label in np.flatnonzero(given == 0).tolist()]
        return [f"{frequent}; {len(none):,} classes have none ({first(none)}), so no balanced epoch holds them all"]
    return [
        f"{frequent}; rarest: {classes[least]}, {given[least]:,}; ratio {given[most] / given[least]:.1f}",
        f"largest class-balanced epoch: {len(classes):,} x {given[least]:,} = {len(classes) * given[least]:,} images",
    ]


def _confusion(classes: Sequence[str], labels: Labels) -> list[str]:
    if labels.clean is None or not len(labels.wrong):
        return []
    if len(classes) <= MATRIX_CLASSES:
        names = [f"{label:>2} {name}" for label, name in enumerate(classes)]
        width = max(len(name) for name in ["true, given as %", *names])
        table = [f"{'true, given as %':<{width}}" + "".join(f"{label:>6}" for label in range(len(classes)))]
        for name, row in zip(names, labels.confusion().tolist(), strict=True):
            cells = ("-" if share != share else f"{share * 100:.1f}" if share else "." for share in row)
            table.append(f"{name:<{width}}" + "".join(f"{cell:>6}" for cell in cells))
        return table
    table = [f"{'images':>10} {'of true':>8}  true class -> given class"]
    for true, given, count in labels.wrong[:PAIRS].tolist():
        table.append(f"{count:>10,} {count / labels.clean[true]:>8.2%}  {classes[true]} -> {classes[given]}")
    if len(labels.wrong) > PAIRS:
        table.append(f"{'...':>10} {'':>8}  {len(labels.wrong) - PAIRS:,} more pairs")
    return table


def _sizes(table: NDArray[Any]) -> list[str]:
    width, height, size = (np.array(table[column], dtype=np.int64) for column in ("width", "height", "size"))
    known = width > 0
    width, height = width[known], height[known]
    found = [f"{'':<10}{'min':>12}{'5%':>12}{'median':>12}{'95%':>12}{'max':>12}"]
    for name, values in {"width": width, "height": height, "pixels": width * height, "bytes": size}.items():
        if len(values):
            # Inverted: every figure is one that occurs.
            marks = np.quantile(values, [0, 0.05, 0.5, 0.95, 1], method="inverted_cdf").tolist()
            found.append(f"{name:<10}" + "".join(f"{int(mark):>12,}" for mark in marks))
    small = int((np.minimum(width, height) < SHORT_SIDE).sum())
    if len(width):
        found.append(f"{small:,} images ({small / len(width):.2%}) have a short side below {SHORT_SIDE} pixels")
    if unknown := len(known) - len(width):
        found.append(f"{unknown:,} images are of unknown size")
    return found


def _suffixes(manifest: Manifest, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> list[str]:
    """Count what the keys end in, by bytes: making millions of strings would take longer than everything else."""
    blob = np.memmap(manifest.file_path(KEYS), dtype=np.uint8, mode="r")
    length, last = (ends - starts).astype(np.int64), ends.astype(np.int64) - 1
    counts = dict.fromkeys(EXTENSIONS.values(), 0)
    for suffix, extension in EXTENSIONS.items():
        rows = last[length > len(suffix)]
        for back, byte in enumerate(reversed(suffix.encode())):
            found = blob[rows - back]
            rows = rows[(found == byte) | (found == ord(chr(byte).upper()))]
        counts[extension] += len(rows)
    counts["other"] = len(starts) - sum(counts.values())
    return ["by the names: " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)]
