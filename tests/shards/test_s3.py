"""Shards from a real S3-compatible server on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from server import serving, status

from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.index import index
from shards.manifest import Manifest
from shards.places import find


@pytest.fixture(scope="module")
def bucket(built: Manifest) -> Iterator[str]:
    """Address of a bucket that holds the dataset, with the environment that leads there."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="photos")
        for file in built.root.iterdir():
            client.upload_file(str(file), "photos", f"v1/train/{file.name}")
        yield "s3://photos/v1/train"
    server.stop()


def test_a_bucket_is_the_folder_it_holds(bucket: str, built: Manifest, tmp_path: Path) -> None:
    manifest = Manifest.load(bucket, Cache(tmp_path))
    assert manifest.fingerprint == built.fingerprint
    assert manifest.place == bucket
    assert list(manifest.keys()) == list(built.keys())
    for number in (0, 5):
        assert manifest.shard_path(number).read_bytes() == built.shard_path(number).read_bytes()


def test_large_files_arrive_in_parts(
    bucket: str, built: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 3000)  # 50 MB
    in_parts, asked = s3fs.S3FileSystem._download_file_part_concurrent, []

    async def counted(*args: object, **kwargs: object) -> object:
        asked.append(args)
        return await in_parts(*args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_download_file_part_concurrent", counted)
    manifest = Manifest.load(bucket, Cache(tmp_path))
    assert built.shards[2].bytes > 3 * 3000
    assert manifest.shard_path(2).read_bytes() == built.shard_path(2).read_bytes()
    assert asked


def test_what_is_not_there_is_named_at_once(bucket: str, tmp_path: Path) -> None:
    for place in ("s3://photos/v2/train", "s3://elsewhere/train"):
        with pytest.raises(InputError, match=f"{place}/manifest.json: it is not there"):
            Manifest.load(place, Cache(tmp_path, seconds=20))


def test_tars_in_a_bucket_are_indexed(bucket: str, built: Manifest, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", seconds=20)
    tars = find([bucket])
    assert tars == find([f"{bucket}/shard-{{000000..000008}}.tar"])
    manifest = index(tars, tmp_path / "index", cache=cache)
    assert [shard.place for shard in manifest.shards] == [bucket] * 9
    local = index(find([str(built.root)]), tmp_path / "local")
    assert manifest.fingerprint == local.fingerprint
    assert manifest.labels.tolist() == built.labels.tolist()
    through = Manifest.load(tmp_path / "index", cache)
    assert through.shard_path(4).read_bytes() == built.shard_path(4).read_bytes()


def test_folders_that_are_not_there_or_hold_no_tars(bucket: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", seconds=20)
    for place in ("s3://photos/v2/train", "s3://elsewhere/train"):
        with pytest.raises(InputError, match=rf"^{place}: no \.tar file in it"):
            find([place])
    with pytest.raises(InputError, match=r"^s3://photos/v1: no \.tar file in it"):
        find(["s3://photos/v1/"])
    with pytest.raises(OwnError, match=r"s3://photos/v1/none\.tar: it is not there"):
        index(find(["s3://photos/v1/none.tar"]), tmp_path / "index", cache=cache)


def test_a_flipped_bit_in_the_bucket_is_refused(
    bucket: str, built: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    monkeypatch.setattr("shards.store._FIRST_WAIT", 0.05)
    manifest, shard = Manifest.load(bucket, Cache(tmp_path)), built.shards[1]
    damaged = bytearray(built.shard_path(1).read_bytes())
    damaged[1000] ^= 4
    boto3.client("s3").put_object(Bucket="photos", Key=f"v1/train/{shard.name}", Body=bytes(damaged))
    with pytest.raises(OwnError, match=f"{bucket}/{shard.name}: its SHA-256 is [0-9a-f]+, .* says {shard.sha256}"):
        manifest.shard_path(1)


def test_a_server_that_is_not_there_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"s3://photos/x/manifest.json: .*; gave up after"):
        Manifest.load("s3://photos/x", Cache(tmp_path, seconds=2))
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_what_a_server_answers_is_not_called_the_disks_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """s3fs calls an answer that it does not know an I/O error."""
    import s3fs

    with serving(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        s3fs.S3FileSystem.clear_instance_cache()
        server.always["photos/x/manifest.json"] = status(code)
        with pytest.raises(InputError, match=r"s3://photos/x/manifest.json: .*; gave up after"):
            Manifest.load("s3://photos/x", Cache(tmp_path / "cache", seconds=3))
        s3fs.S3FileSystem.clear_instance_cache()
        assert server.asked["photos/x/manifest.json"] > 1
