"""The matrix of forward correction: given, counted or estimated, and on its way into the loss."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import trained

from pipeline.cli import main
from pipeline.config import Config
from pipeline.data.augment import eval_view
from pipeline.data.decode import decode
from pipeline.data.reader import ShardReader
from pipeline.method.forward import ForwardCorrection
from pipeline.method.outputs import Outputs
from pipeline.train import anchors, dist
from pipeline.train.bad import BadImages
from pipeline.train.dist import World
from pipeline.train.evaluate import Answers
from pipeline.train.forgetrate import known_forget_rate
from pipeline.train.inputs import Inputs
from pipeline.train.loop import Training
from pipeline.train.noisematrix import noise_matrix
from pipeline.train.stored import StoredRun
from shards.build import build
from shards.errors import InputError
from shards.manifest import Manifest
from shards.readers import find
from tests.conftest import make_raw

Configured = Callable[..., Config]


def corrected(configured: Configured, matrix: str, **changes: object) -> Config:
    return configured(method__base="forward", method__aux="none", method__forward={"matrix": matrix}, **changes)


def counted(given: np.ndarray, clean: np.ndarray) -> np.ndarray:
    return np.array([[np.mean(given[clean == i] == j) for j in range(3)] for i in range(3)])


def loss_is_of(training: Training, t: np.ndarray) -> bool:
    assert isinstance(training.objective.base, ForwardCorrection)
    z, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1])
    found = training.objective.base(Outputs.of(z, (), y, torch.arange(5), torch.ones(5, dtype=torch.bool), 0))
    wanted = -np.log((z.double().softmax(1).numpy() @ t)[np.arange(5), y.numpy()])
    return np.allclose(found.numpy(), wanted, rtol=1e-5)


def test_a_known_matrix_is_counted_from_the_labels_in_use(
    configured: Configured, world: World, photos: Manifest, tmp_path: Path
) -> None:
    config = corrected(configured, "known")
    training = Training(config, Inputs.open(config, 1), world)
    whole = counted(photos.labels, photos.clean_labels)
    assert 0.1 < 1 - whole.diagonal().mean() < 0.3
    assert loss_is_of(training, whole)
    # Other labels, a part: the samples and the labels of this run.
    overlay = tmp_path / "labels.csv"
    overlay.write_text("id,label\n" + "".join(f"{i},class-2\n" for i in range(0, 120, 7)))
    config = corrected(configured, "known", data__relabel=str(overlay), data__subset=0.5, run__name="part")
    inputs = Inputs.open(config, 1)
    ids = inputs.selection.ids
    assert len(ids) == 60
    matrix = noise_matrix(config, inputs.manifest, inputs.selection)
    assert matrix is not None
    np.testing.assert_allclose(matrix.values, counted(inputs.selection.labels[ids], photos.clean_labels[ids]))


def test_a_file_is_part_of_the_run_whatever_its_name(configured: Configured, world: World, tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.json"
    first.write_text("0.8,0.1,0.1\n0.2,0.7,0.1\n0.1,0,0.9\n")
    second.write_text("[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0, 0.9]]")
    training = trained(corrected(configured, str(first), run__max_steps=2), world)
    assert loss_is_of(training, np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0, 0.9]]))
    assert trained(corrected(configured, str(second), run__resume="auto", run__max_steps=3), world).start == 2
    second.write_text("[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0, 0.8]]")
    with pytest.raises(InputError, match=r"is of another run: method\.forward\.matrix \("):
        trained(corrected(configured, str(second), run__resume="auto"), world)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"matrix = '.*m\.csv': cannot read .* \(No such file"),
        ("1,0\n0,1\n", r"2 rows, but .* has 3 classes; .* in this order: class-0, class-1, class-2"),
        ("1,0,0\n0,1,0\n0,0.7,0.2\n", r"matrix = '.*m\.csv': row 3 sums to 0.9"),
        ("0,1,0\n0,1,0\n0,0.5,0.5\n", r"no class is ever labelled class-0 \(column 1 is 0\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    configured: Configured, tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        Inputs.open(corrected(configured, str(tmp_path / "m.csv")), 1)
    assert "\n" not in str(caught.value)


def test_balanced_epochs_have_noise_of_their_own(configured: Configured, tmp_path: Path) -> None:
    """300 of one class, of which 60 are labelled as the other, and 20 of that one: epochs draw both labels alike."""
    raw = tmp_path / "raw"
    path = make_raw(raw, classes=1, each=1) / "class-0/0000.jpg"
    rows = [("a", "a")] * 240 + [("b", "a")] * 60 + [("b", "b")] * 20
    lines = [f"{n}.jpg,{label},{true}" for n, (label, true) in enumerate(rows)]
    for n in range(len(rows)):
        shutil.copyfile(path, raw / f"{n}.jpg")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,clean", *lines]) + "\n")
    built = build(find("csv")(raw, None, list=str(tmp_path / "list.csv")), tmp_path / "shards", workers=1)
    data = {"data__train": str(built.root), "eval__test": {"data": str(built.root)}}
    for balance, wanted, rate in (
        (False, [[0.8, 0.2], [0, 1]], 60 / 320),
        # Of two draws, one is labelled a; of those labelled b, 60 in 80 are a.
        (True, [[1 / 1.75, 0.75 / 1.75], [0, 1]], 0.375),
        (160, [[1 / 1.75, 0.75 / 1.75], [0, 1]], 0.375),
        # More than there are of b: 160 of a to 80 of b, and all there are.
        (240, [[160 / 220, 60 / 220], [0, 1]], 0.25),
        (320, [[0.8, 0.2], [0, 1]], 60 / 320),
    ):
        config = corrected(configured, "known", data__balance=balance, **data)
        inputs = Inputs.open(config, 1)
        matrix = noise_matrix(config, inputs.manifest, inputs.selection)
        assert matrix is not None
        np.testing.assert_allclose(matrix.values, wanted, rtol=1e-12)
        pair = configured(method__pair="coteaching", data__balance=balance, **data)
        assert known_forget_rate(pair, inputs.manifest, inputs.selection) == pytest.approx(rate)


def test_a_label_that_nothing_has_needs_no_column(configured: Configured, photos: Manifest, tmp_path: Path) -> None:
    lines = [f"{i},{int(photos.labels[i]) % 2}" for i in range(photos.num_samples)]
    (tmp_path / "labels.csv").write_text("\n".join(["id,label", *lines]) + "\n")
    config = corrected(configured, "known", data__relabel=str(tmp_path / "labels.csv"))
    inputs = Inputs.open(config, 1)
    matrix = noise_matrix(config, inputs.manifest, inputs.selection)
    assert matrix is not None and not matrix.values[:, 2].any()


def test_without_clean_labels_none_is_known(configured: Configured, clean_photos: Manifest) -> None:
    assert (clean_photos.clean_labels < 0).all()
    config = corrected(configured, "known", data__train=str(clean_photos.root))
    with pytest.raises(InputError, match="knows no clean labels to count from; give a file or an estimate"):
        Inputs.open(config, 1)
    with pytest.raises(InputError, match="base = 'forward' needs forward.matrix: a file of K rows"):
        configured(method__base="forward")


@pytest.fixture
def plain(configured: Configured, world: World) -> Training:
    return trained(configured(run__name="plain", method__aux="none", optim__epochs=3, eval__every=3), world)


def answers_by_hand(training: Training, manifest: Manifest) -> np.ndarray:
    """Softmax of each image, one at a time, float64 [N, K]."""
    reader, found = ShardReader(manifest), []
    training.engine.eval()
    for sample_id in range(manifest.num_samples):
        image = eval_view(decode(reader.image_bytes(sample_id), 10**6), 16, "resized_crop")
        with torch.no_grad():
            main, _ = training.engine.forward(torch.from_numpy(image)[None])
        found.append(main.double().softmax(dim=1)[0].numpy())
    return np.array(found)


def test_the_estimate_is_the_papers(
    configured: Configured, plain: Training, photos: Manifest, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equations 12 and 13, and the percentile in their place: over all images in one go, with numpy."""
    p, run = answers_by_hand(plain, photos), StoredRun(plain.config.folder)
    monkeypatch.setattr(anchors, "_TOGETHER", 20)  # so that what is left is ranked several times over
    for percentile, skipped in ((100.0, 0), (97.0, 3), (90.0, 12)):
        wanted = np.array([p[np.argsort(-p[:, i], kind="stable")[skipped]] for i in range(3)])
        found = run.noise_matrix(photos, world, percentile=percentile)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(run.noise_matrix(photos, world), p[p.argmax(axis=0)], atol=1e-5)
    # Of two ranks: each has ranked its own half.
    shares: list[object] = []
    monkeypatch.setattr(dist, "gather", lambda item: [shares.append(item), shares][1])
    for rank in (0, 1):
        half = World(rank, 2, rank, world.device)
        answers = Answers(run.network(half), photos, run.config, half, BadImages(photos, 0.0))
        found = anchors.anchors(answers, 97.0)
    np.testing.assert_allclose(p[found], [p[np.argsort(-p[:, i])[3]] for i in range(3)], atol=1e-5)


def test_an_estimate_goes_from_the_command_line_into_a_run(
    configured: Configured,
    plain: Training,
    photos: Manifest,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dist, "start", lambda timeout: world)
    monkeypatch.setattr(dist, "stop", lambda: None)
    file = tmp_path / "noise.csv"
    command = ["eval", str(plain.config.folder), "--data", str(photos.root), "--noise-matrix", str(file)]
    assert main([*command, "--anchor-percentile", "97"]) == 0
    config = corrected(configured, str(file), optim__epochs=1)
    training = trained(config, world)
    estimate = StoredRun(plain.config.folder).noise_matrix(photos, world, percentile=97.0)
    assert loss_is_of(training, estimate)
    np.testing.assert_allclose(estimate.sum(axis=1), 1.0)
    assert main([*command, "--anchor-percentile", "0"]) == 2
    assert main(["eval", str(config.folder), *command[2:]]) == 2
    assert main([*command[:-1], str(tmp_path / "nowhere" / "noise.csv")]) == 2
    lines = capsys.readouterr().err.splitlines()
    for words in ("--anchor-percentile 0: must be above 0", "predicts true classes and not labels", "no such folder"):
        assert sum(words in line for line in lines) == 1
