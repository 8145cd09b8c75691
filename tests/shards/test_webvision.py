import os
import shutil
from pathlib import Path

import pytest
import rawtrees
from PIL import Image

from shards.build import build
from shards.errors import InputError
from shards.readers import LAYOUTS, find, webvision
from shards.readers.record import Source

CLASSES = 8
GOOGLE, VAL = "train_filelist_google.txt", "val_filelist.txt"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, rawtrees.Truth]:
    """Never to be changed: tests that damage its lists copy them."""
    root = tmp_path_factory.mktemp("raw") / "webvision"
    return root, rawtrees.webvision(root, classes=CLASSES, each=3, size=16)


@pytest.fixture
def raw(tree: tuple[Path, rawtrees.Truth], tmp_path: Path) -> Path:
    """The lists, and no images: reading needs none."""
    shutil.copytree(tree[0] / "info", tmp_path / "raw/info")
    return tmp_path / "raw"


def found(source: Source) -> dict[str, tuple[int, int]]:
    return {record.key: (record.label, record.clean_label) for record in source.records}


def refusal(root: Path | None, split: str | None, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        find("webvision")(root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("classes", [None, "1", "5", str(CLASSES)])
def test_train_is_what_the_searches_found(tree: tuple[Path, rawtrees.Truth], classes: str | None) -> None:
    root, truth = tree
    for queries, listed in [
        ("google", truth["google"]),
        ("flickr", truth["flickr"]),
        ("both", truth["google"] | truth["flickr"]),
        (None, truth["google"] | truth["flickr"]),
    ]:
        source = webvision.read(root, "train", queries=queries, classes=classes)
        count = int(classes or CLASSES)
        assert found(source) == {key: labels for key, labels in listed.items() if labels[0] < count}
        assert [record.key for record in source.records] == sorted(found(source))
        assert source.options == {"classes": count, "queries": queries or "both"}
        assert len(source.classes) == count
    assert {record.extension for record in source.records} == {"jpg"}
    assert any(record.key.endswith(".JPG") for record in source.records)
    for record in source.records[:3]:
        with Image.open(root / record.key) as image:
            assert image.format == "JPEG"


def test_val_has_true_labels_and_its_own_folder(tree: tuple[Path, rawtrees.Truth]) -> None:
    root, truth = tree
    assert found(webvision.read(root, "val")) == truth["val"]
    source = webvision.read(root, "val", classes="3")
    assert found(source) == {key: labels for key, labels in truth["val"].items() if labels[0] < 3}
    assert source.options == {"classes": 3}
    assert (root / source.records[0].key).is_file()


@pytest.mark.parametrize("layout", ["val", "folders", "kaggle"])
def test_imagenet_is_mapped_by_wnid(tree: tuple[Path, rawtrees.Truth], tmp_path: Path, layout: str) -> None:
    truth = rawtrees.imagenet(tmp_path / "imagenet", layout=layout, classes=CLASSES, size=16)["imagenet_val"]
    info = str(tree[0] / "info")
    assert found(webvision.read(tmp_path / "imagenet", "imagenet_val", info=info)) == truth
    source = webvision.read(tmp_path / "imagenet", "imagenet_val", classes="3", info=info)
    assert found(source) == {key: labels for key, labels in truth.items() if labels[0] < 3}
    assert [record.key for record in source.records] == sorted(found(source))
    assert source.options == {"classes": 3}, "no path of this machine"
    assert (tmp_path / "imagenet" / source.records[0].key).is_file()


def test_the_classes_of_all_splits_are_equal(tree: tuple[Path, rawtrees.Truth], tmp_path: Path) -> None:
    rawtrees.imagenet(tmp_path, classes=CLASSES, each=1, size=16)
    for classes in (None, "4"):
        sources = [webvision.read(tree[0], split, classes=classes) for split in ("train", "val")]
        sources.append(webvision.read(tmp_path, "imagenet_val", classes=classes, info=str(tree[0] / "info")))
        assert len({source.classes for source in sources}) == 1
    synsets = (tree[0] / "info/synsets.txt").read_text().splitlines()
    assert sources[0].classes == tuple(line.split(",")[0] for line in synsets[:4])
    assert sources[0].classes[0].endswith(" crane 0") and sources[0].classes[1].endswith(" crane 0")
    assert list(sources[0].classes) != sorted(sources[0].classes), "the list's order, not the WNIDs'"


def test_mini_webvision_as_shards(tree: tuple[Path, rawtrees.Truth], tmp_path: Path) -> None:
    source = webvision.read(tree[0], "train", queries="google", classes="2")
    manifest = build(source, tmp_path / "train", samples_per_shard=5, workers=1)
    assert {manifest.key(i): int(manifest.labels[i]) for i in range(manifest.num_samples)} == {
        key: label for key, (label, _) in tree[1]["google"].items() if label < 2
    }
    assert manifest.classes == source.classes
    assert set(manifest.clean_labels.tolist()) == {-1}
    assert manifest.source["options"] == {"classes": 2, "queries": "google"}


def test_its_options_are_those_of_the_command_line() -> None:
    options = {option.name: option for option in LAYOUTS["webvision"].options}
    assert set(options["queries"].choices or ()) == set(webvision.QUERIES)
    assert all(option.default is None for option in options.values())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("google/q0001/x.jpg 8", "label '8' is none of 0 to 7"),
        ("google/q0001/x.jpg -1", "label '-1' is none of 0 to 7"),
        ("google/q0001/x.jpg n01440764", "label 'n01440764' is none of 0 to 7"),
        ("google/q0001/x.jpg", "google/q0001/x.jpg has no label; is the list cut short?"),
        ("google/q0001/x.j", "'google/q0001/x.j' is no name of an image; is the line cut short?"),
        ("google/q0001/000.jpg 0", "google/q0001/000.jpg stands in line 1 already; keep one line"),
        ("../q0001/x.jpg 1", "leads out of the folder"),
        ("google/q0001/a b.jpg 1", "'google/q0001/a' is no name of an image"),
    ],
)
def test_a_damaged_line_is_named(raw: Path, line: str, words: str) -> None:
    number = len((raw / "info" / GOOGLE).read_text().splitlines())
    rawtrees.edit(raw / "info" / GOOGLE, number, line)
    message = refusal(raw, "train", classes="1")
    assert f"{raw / 'info' / GOOGLE} line {number}: " in message and words in message
    assert webvision.read(raw, "train", queries="flickr").records


