"""Images that do not decode: counted over all ranks, named, and too many of them end the run."""

from collections.abc import Iterable

from pipeline.data.batch import Bad
from pipeline.train import dist
from shards.errors import InputError
from shards.manifest import Manifest


class BadImages:
    """Distinct bad images of one dataset.

    Args:
        manifest: the dataset.
        max_fraction: of its images; more end the run.
        of: how many of its images are in use (default: all).
    """

    def __init__(self, manifest: Manifest, max_fraction: float, of: int | None = None) -> None:
        self._manifest, self._max_fraction = manifest, max_fraction
        self._of = manifest.num_samples if of is None else of
        self._own: dict[int, str] = {}
        self._agreed: dict[int, str] = {}

    def add(self, found: Iterable[Bad]) -> None:
        """Note what this rank found; the same image may come again each epoch."""
        self._own.update((bad.sample_id, bad.reason) for bad in found)

    def agree(self) -> list[dict[str, object]]:
        """Tell the other ranks, and learn what is new since the last time; called by all ranks together.

        Returns:
            Fields of a `bad` record for each new one: id, key, reason.

        Raises:
            InputError: there are more than allowed; the first five are named.
        """
        everybody = {i: reason for share in dist.gather(self._own) for i, reason in share.items()}
        new = sorted(everybody.keys() - self._agreed.keys())
        self._agreed |= everybody
        if len(self._agreed) > self._max_fraction * self._of:
            raise InputError(self._too_many())
        return [{"id": i, "key": self._manifest.key(i), "reason": everybody[i]} for i in new]

    def __len__(self) -> int:
        return len(self._agreed)

    def state_dict(self) -> list[tuple[int, str]]:
        """What all ranks agreed on so far."""
        return sorted(self._agreed.items())

    def load_state_dict(self, state: Iterable[tuple[int, str]]) -> None:
        """Go on from an earlier attempt, whose record already names these."""
        self._agreed = dict(state)

    def _too_many(self) -> str:
        first = "; ".join(f"{self._manifest.key(i)} ({reason})" for i, reason in sorted(self._agreed.items())[:5])
        more = "; ..." if len(self._agreed) > 5 else ""
        return (
            f"{len(self._agreed)} of {self._of} images in {self._manifest.place} do not decode, over"
            f" data.max_bad_fraction = {self._max_fraction}: {first}{more}. Mend them and shard again, or raise"
            " data.max_bad_fraction"
        )
