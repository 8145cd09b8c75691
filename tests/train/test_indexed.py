"""Training on tars that others wrote, wherever they lie."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rawsmall import sample, write_tar
from runs import trained
from server import serving

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from shards.cache import Cache
from shards.index import index
from shards.manifest import Manifest
from shards.places import find

Configured = Callable[..., Config]


def tars(root: Path, labels: list[int]) -> Path:
    """Tars of twelve samples."""
    for number in range(len(labels) // 12):
        files = [
            file for i in range(12 * number, 12 * number + 12) for file in sample(f"{i:05d}", i, {"label": labels[i]})
        ]
        write_tar(root / f"{number:03d}.tar", files)
    return root


def test_tars_at_a_server_train_as_those_in_a_folder(
    configured: Configured, world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, cache = tars(tmp_path / "tars", [i * 7 % 3 for i in range(96)]), Cache(tmp_path / "passing", seconds=5)
    local = index(find([str(root)]), tmp_path / "local")
    with serving(tmp_path) as server:
        place = [f"{server.url}/tars/{{000..007}}.tar"]
        remote = index(find(place), tmp_path / "remote", cache=cache)
        assert remote.fingerprint == local.fingerprint
        changes = {
            "run__max_steps": 2,
            "data__micro_batch": 4,
            "data__workers": 2,
            "eval__test": {"data": str(local.root)},
        }
        ours = trained(configured(run__name="local", data__train=str(local.root), **changes), world)
        server.asked.clear()
        # The cache of a run stands before what its manifest names; given as a folder, before local folders too.
        changes |= {"eval__test": {"data": str(remote.root)}, "data__cache": str(tmp_path / "cache")}
        theirs = trained(configured(run__name="remote", data__train=str(remote.root), **changes), world)
        assert set(server.asked.values()) == {1}  # by two workers and those that fetch ahead of them
        assert set(server.asked) == {f"tars/{i:03d}.tar" for i in range(8)}
    for one, other in zip(
        ours.engine.module.state_dict().values(), theirs.engine.module.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)
    records = [[timeless(r) for r in read_metrics(t.config.folder)] for t in (ours, theirs)]
    assert records[0] == records[1]
    assert "not shuffled" not in capfd.readouterr().err


def test_sorted_tars_are_told_at_the_start(
    configured: Configured, world: World, photos: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tars(tmp_path / "tars", sorted(i % 3 for i in range(96)))
    manifest = index(find([str(root)]), tmp_path / "index")
    same = {"data__micro_batch": 4, "eval__test": {"data": str(manifest.root)}}
    config = configured(data__train=str(manifest.root), run__max_steps=1, **same)
    trained(config, world)
    told = [line for line in capfd.readouterr().err.splitlines() if "not shuffled" in line]
    assert len(told) == 1
    assert told[0].startswith(f"alasca: {manifest.root}: the samples are not shuffled: of 4 lanes, ")
    assert told[0].endswith("; `alasca shard webdataset` writes them shuffled")
    for config in (  # of the labels that are trained on
        configured(data__train=str(manifest.root), data__relabel=flattened(manifest, tmp_path), **same),
        configured(data__train=str(photos.root)),
    ):
        assert not [*Inputs.open(config, 1).warnings(config)]


def flattened(manifest: Manifest, folder: Path) -> str:
    """A list that gives all samples other labels, which take turns."""
    lines = [f"{i},{i % 3}" for i in range(manifest.num_samples)]
    (folder / "labels.csv").write_text("\n".join(["id,label", *lines]) + "\n")
    return str(folder / "labels.csv")