@pytest.mark.parametrize("cut", [1, 2])
def test_a_list_cut_within_its_last_label_is_refused(raw: Path, cut: int) -> None:
    """59 would become 5 without a word; a list of which only the line end is lost looks the same."""
    file = raw / "info" / GOOGLE
    (raw / "info/synsets.txt").write_text("".join(f"n{k:08d} name {k}\n" for k in range(60)))
    file.write_text("google/q0001/1.jpg 3\ngoogle/q0002/2.jpg 59\n"[:-cut])
    last = "google/q0002/2.jpg 59"[: 22 - cut]
    message = refusal(raw, "train", queries="google")
    assert message == (
        f"{file} line 2: {last!r} has no line end, so the list was cut short; copy it again, or, if it is whole, "
        "end the line"
    )


@pytest.mark.parametrize(
    ("number", "line", "words"),
    [
        (2, "", "line 2: empty, but each line is a class"),
        (3, "n0123 crane", "line 3: 'n0123' is no WNID"),
        (3, "crane", "line 3: 'crane' is no WNID"),
        (3, "n09000000 crane", "line 3: 'n09000000' is there twice"),
    ],
)
def test_damaged_synsets_would_shift_the_labels(raw: Path, number: int, line: str, words: str) -> None:
    rawtrees.edit(raw / "info/synsets.txt", number, line)
    message = refusal(raw, "val")
    assert str(raw / "info/synsets.txt") in message and words in message


def test_a_name_is_stable_whatever_follows_it(raw: Path) -> None:
    before = webvision.read(raw, "val").classes
    rawtrees.edit(raw / "info/synsets.txt", 1, before[0].replace(" ", "\t", 1) + ", another, more")
    rawtrees.edit(raw / "info/synsets.txt", 2, before[1].split()[0])
    assert webvision.read(raw, "val").classes == (before[0], before[1].split()[0], *before[2:])


def test_counts_are_compared_with_the_published_ones(tmp_path: Path) -> None:
    info = tmp_path / "info"
    info.mkdir()
    info.joinpath("synsets.txt").write_text("".join(f"n{k:08d} name {k}\n" for k in range(1000)))
    mini = [f"google/q{k}.jpg {k % 50}\n" for k in range(65_944)]
    info.joinpath(GOOGLE).write_text("".join(mini))
    info.joinpath("train_filelist_flickr.txt").write_text("flickr/1.jpg 50\n")
    info.joinpath(VAL).write_text("".join(f"val{k}.jpg {k // 50}\n" for k in range(50_000)))
    assert webvision.read(tmp_path, "train", queries="google", classes="50").notes == ()
    assert webvision.read(tmp_path, "val", classes="50").notes == ()
    assert webvision.read(tmp_path, "val").notes == ()
    assert len(webvision.read(tmp_path, "val", classes="50").records) == 2_500
    full = webvision.read(tmp_path, "train").notes
    assert full[0] == "65,945 images; train of both has 2,439,574 of 1,000 classes"
    for queries, count, known in [("google", "65,944", "980,449"), ("flickr", "1", "1,459,125")]:
        notes = webvision.read(tmp_path, "train", queries=queries).notes
        assert notes[0] == f"{count} images; train of {queries} has {known} of 1,000 classes"
    assert 980_449 + 1_459_125 == 2_439_574
    assert full[1].startswith("949 classes have no image (n00000051 name 51, n00000052 name 52, ")

    info.joinpath(GOOGLE).write_text("".join(mini[:-1]))
    notes = webvision.read(tmp_path, "train", queries="google", classes="50").notes
    assert notes == ("65,943 images; train of google has 65,944 of 50 classes",)
    info.joinpath(VAL).write_text("val1.jpg 1\n")
    assert "1 images; val has 50,000 of 1,000 classes" in webvision.read(tmp_path, "val").notes


