"""The share of samples that small-loss methods leave out in the end: given, or counted from clean labels."""

import numpy as np

from pipeline.config import Config
from pipeline.data.selection import Selection
from pipeline.train.noisematrix import label_weights
from shards.errors import InputError
from shards.manifest import Manifest


def known_forget_rate(config: Config, manifest: Manifest, selection: Selection) -> float | None:
    """Return what is given, or the noise rate: wrong labels among those in use whose clean label is known.

    With `data.balance` that of an epoch. None where the method leaves nothing out.

    Raises:
        InputError: no rate is given and no clean label is known, or all of them differ from the label.
    """
    options = config.method.pair_options
    if "forget_rate" not in options:
        return None
    given: float | None = options["forget_rate"]
    if given is not None:
        return given
    where = f"method.{config.method.pair_section}.forget_rate"
    clean = manifest.clean_labels[selection.ids]
    known = clean >= 0
    if not known.any():
        raise InputError(
            f"{where}: {manifest.place} knows no clean labels to count the noise rate from; give the share of labels"
            " that you take to be wrong, such as 0.2"
        )
    given_labels = selection.active_labels
    frequency = label_weights(config, given_labels, manifest.num_classes)[given_labels[known]]
    rate = float(np.average(clean[known] != given_labels[known], weights=frequency))
    if rate == 1.0:
        raise InputError(f"{where}: all known labels of {manifest.place} are wrong; give a rate below 1")
    return rate
