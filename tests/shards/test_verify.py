import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from server import serving, status

from shards.build import build
from shards.cache import Cache
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers import imagefolder
from shards.tar import DamagedTar, index_tar
from shards.verify import verify


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    file = folder / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def redigest(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed table, as somebody who edits it by hand might."""
    data = (folder / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda document: document["table"].update({name: entry}))


def found(folder: Path) -> str:
    differences = verify(folder).differences
    assert all("\n" not in line for line in differences)
    return "\n".join(differences)


def test_a_sound_folder_differs_in_nothing(built: Manifest) -> None:
    report = verify(built.root)
    assert report.differences == ()
    assert report.labels is not None
    assert report.labels.clean is not None
    assert report.labels.given.tolist() == np.bincount(built.labels, minlength=3).tolist()
    assert report.labels.clean.tolist() == [20, 20, 20]
    assert report.labels.noise_rate == pytest.approx(0.3)


def test_one_flipped_bit_anywhere_in_a_tar(built: Manifest, copied: Path) -> None:
    name = built.shards[2].name
    row = built.table[2 * 7 + 1]
    payload, padding = int(row["offset"]) + 5, int(row["offset"]) + int(row["size"])
    assert padding % 512 != 0, "this sample has padding"
    header = int(row["offset"]) - 512
    for position in (payload, padding, header, header + 130, built.shards[2].bytes - 1):
        flip(copied / name, position)
        assert f"{name}: its SHA-256 is not the manifest's" in found(copied)
        flip(copied / name, position)
    assert found(copied) == ""
    flip(copied / name, header)
    assert f"{name}: bad header at byte {header:,}" in found(copied)


def test_a_flipped_label_in_a_tar_is_located(built: Manifest, copied: Path) -> None:
    name = built.shards[2].name
    position = int(built.table[14]["offset"]) - 1024  # the block before the image's header
    assert (copied / name).read_bytes()[position : position + 1].isdigit()
    flip(copied / name, position)
    assert f"{name}: 000000014 has label" in found(copied)


def test_a_truncated_tar(built: Manifest, copied: Path) -> None:
    name = built.shards[2].name
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[: len(whole) // 2])
    text = found(copied)
    assert f"{name} has {len(whole) // 2:,} bytes, {len(whole):,} in the manifest" in text
    assert "cut short" in text


def test_swapped_shards(built: Manifest, copied: Path) -> None:
    first, second = (copied / built.shards[index].name for index in (0, 1))
    first.rename(copied / "x")
    second.rename(first)
    (copied / "x").rename(second)
    text = found(copied)
    assert f"{first.name}: expected sample 000000000, found 000000007.cls" in text
    assert f"{second.name}: expected sample 000000007, found 000000000.cls" in text


def test_missing_and_extra_shards(built: Manifest, copied: Path) -> None:
    (copied / built.shards[3].name).rename(copied / "extra.tar")
    text = found(copied)
    assert f"{built.shards[3].name} is missing" in text
    assert "extra.tar is not in the manifest" in text


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("label", lambda old: (old + 1) % 3, "000000010 has label"),
        ("label", lambda old: 3, "1 labels are no class, first that of sample 10"),
        ("clean_label", lambda old: -2, "1 clean_labels are no class, first that of sample 10"),
        ("offset", lambda old: old + 512, "does not lie where the table says"),
        ("size", lambda old: old - 1, "does not lie where the table says"),
        ("shard", lambda old: old + 1, "shard numbers do not follow"),
        ("key", lambda old: old + 1000, "keys do not follow"),
        ("width", lambda old: old + 1, ""),
    ],
)
def test_an_edited_table(copied: Path, column: str, value: Callable[[int], int], word: str) -> None:
    table = np.load(copied / "samples.npy")
    table[column][10] = value(int(table[column][10]))
    np.save(copied / "samples.npy", table)
    assert "samples.npy: its SHA-256 is not the manifest's" in found(copied)
    redigest(copied, "samples.npy")
    assert word in found(copied)


def test_edited_keys(copied: Path) -> None:
    flip(copied / "keys.bin", 3)
    assert "keys.bin: its SHA-256 is not the manifest's" in found(copied)


def test_an_edited_count_in_the_manifest(built: Manifest, copied: Path) -> None:
    def one_less(document: dict) -> None:
        document["shards"][4]["samples"] -= 1

    edit(copied, one_less)
    text = found(copied)
    assert "60 rows, 59 samples in the manifest" in text
    assert f"{built.shards[4].name}: 7 samples, 6 in the manifest" in text


def test_another_count_that_adds_up(built: Manifest, copied: Path) -> None:
    def shift(document: dict) -> None:
        document["shards"][4]["samples"] -= 1
        document["shards"][5]["samples"] += 1

    edit(copied, shift)
    assert "shard numbers do not follow the manifest's counts" in found(copied)


def test_many_differences_of_one_shard_stay_few_lines(copied: Path) -> None:
    table = np.load(copied / "samples.npy")
    table["label"] = (table["label"] + 1) % 3
    np.save(copied / "samples.npy", table)
    lines = [line for line in verify(copied).differences if line.startswith("shard-000000.tar")]
    assert len(lines) == 6
    assert lines[-1].endswith("2 more differences")


def test_a_missing_table_is_a_difference(copied: Path) -> None:
    (copied / "samples.npy").unlink()
    report = verify(copied)
    assert report.differences == ("samples.npy is missing",)
    assert report.labels is None


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a shard folder"):
        verify(tmp_path)


def test_the_index_reads_what_tarfile_reads_and_nothing_less(built: Manifest, tmp_path: Path) -> None:
    import tarfile

    path = built.shard_path(0)
    with tarfile.open(path) as tar, open(path, "rb") as file:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
        assert [tuple(member) for member in index_tar(file)] == expected
    with tarfile.open(tmp_path / "links.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        link = tarfile.TarInfo("x")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with open(tmp_path / "links.tar", "rb") as file, pytest.raises(DamagedTar, match="no regular file"):
        list(index_tar(file))
    whole = path.read_bytes()
    for data in (b"", whole[:700], whole.rstrip(b"\0"), whole + b"x" * 512):
        (tmp_path / "bad.tar").write_bytes(data)
        with open(tmp_path / "bad.tar", "rb") as file, pytest.raises(DamagedTar):
            list(index_tar(file))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.store._FIRST_WAIT", 0.02)


@pytest.mark.usefixtures("quick")
def test_what_lies_at_a_server_is_compared_as_it_is_now(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    with serving(copied) as server:
        manifest = Manifest.load(server.url)
        for index in range(len(manifest.shards)):
            manifest.shard_path(index)  # the cache knows the sound ones
        assert verify(server.url).differences == ()
        flip(copied / "shard-000002.tar", 700)
        (copied / "shard-000004.tar").unlink()
        damaged = verify(server.url).differences
        assert len(damaged) == 2
        assert damaged[0].startswith("shard-000002.tar: its SHA-256 is ") and "the manifest says" in damaged[0]
        assert damaged[1] == "shard-000004.tar: it is missing"
        flip(copied / "samples.npy", 300)
        report = verify(server.url)
        assert report.labels is None
        assert report.differences[0].startswith("samples.npy: its SHA-256 is ")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_server_that_goes_away_is_no_difference(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("shards.verify.Cache", partial(Cache, seconds=0.3))
    with serving(copied) as server:
        server.always["shard-000003.tar"] = status(503)
        with pytest.raises(InputError, match=r"shard-000003.tar: the server answers with status 503; gave up"):
            verify(server.url)


def test_copies_are_counted_and_one_pair_is_named(tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    for number, name in enumerate(
        ("a/one.png", "a/two.png", "b/one.png", "a/other.png", "b/third.png", "b/fourth.png")
    ):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture({3: 9, 4: 8, 5: 8}.get(number, 7)).save(path)
    build(imagefolder.read(tmp_path / "raw", None), tmp_path / "out", workers=1, samples_per_shard=2)
    copies = verify(tmp_path / "out").copies
    assert copies is not None
    assert (copies.images, copies.mislabelled) == (3, 3)  # two of a/one, one of b/third; a/one's label is in doubt
    assert {key[0] for key in copies.pair} == {"a", "b"}
    assert set(copies.pair) < {"a/one.png", "a/two.png", "b/one.png"}


def test_a_folder_without_copies_has_none(built: Manifest) -> None:
    assert verify(built.root).copies is None


def test_every_image_is_decoded_on_request(tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    (tmp_path / "raw/a").mkdir(parents=True)
    for number in range(5):
        picture(number, 200, 150).save(tmp_path / f"raw/a/{number}.jpg")
    cut = tmp_path / "raw/a/3.jpg"
    cut.write_bytes(cut.read_bytes()[:1500])
    build(imagefolder.read(tmp_path / "raw", None), tmp_path / "out", workers=1, samples_per_shard=2)
    assert verify(tmp_path / "out").undecodable == ()
    report = verify(tmp_path / "out", decode=True)
    assert report.differences == ()
    ((key, reason),) = report.undecodable
    assert key == "a/3.jpg"
    assert "truncated" in reason