def test_other_synsets_are_said(tree: tuple[Path, rawtrees.Truth]) -> None:
    assert "synsets.txt has 8 classes; WebVision 1.0 has 1,000" in webvision.read(tree[0], "val").notes


def test_wrong_roots_splits_options_and_missing_lists(raw: Path, tmp_path: Path) -> None:
    info = str(raw / "info")
    assert "--root FOLDER is needed" in refusal(None, None)
    assert "no such folder" in refusal(tmp_path / "none", "val")
    assert "--split test: WebVision has the splits train, val, imagenet_val" in refusal(raw, "test")
    assert f"synsets.txt is missing, looked in {raw / 'info/info'};" in refusal(raw / "info", "train")
    assert "--queries google: only train" in refusal(raw, "val", queries="google")
    assert f"--info {info}: val has its lists in ROOT/info" in refusal(raw, "val", info=info)
    for classes in ("0", "9", "-1", "fifty", "1.5", ""):
        assert f"--classes {classes}: must be 1 to 8" in refusal(raw, "train", classes=classes)
    assert "--info FOLDER is needed, the folder that holds WebVision's synsets.txt" in refusal(raw, "imagenet_val")
    assert "--info " in refusal(raw, "imagenet_val", info=str(raw / "info/none"))
    assert f"looked in {raw};" in refusal(raw, "imagenet_val", info=str(raw))
    assert "neither class folders" in refusal(raw, "imagenet_val", info=info)
    (raw / "info" / GOOGLE).unlink()
    assert f"{GOOGLE} is missing, looked in {raw / 'info'};" in refusal(raw, None)
    (raw / "info" / VAL).write_text("")
    assert "no images of val" in refusal(raw, "val")
    (raw / "info" / VAL).unlink()
    (raw / "info" / VAL).symlink_to("/proc/self/mem")  # a file that nobody can read from its start
    assert f"{raw / 'info' / VAL}: cannot be read (" in refusal(raw, "val")


def test_class_folders_that_are_not_the_validation_set(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, root = str(raw / "info"), tmp_path / "imagenet"
    rawtrees.imagenet(root, classes=CLASSES, each=1, size=16)
    folders = [name.split()[0] for name in webvision.read(raw, "val").classes]
    (root / "val" / folders[0] / "notes.txt").write_text("x")
    (root / "val" / folders[0] / ".hidden.JPEG").write_text("x")
    source = webvision.read(root, "imagenet_val", info=info)
    assert source.passed_over == 2 and len(source.records) == CLASSES
    assert "8 images; imagenet_val has 400 of 8 classes" in source.notes
    shutil.rmtree(root / "val" / folders[5])
    next((root / "val" / folders[6]).iterdir()).unlink()
    message = refusal(root, "imagenet_val", info=info)
    assert f"no image in the folders of 2 classes ({folders[5]}, {folders[6]})" in message
    assert len(webvision.read(root, "imagenet_val", classes="5", info=info).records) == 5
    (root / "val" / folders[2] / f"{folders[2]}_10026.JPEG").write_bytes(b"x")
    assert "is one of ImageNet's training images" in refusal(root, "imagenet_val", info=info)

    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if path.name == folders[1]:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert f"{root / 'val' / folders[1]}: cannot be read (Permission denied)" in refusal(
        root, "imagenet_val", info=info
    )


def test_the_solution_file_is_read_strictly(raw: Path, tmp_path: Path) -> None:
    info, root = str(raw / "info"), tmp_path / "imagenet"
    truth = rawtrees.imagenet(root, layout="kaggle", classes=CLASSES, size=16)["imagenet_val"]
    (root / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000003.JPEG").unlink()
    assert found(webvision.read(root, "imagenet_val", info=info)) == truth, "the build says which images are missing"
    (root / "ILSVRC/Data/CLS-LOC/val").rename(root / "val")
    moved = {key.replace("ILSVRC/Data/CLS-LOC/val", "val"): labels for key, labels in truth.items()}
    assert found(webvision.read(root, "imagenet_val", info=info)) == moved
    file = root / "LOC_val_solution.csv"
    whole = file.read_text()
    for line in (
        "ILSVRC2012_val_00000001,n0",
        "ILSVRC2012_val_00000001,",
        "ILSVRC2012_val_0000",
        "x,n09000000 1 2 3 4",
    ):
        rawtrees.edit(file, 2, line)
        assert f"{file} line 2: '{line}' is not ILSVRC2012_val_NUMBER,WNID" in refusal(root, "imagenet_val", info=info)
    file.write_text(whole)
    shutil.rmtree(root / "val")
    assert "none of the images of LOC_val_solution.csv is in it" in refusal(root, "imagenet_val", info=info)
