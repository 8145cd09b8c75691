"""Writing beside training, by several ranks: files, marks, index, one rename."""

import json
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipeline.train import packed
from pipeline.train.checkpoint import complete, damage, read_index
from pipeline.train.dist import World
from pipeline.train.index import FORMAT
from pipeline.train.writer import Writer

ROWS = torch.arange(20_000, dtype=torch.float32)


class Ranks:
    """Writers of ranks that share a folder, and what rank 0's said."""

    def __init__(self, folder: Path, size: int, patience: float = 20.0) -> None:
        self.published: list[Path] = []
        self.failed: list[tuple[int, str]] = []
        self.writers = [
            Writer(
                folder,
                World(rank, size, rank, torch.device("cpu")),
                "attempt",
                patience,
                self.published.append,
                lambda step, reason: self.failed.append((step, reason)),
            )
            for rank in range(size)
        ]

    def begin(self, rank: int, step: int, ready: threading.Event | None = None, size: int = 20_000) -> None:
        files = {f"rank-{rank:05d}.safetensors": packed.flatten({"rows": ROWS[:size], "rank": rank})}
        wait = (lambda: None) if ready is None else lambda: ready.wait(20) and None
        self.writers[rank].begin(step, files, wait, (rank * 5, rank * 5 + 5), {"of": f"rank {rank}"})

    def wait(self) -> None:
        for writer in self.writers:
            writer.wait()


def test_all_ranks_make_one_checkpoint(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, 3)
    for rank in (2, 0, 1):
        ranks.begin(rank, 7)
    ranks.wait()
    (path,) = complete(tmp_path)
    assert ranks.published == [path]
    assert sorted(file.name for file in path.iterdir()) == [
        "index.json",
        *(f"rank-0000{i}.safetensors" for i in range(3)),
    ]
    index = read_index(path)
    assert (index["step"], index["of"], index["homes"]) == (7, "rank 0", [[0, 5], [5, 10], [10, 15]])
    assert damage(path) is None
    assert packed.read(path / "rank-00001.safetensors")["rank"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["step-000000007"]
    assert ranks.writers[0].seconds > 0


def test_nothing_counts_before_every_rank_is_done(tmp_path: Path) -> None:
    ranks, ready = Ranks(tmp_path, 2), threading.Event()
    ranks.begin(0, 7)
    ranks.begin(1, 7, ready)
    ranks.writers[0]._thread.join(0.3)
    assert ranks.writers[0]._thread.is_alive()
    assert complete(tmp_path) == []
    ready.set()
    ranks.wait()
    assert len(complete(tmp_path)) == 1


def test_a_rank_that_never_ends_is_named(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, 2, patience=0.2)
    ranks.begin(0, 7)
    ranks.writers[0].wait()
    assert ranks.failed == [(7, "rank 1 did not finish its files within 0 s")]
    assert list(tmp_path.iterdir()) == []


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow further, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_loses_that_checkpoint_alone(tmp_path: Path, victim: int) -> None:
    ranks = Ranks(tmp_path, 2)
    for rank in range(2):
        ranks.begin(rank, 7)
    ranks.wait()
    with largest_file(40_000):
        for rank in range(2):
            ranks.begin(rank, 8, size=20_000 if rank == victim else 100)
        ranks.wait()
    assert ranks.failed == [(8, "rank 1: File too large" if victim else "File too large")]
    assert complete(tmp_path) == [tmp_path / "step-000000007"]
    late = tmp_path / ".step-000000008.attempt.tmp"
    late.mkdir(exist_ok=True)  # by a rank that began when another had failed and tidied up
    early = tmp_path / ".step-000000010.attempt.tmp"
    early.mkdir()  # by a rank that is further than rank 0
    for rank in range(2):
        ranks.begin(rank, 9)
    ranks.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        early.name,
        "step-000000007",
        "step-000000009",
    ]


def test_a_kill_while_a_checkpoint_is_replaced_loses_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last name that is given never comes, as where the process is gone by then."""
    ranks, rename = Ranks(tmp_path, 1), Path.rename
    ranks.begin(0, 7)
    ranks.wait()
    whole = sorted(file.read_bytes() for file in (tmp_path / "step-000000007").iterdir())
    with monkeypatch.context() as patched:

        def killed(self: Path, target: Path) -> Path:
            assert self.suffix != ".tmp", "gone"
            return rename(self, target)

        patched.setattr(Path, "rename", killed)
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        ranks.begin(0, 7)
        ranks.wait()
    assert complete(tmp_path) == []
    again = Ranks(tmp_path, 1)
    again.writers[0].sweep()
    assert [file.name for file in tmp_path.iterdir()] == ["step-000000007"]
    assert sorted(file.read_bytes() for file in (tmp_path / "step-000000007").iterdir()) == whole
    again.begin(0, 7)
    again.wait()
    assert [file.name for file in tmp_path.iterdir()] == ["step-000000007"]
    assert damage(tmp_path / "step-000000007") is None


def test_a_folder_that_cannot_be_written_loses_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ranks = Ranks(tmp_path / "file", 1)
    ranks.begin(0, 7)
    ranks.wait()
    assert ranks.failed == [(7, "Not a directory")]


def test_no_byte_of_the_index_changes_unseen(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, 1)
    ranks.begin(0, 7)
    ranks.wait()
    index = tmp_path / "step-000000007/index.json"
    whole = index.read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        index.write_bytes(flipped)
        assert damage(index.parent) is not None, (bit, bytes(flipped))
    index.write_bytes(whole)
    assert damage(index.parent) is None


def test_an_older_format_is_named(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, 1)
    ranks.begin(0, 7)
    ranks.wait()
    index = tmp_path / "step-000000007/index.json"
    index.write_text(
        json.dumps({key: value for key, value in json.loads(index.read_text()).items() if key != "format"})
    )
    assert damage(index.parent) == f"it has format None, this version reads {FORMAT}"
