import dataclasses
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards import noise
from shards.build import build
from shards.errors import InputError
from shards.manifest import Manifest
from shards.progress import Progress
from shards.readers import digits, imagefolder
from shards.tar import index_tar
from shards.verify import verify

SHARD = 7
Contents = Callable[[Path], dict[str, bytes]]


def given_label(key: str, manifest: Manifest) -> int:
    return manifest.classes.index(key.split("/")[0])


def again(raw: Path, out: Path, **changes: object) -> Manifest:
    """Build what the fixture `built` holds, but for `changes`."""
    options = {"seed": 3, "noise": noise.parse("symmetric:0.3"), "samples_per_shard": SHARD, "workers": 1}
    return build(imagefolder.read(raw, None), out, **(options | changes))


def test_plain_webdataset_reads_every_sample(built: Manifest, raw: Path) -> None:
    urls = [str(built.shard_path(index)) for index in range(len(built.shards))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg;jpeg;png;webp", "cls")
    samples = list(dataset)
    assert len(samples) == built.num_samples == 60
    for sample, (image, label) in enumerate(samples):
        assert label == built.labels[sample]
        with Image.open(raw / built.key(sample)) as original:
            assert np.array_equal(np.asarray(image), np.asarray(original.convert("RGB")))


def test_the_table_leads_to_the_untouched_bytes(built: Manifest, raw: Path) -> None:
    for sample, row in enumerate(built.table):
        with open(built.shard_path(row["shard"]), "rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        assert data == (raw / built.key(sample)).read_bytes()
        assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"])


def test_members_are_named_by_id(built: Manifest) -> None:
    with open(built.shard_path(1), "rb") as file:
        names = [member.name for member in index_tar(file)]
    assert names[0::2] == [f"{sample:09d}.cls" for sample in range(SHARD, 2 * SHARD)]
    assert {name.split(".")[1] for name in names[1::2]} <= {"jpg", "png", "webp"}


def test_order_is_one_global_shuffle(tmp_path: Path) -> None:
    source = digits.read(None, "train")
    manifest = build(source, tmp_path / "a", samples_per_shard=300, workers=1)
    keys = [manifest.key(sample) for sample in range(manifest.num_samples)]
    positions = {record.key: index for index, record in enumerate(source.records)}
    order = np.array([positions[key] for key in keys])
    assert np.array_equal(np.sort(order), np.arange(1437))
    assert abs(np.corrcoef(order, np.arange(1437))[0, 1]) < 0.1
    for shard in range(4):
        counts = np.bincount(manifest.labels[manifest.table["shard"] == shard], minlength=10)
        assert counts.min() >= 12
        assert counts.max() <= 55
    other = build(source, tmp_path / "b", samples_per_shard=300, workers=1, seed=1)
    assert [other.key(sample) for sample in range(20)] != keys[:20]


def test_noise_is_recorded_and_the_clean_labels_stay(built: Manifest) -> None:
    clean = [given_label(built.key(sample), built) for sample in range(60)]
    assert built.clean_labels.tolist() == clean
    assert np.count_nonzero(built.labels != built.clean_labels) == 18
    assert built.noise == {
        "kind": "symmetric",
        "rate": 0.3,
        "seed": 3,
        "convention": "excluding the true class",
        "flipped": 18,
        "realised": 0.3,
    }


def test_noise_hits_the_same_images_in_any_shards(built: Manifest, raw: Path, tmp_path: Path) -> None:
    other = again(raw, tmp_path / "out", samples_per_shard=50)
    labels = {built.key(sample): built.labels[sample] for sample in range(60)}
    assert labels == {other.key(sample): other.labels[sample] for sample in range(60)}


def test_without_noise_the_clean_labels_of_a_folder_are_unknown(raw: Path, tmp_path: Path) -> None:
    manifest = again(raw, tmp_path / "out", noise=None)
    assert manifest.noise is None
    assert set(manifest.clean_labels.tolist()) == {-1}
    assert manifest.labels.tolist() == [given_label(manifest.key(sample), manifest) for sample in range(60)]


def test_bytes_depend_on_neither_workers_nor_place_nor_times(
    built: Manifest, raw: Path, tmp_path: Path, contents: Contents
) -> None:
    elsewhere = tmp_path / "copy of raw"
    shutil.copytree(raw, elsewhere, copy_function=shutil.copyfile)
    for file in elsewhere.rglob("*.*"):
        os.utime(file, (1, 1))
    again(elsewhere, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(built.root)
    assert ".build" not in os.listdir(built.root)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**32}, "--seed"),
        ({"resize": 0}, "--resize 0"),
        ({"samples_per_shard": 0}, "--samples-per-shard 0"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_bad_values_write_nothing(raw: Path, tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        again(raw, tmp_path / "out", **changes)
    assert os.listdir(tmp_path) == []


def test_bad_folders_write_nothing(raw: Path, tmp_path: Path, contents: Contents) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    before = contents(tmp_path), contents(raw)
    for out, words in [
        (tmp_path / "mine", r"holds other files \(thesis\.txt\)"),
        (tmp_path / "mine/thesis.txt", "is a file"),
        (tmp_path / "mine/thesis.txt/deeper", "is a file"),
        (raw / "shards", "lies inside --root"),
        ("http://server/train", "--out http://server/train: nothing is written over http"),
        ("s3:/bucket/train", "a URL has two slashes"),
        ("pipe:cat", "run a command"),
    ]:
        with pytest.raises(InputError, match=words):
            again(raw, out)
    assert (contents(tmp_path), contents(raw)) == before


def test_shrinks_on_request(raw: Path, tmp_path: Path) -> None:
    manifest = again(raw, tmp_path / "out", resize=32)
    shrunk = 0
    for sample, row in enumerate(manifest.table):
        with open(manifest.shard_path(row["shard"]), "rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        original = (raw / manifest.key(sample)).read_bytes()
        before = Image.open(io.BytesIO(original))
        after = Image.open(io.BytesIO(data))
        assert after.size == (row["width"], row["height"])
        assert after.format == before.format
        if min(before.size) > 32:
            shrunk += 1
            assert min(after.size) == 32
        else:
            assert data == original
    assert 0 < shrunk < 60
    assert verify(tmp_path / "out").differences == ()


def test_broken_images_are_kept_counted_and_named(raw: Path, tmp_path: Path) -> None:
    root = shutil.copytree(raw, tmp_path / "raw")
    broken = sorted(root.rglob("*.jpg"))[:7]
    for file in broken:
        file.write_bytes(b"<html>404</html>")
    broken[0].write_bytes(b"")
    manifest = again(root, tmp_path / "out")
    assert manifest.source["counts"] == {"images": 60, "passed_over": 0, "missing": 0, "unreadable": 7}
    names = {str(file.relative_to(root)) for file in broken}
    assert len(manifest.source["unreadable"]) == 5
    assert {bad["key"] for bad in manifest.source["unreadable"]} < names
    unsized = [manifest.key(sample) for sample in np.flatnonzero(manifest.table["width"] == 0)]
    assert set(unsized) == names
    assert np.array_equal(manifest.table["width"] == 0, manifest.table["height"] == 0)
    assert verify(tmp_path / "out").differences == ()


def test_missing_images_are_counted_and_named_or_left_out(raw: Path, tmp_path: Path) -> None:
    root = shutil.copytree(raw, tmp_path / "raw")
    source = imagefolder.read(root, None)
    lost = [record.key for record in source.records[3:40:6]]
    for key in lost:
        (root / key).unlink()
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        build(source, out, workers=1, allow_missing=0.1)
    message = str(caught.value)
    assert f"{root}: 7 of 60 images are missing ({', '.join(lost[:5])}, ...)" in message
    assert message.endswith("--allow-missing 0.1167") and not out.exists()

    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    manifest = build(source, out, workers=1, allow_missing=0.1167, progress=progress)
    assert said == [f"{root}: left out 7 images that are not there"]
    assert manifest.num_samples == 53 and manifest.source["counts"]["missing"] == 7
    left = {record.key: record.label for record in source.records if record.key not in lost}
    assert {manifest.key(i): int(manifest.labels[i]) for i in range(53)} == left
    assert verify(out).differences == ()


def test_nothing_there_is_another_message(raw: Path, tmp_path: Path) -> None:
    source = dataclasses.replace(imagefolder.read(raw, None), root=tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"none of its 60 images is there .* right folder\?"):
        build(source, tmp_path / "out", workers=1, allow_missing=0.9)


def test_a_link_to_nothing_is_a_missing_image(raw: Path, tmp_path: Path) -> None:
    root = shutil.copytree(raw, tmp_path / "raw")
    (root / "bird/gone.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(InputError, match=r"1 of 61 images is missing \(bird/gone\.jpg\)"):
        build(imagefolder.read(root, None), tmp_path / "out", workers=1)


def test_an_image_named_twice_is_refused(raw: Path, tmp_path: Path) -> None:
    source = imagefolder.read(raw, None)
    again = dataclasses.replace(source, records=sorted([*source.records, source.records[7]._replace(label=0)]))
    with pytest.raises(InputError, match="1 image is named twice") as caught:
        build(again, tmp_path / "out", workers=1)
    assert source.records[7].key in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_no_text_is_named(raw: Path, tmp_path: Path) -> None:
    root = shutil.copytree(raw, tmp_path / "raw")
    with open(os.path.join(os.fsencode(root), b"bird", b"caf\xe9.jpg"), "wb"):
        pass
    with pytest.raises(InputError, match=r"caf\\udce9.*not valid UTF-8"):
        again(root, tmp_path / "out")
    assert os.listdir(tmp_path) == ["raw"]
