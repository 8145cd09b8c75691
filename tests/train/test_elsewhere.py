"""Training and evaluation from shards that lie elsewhere: the same run, bit for bit."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from moto.server import ThreadedMotoServer
from runs import trained
from server import Handler, Server, serving, status, whole

from pipeline.config import Config
from pipeline.record.metrics import timeless
from pipeline.record.track import read_metrics
from pipeline.train.bad import BadImages
from pipeline.train.dist import World
from pipeline.train.evaluate import Answers, evaluate, open_set
from pipeline.train.inputs import Inputs
from pipeline.train.stored import StoredRun
from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.manifest import Manifest

Configured = Callable[..., Config]


@pytest.fixture(scope="module")
def served(photos: Manifest, clean_photos: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Both sets on one server, as train/ and test/, with equal names of shards."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "train").symlink_to(photos.root)
    (folder / "test").symlink_to(clean_photos.root)
    with serving(folder) as server:
        yield server


def test_a_run_from_a_server_is_the_run_from_the_folder(
    configured: Configured, world: World, served: Server, tmp_path: Path
) -> None:
    changes = {"optim__epochs": 3, "track__norms": 5}
    local = trained(configured(run__name="local", **changes), world)
    changes |= {"data__cache": str(tmp_path / "cache"), "data__workers": 2}
    places = {"data__train": f"{served.url}/train?sig=s3cr3t", "eval__test": {"data": f"{served.url}/test"}}
    served.asked.clear()
    remote = trained(configured(run__name="remote", **changes, **places), world)
    for ours, theirs in zip(
        local.engine.module.state_dict().values(), remote.engine.module.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    records = [[timeless(r) for r in read_metrics(t.config.folder)] for t in (local, remote)]
    assert records[0] == records[1]
    # Three epochs, two workers and the one ahead of them, three evaluations: each file came once.
    assert {name: n for name, n in served.asked.items() if n > 1} == {}
    assert len(served.asked) == 2 * 3 + len(remote.manifest.shards) + len(remote.sets["test"].shards)
    assert "s3cr3t" not in (remote.config.folder / "metrics.jsonl").read_text()
    assert "s3cr3t" not in (remote.config.folder / "summary.json").read_text()


def test_a_run_goes_on_from_a_server_and_back(
    configured: Configured, world: World, served: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """There through a cache that holds one shard of all that are read at once: slow, never wrong, and said."""
    straight = trained(configured(run__name="straight"), world)
    trained(configured(run__name="moved", run__max_steps=4), world)
    elsewhere = {"data__train": f"{served.url}/train", "data__cache": str(tmp_path / "cache"), "data__cache_gb": 1e-4}
    capfd.readouterr()
    trained(configured(run__name="moved", run__resume="auto", run__max_steps=7, **elsewhere), world)
    assert "alasca: data.cache_gb = 0.0001 is too little for the 0.000" in capfd.readouterr().err
    moved = trained(configured(run__name="moved", run__resume="auto"), world)
    for ours, theirs in zip(
        straight.engine.module.state_dict().values(), moved.engine.module.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_an_evaluation_from_s3(
    configured: Configured, world: World, clean_photos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # other tests' servers are gone, and their connections with them
    config = trained(configured(run__name="stored", data__cache=str(tmp_path / "cache")), world).config
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (("ENDPOINT_URL", f"http://{host}:{port}"), ("ACCESS_KEY_ID", "k")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="sets")
        for file in clean_photos.root.iterdir():
            client.upload_file(str(file), "sets", f"test/{file.name}")
        run = StoredRun(config.folder)
        there = open_set("s3://sets/test", run.classes, "--data", run.config.data.fetched)
        figures = run.evaluate(there, world)
    finally:
        server.stop()
    assert figures == run.evaluate(clean_photos, world)
    last = json.loads((config.folder / "summary.json").read_text())["sets"]["test"]
    assert figures["main/top1"] == last["main/top1"]


def test_an_evaluation_asks_for_a_shard_before_its_turn(
    configured: Configured, world: World, clean_photos: Manifest, tmp_path: Path
) -> None:
    """The server keeps the first one back until it is asked for the second; the first batch is all in the first."""
    asked = threading.Event()

    def kept_back(handler: Handler, content: bytes) -> None:
        if asked.wait(20):
            whole(handler, content)

    def noted(handler: Handler, content: bytes) -> None:
        asked.set()
        whole(handler, content)

    def figures(manifest: Manifest) -> dict[str, float] | None:
        def by_colour(images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return images.float().mean(dim=(1, 2)), []

        return evaluate(Answers(by_colour, manifest, configured(data__micro_batch=2), world, BadImages(manifest, 0.0)))

    with serving(clean_photos.root) as server:
        first, second = (shard.name for shard in clean_photos.shards[:2])
        server.always = {first: kept_back, second: noted}
        there = open_set(server.url, clean_photos.classes, "--data", Cache(tmp_path / "cache", seconds=8))
        assert figures(there) == figures(clean_photos)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_gone_ends_the_run_with_its_name(
    configured: Configured, world: World, photos: Manifest, tmp_path: Path, workers: int
) -> None:
    with serving(photos.root) as server:
        name = photos.shards[3].name
        server.always[name] = status(404)
        cache = str(tmp_path / "cache")
        config = configured(data__train=server.url, data__cache=cache, data__workers=workers)
        with pytest.raises(OwnError) as caught:
            trained(config, world)
        assert f"Error: {server.url}/{name}: it is not there" in f"Error: {caught.value}".splitlines()[-1]


def test_a_fetch_must_give_up_before_it_counts_as_a_hang(
    configured: Configured, served: Server, tmp_path: Path
) -> None:
    changes = {"dist__timeout": 300.0, "data__cache": str(tmp_path / "cache")}
    for place in ({"data__train": f"{served.url}/train"}, {"eval__test": {"data": f"{served.url}/test"}}):
        with pytest.raises(InputError, match=r"^dist.timeout = 300 .* data.fetch_timeout = 300 s .* 330 or more"):
            Inputs.open(configured(**changes, **place), 1)
        Inputs.open(configured(**changes, **place, data__fetch_timeout=270.0), 1)
    Inputs.open(configured(dist__timeout=1.0), 1)  # nothing is fetched


def test_a_mistake_names_the_key_and_keeps_the_secret(configured: Configured, served: Server, tmp_path: Path) -> None:
    place = served.url.replace("//", "//me:s3cr3t@") + "/nothing?sig=s3cr3t"
    config = configured(data__train=place, data__cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"^data.train = 'http://127.0.0.1:\d+/nothing': .*it is not there") as caught:
        Inputs.open(config, 1)
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(InputError, match=r"^data.train = 'pipe:.*run a command"):
        Inputs.open(configured(data__train="pipe:cat /data/train"), 1)
