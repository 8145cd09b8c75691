import dataclasses
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import commands, headline
from shards.build import build
from shards.draws import Stream, permutation, words
from shards.errors import InputError
from shards.manifest import Manifest
from shards.noise import KINDS, Noise, apply, parse, recorded
from shards.plan import make
from shards.progress import Progress
from shards.readers.record import Record, Source

LABELS = (np.arange(20_000) % 10).astype(np.int32)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEXTS = {kind: f"{kind}:0.4" for kind in KINDS if kind != "matrix"} | {"matrix": "matrix:confusion.csv"}


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def source(labels: np.ndarray, classes: tuple[str, ...] = CIFAR10, clean: int = -1) -> Source:
    """Grey images of 8x8 pixels, all different; `clean` is the known true label of the last one."""
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8), dtype=np.uint8)
    encoded = [png(image) for image in images]
    records = [
        Record(f"{i:05d}.png", "png", label, clean if i == len(labels) - 1 else -1, encoded[i % 100])
        for i, label in enumerate(labels.tolist())
    ]
    return Source("test", "train", classes, records)


def noisy(text: str, labels: np.ndarray = LABELS[:100], seed: int = 0) -> np.ndarray:
    return apply(parse(text), source(labels), seed, Progress())


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One noise of every kind; the matrix calls class k sometimes k + 1 and k + 2, and lies in the current folder."""
    rows = 0.6 * np.eye(10) + 0.3 * np.roll(np.eye(10), 1, axis=1) + 0.1 * np.roll(np.eye(10), 2, axis=1)
    np.savetxt(tmp_path / "confusion.csv", rows, fmt="%.3f", delimiter=",")
    monkeypatch.chdir(tmp_path)
    return TEXTS


def test_symmetric_labels_are_pinned() -> None:
    """Any other value here would change every dataset ever built with it."""
    after = noisy("symmetric:0.4", LABELS)
    assert after[:20].tolist() == [0, 1, 8, 3, 4, 5, 2, 9, 8, 8, 3, 1, 2, 9, 2, 0, 6, 7, 5, 6]
    digest = hashlib.sha256(after.astype("<i4").tobytes()).hexdigest()
    assert digest == "0c45791df0f00953948a4723a16179522078917188a766cdc8193a2789a82141"


def test_draws_are_pinned() -> None:
    """Philox4x64-10 is a published function; any other value here would change every dataset ever built."""
    assert words(3, 0, Stream.ORDER).tolist() == [15003734204198539638, 13859618513508960101, 12389738016430293093]
    assert permutation(8, 0, Stream.ORDER).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert not np.array_equal(words(3, 0, Stream.ORDER), words(3, 0, Stream.NOISE_CHOICE))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_function_of_the_seed_and_leaves_the_records_alone(kind: str, texts: dict[str, str]) -> None:
    before = source(LABELS[:200])
    first = apply(parse(texts[kind]), before, 0, Progress())
    assert first.dtype == np.int32 and first.min() >= 0 and first.max() < 10
    assert [record.label for record in before.records] == LABELS[:200].tolist()
    assert np.array_equal(first, noisy(texts[kind], LABELS[:200], seed=0))
    assert not np.array_equal(first, noisy(texts[kind], LABELS[:200], seed=1))
    assert 0.1 < np.mean(first != LABELS[:200]) < 0.6


# Of 100 images, 10 a class: 40 drawn; of five classes 4 each; of ten classes 4 each (the matrix too).
@pytest.mark.parametrize(
    ("kind", "flipped"),
    [
        ("symmetric", 40),
        ("symmetric-all", range(28, 41)),
        ("asymmetric", 20),
        ("pair", 40),
        ("matrix", 40),
        ("instance", range(20, 61)),
    ],
)
def test_a_build_records_every_kind_and_knows_it_again(
    kind: str, flipped: int | range, texts: dict[str, str], tmp_path: Path
) -> None:
    noise, out = parse(texts[kind]), tmp_path / "out"
    manifest = build(source(LABELS[:100]), out, seed=5, noise=noise, samples_per_shard=30, workers=1)
    expected = noisy(texts[kind], seed=5)
    keys = [int(manifest.key(sample).removesuffix(".png")) for sample in range(100)]
    assert manifest.labels.tolist() == expected[keys].tolist()
    assert manifest.clean_labels.tolist() == LABELS[keys].tolist()

    wrong = int((expected != LABELS[:100]).sum())
    assert wrong in flipped if isinstance(flipped, range) else wrong == flipped
    assert manifest.noise is not None
    amount = {"sha256": noise.matrix.sha256} if noise.matrix else {"rate": 0.4}
    rest = {"seed": 5, "convention": KINDS[kind], "flipped": wrong, "realised": wrong / 100}
    assert manifest.noise == {"kind": kind, **amount, **rest}
    assert recorded(manifest.noise) == noise.text
    assert f"{kind} noise on {wrong:.2f}% of the labels" in headline.describe(manifest)
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert "confusion.csv" not in (out / "manifest.json").read_text()

    written = (out / "manifest.json").stat().st_mtime_ns
    build(source(LABELS[:100]), out, seed=5, noise=parse(texts[kind]), samples_per_shard=30, workers=1)
    assert (out / "manifest.json").stat().st_mtime_ns == written
    for other in (parse("symmetric:0.3"), None):
        asked = other.text if other else None
        with pytest.raises(InputError, match=f"noise {noise.text} there, {asked} asked"):
            build(source(LABELS[:100]), out, seed=5, noise=other, samples_per_shard=30, workers=1)


def test_another_matrix_is_another_build_and_another_layout_is_not(texts: dict[str, str], tmp_path: Path) -> None:
    asked = parse("matrix:confusion.csv")
    build(source(LABELS[:100]), tmp_path / "out", noise=asked, workers=1)
    rows = np.loadtxt("confusion.csv", delimiter=",")
    Path("again.json").write_text(str(rows.tolist()))
    assert parse("matrix:again.json").text == asked.text
    build(source(LABELS[:100]), tmp_path / "out", noise=parse("matrix:again.json"), workers=1)
    np.savetxt("confusion.csv", rows.T, fmt="%.3f", delimiter=",")
    other = parse("matrix:confusion.csv")
    with pytest.raises(InputError, match=f"noise {asked.text} there, {other.text} asked"):
        build(source(LABELS[:100]), tmp_path / "out", noise=other, workers=1)


def test_a_finished_folder_needs_no_second_look_at_the_images(tmp_path: Path) -> None:
    class Counting(Progress):
        counted = 0

        def advance(self, count: int) -> None:
            self.counted += count

    for expected in (400, 100):  # looked at, to find the scale, for the labels, and to write; then looked at
        progress = Counting()
        build(source(LABELS[:100]), tmp_path / "o", noise=parse("instance:0.4"), workers=1, progress=progress)
        assert progress.counted == expected
    with pytest.raises(InputError, match="instance:0.4 there"):
        build(source(LABELS[:100]), tmp_path / "o", noise=parse("instance:0.5"), workers=1, progress=progress)
    assert progress.counted == 200


def test_shards_are_used_again_with_the_same_labels_only() -> None:
    """Labels that depend on pixels may differ where the decoder does, with equal files and settings."""
    noise, data = parse("instance:0.4"), source(LABELS[:100])
    plans = [make(data, 0, noise, None, 30, 0.0, Progress()).with_noise(noise, Progress()) for _ in range(2)]
    assert plans[0].build == plans[1].build
    other = dataclasses.replace(plans[0], labels=np.roll(plans[0].labels, 1))
    assert other.settings == plans[0].settings
    assert other.build != plans[0].build


@pytest.mark.parametrize("kind", KINDS)
def test_noise_on_labels_that_are_wrong_already_is_refused(kind: str, texts: dict[str, str], tmp_path: Path) -> None:
    labels = LABELS[:100]
    with pytest.raises(InputError, match=rf"--noise {kind}: 1 of 1 labels .* wrong already \(00099\.png\)"):
        build(source(labels, clean=3), tmp_path / "out", noise=parse(texts[kind]), workers=1)
    assert not (tmp_path / "out").exists()
    manifest = build(source(labels, clean=int(labels[-1])), tmp_path / "out", noise=parse(texts[kind]), workers=1)
    assert manifest.clean_labels.min() == 0  # a clean label that agrees is no obstacle; the rest count as true


def test_mistakes_of_the_classes_write_nothing(texts: dict[str, str], tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(InputError, match=f"--noise {kind}: the dataset has one class only"):
            build(source(np.zeros(4, dtype=int), ("cat",)), tmp_path / "out", noise=parse(texts[kind]), workers=1)
    three = source(np.arange(9) % 3, ("a", "b", "c"))
    with pytest.raises(InputError, match=r"matrix:confusion\.csv': 10 rows, but the dataset has 3 classes.*: a, b, c"):
        build(three, tmp_path / "out", noise=parse(texts["matrix"]), workers=1)
    with pytest.raises(InputError, match=r"asymmetric: the classes \(a, b, c\).*pair:RATE.*matrix:FILE"):
        build(three, tmp_path / "out", noise=parse(texts["asymmetric"]), workers=1)
    assert os.listdir(tmp_path) == ["confusion.csv"]


def test_reads_the_text_form(texts: dict[str, str]) -> None:
    assert parse("symmetric:0.4") == Noise("symmetric", 0.4)
    for kind, text in texts.items():
        noise = parse(text)
        assert noise.kind == kind
        if kind != "matrix":
            assert noise.text == text == f"{kind}:{noise.rate}"
    assert noise.matrix is not None and noise.text == f"matrix:{noise.matrix.sha256[:16]}"


@pytest.mark.parametrize(
    ("text", "words_expected"),
    [
        ("symetric:0.4", ["'symetric'", "did you mean 'symmetric', as in 'symmetric:0.4'", *KINDS]),
        ("asym:0.4", ["did you mean 'asymmetric'"]),
        ("instant:0.4", ["did you mean 'instance'"]),
        ("matric:x.csv", ["did you mean 'matrix', as in 'matrix:confusion.csv'"]),
        ("pairs:0.4", ["did you mean 'pair'"]),
        ("symmetric", ["''", "symmetric:0.4"]),
        ("symmetric:lots", ["'lots'", "not a number"]),
        ("pair:1", ["below 1"]),
        ("asymmetric:-0.1", ["at least 0", "as in 'asymmetric:0.4'"]),
        ("instance:nan", ["at least 0"]),
        ("instance:0", ["0.08 on average", "leave the noise out"]),
        ("matrix", ["no file", "matrix:confusion.csv"]),
        ("matrix:0.4", ["cannot read 0.4 (No such file or directory)"]),
        ("", ["noise '': no kind", "symmetric, symmetric-all, asymmetric, pair, matrix, instance"]),
        (":0.4", ["noise ':0.4': no kind", "'symmetric:0.4'"]),
    ],
)
def test_refuses_other_texts(text: str, words_expected: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert all(word in str(caught.value) for word in words_expected)
    assert "\n" not in str(caught.value)


def test_help_lists_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    commands.register(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["shard", "digits", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert all(kind in printed.split("make labels wrong", 1)[1] for kind in KINDS)


def test_manifests_of_symmetric_noise_are_as_before(built: Manifest) -> None:
    assert list(built.noise or {}) == ["kind", "rate", "seed", "convention", "flipped", "realised"]
