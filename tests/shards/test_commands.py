import argparse
import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rawtrees

from shards import commands, readers
from shards.errors import InputError
from shards.manifest import Manifest
from shards.progress import Lines, if_long


def alasca(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="alasca")
    commands.register(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    status: int = args.run(args)
    return status


def test_shards_the_digits_and_verifies_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits/test"
    command = ("shard", "digits", "--split", "test", "--noise", "symmetric:0.4", "--out", out, "--workers", 1)
    assert alasca(*command) == 0
    printed = capsys.readouterr()
    assert f"{out}: 360 images, 10 classes, 1 shard, 0.7 MB, symmetric noise on 40.00% of the labels" in printed.out
    assert printed.out.count("\n") == 1
    assert not printed.err or printed.err == "digits: reading the list of images\n"  # on a slow machine
    assert alasca(*command) == 0
    assert "nothing to do" in capsys.readouterr().err

    assert alasca("verify", out, "--decode") == 0
    printed = capsys.readouterr()
    assert "40.00% of the given labels are wrong" in printed.out
    assert "every byte is as the manifest says" in printed.out
    assert len([line for line in printed.out.splitlines() if line.split()[-1:] in [[str(d)] for d in range(10)]]) == 10
    with open(out / "shard-000000.tar", "r+b") as file:
        file.write(b"9")
    assert alasca("verify", out) == 1
    printed = capsys.readouterr()
    assert "DIFFERS  shard-000000.tar: its SHA-256 is not the manifest's" in printed.out


def test_shards_a_folder_and_warns(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "raw"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "1.jpg").write_bytes(b"no image")
    (root / "list.txt").write_text("x")
    options = ("--seed", 5, "--resize", 8, "--samples-per-shard", 1, "--workers", 1)
    assert alasca("shard", "imagefolder", "--root", root, "--out", tmp_path / "out", *options) == 0
    printed = capsys.readouterr()
    assert "passed over 1 file other than images (list.txt)" in printed.err
    assert "WARNING  2 images cannot be read" in printed.out
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.source["seed"], manifest.source["resize"], len(manifest.shards)) == (5, 8, 2)


def test_mistakes_are_named_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, options in [
        ("symmetric", ("digits", "--noise", "gaussian:0.4")),
        ("leave --root out", ("digits", "--root", tmp_path / "raw")),
        ("--root FOLDER is needed", ("imagefolder",)),
        ("no such folder", ("imagefolder", "--root", tmp_path / "none")),
    ]:
        with pytest.raises(InputError, match=words):
            alasca("shard", *options, "--out", out)
    for options in (
        ["shard", "mnist", "--out", out],
        ["shard", "digits"],
        ["verify"],
        ["shard", "digits", "--seed", "x"],
    ):
        with pytest.raises(SystemExit) as caught:
            alasca(*options)
        assert caught.value.code == 2
    assert not out.exists()


def test_options_are_looked_at_before_the_raw_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(name: str) -> None:
        raise AssertionError("the reader was asked for")

    monkeypatch.setattr(readers, "find", never)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("x")
    root = ("shard", "imagefolder", "--root", tmp_path / "raw")
    for words, options in [
        ("--seed -1", ("--seed", -1)),
        ("--workers 0", ("--workers", 0)),
        ("--samples-per-shard 0", ("--samples-per-shard", 0)),
        ("--allow-missing 1.0", ("--allow-missing", 1)),
        ("--allow-missing nan", ("--allow-missing", "nan")),
        ("--resize 0", ("--resize", 0)),
        ("noise 'none'", ("--noise", "none")),
        (r"holds other files \(thesis.txt\)", ("--out", tmp_path / "full")),
        ("lies inside --root", ("--out", tmp_path / "raw/shards")),
    ]:
        with pytest.raises(InputError, match=words):
            alasca(*root, "--out", tmp_path / "out", *options)


def test_missing_images_of_a_list_are_left_out_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = rawtrees.clothing1m(tmp_path / "raw", each=3, size=8)["val"]
    gone = sorted(truth)[4]
    (tmp_path / "raw" / gone).unlink()
    out = tmp_path / "out"
    command = ("shard", "clothing1m", "--root", tmp_path / "raw", "--split", "val", "--out", out, "--workers", 1)
    with pytest.raises(InputError) as caught:
        alasca(*command)
    assert str(caught.value) == (
        f"--root {tmp_path / 'raw'}: 1 of 14 images is missing ({gone}); bring them, or leave them out with "
        "--allow-missing 0.0715"
    )
    capsys.readouterr()
    assert alasca(*command, "--allow-missing", "0.0715") == 0
    printed = capsys.readouterr()
    assert f"{tmp_path / 'raw'}: left out 1 image that is not there" in printed.err
    assert f"{out}: 13 images, 14 classes, 1 shard, " in printed.out
    manifest = Manifest.load(out)
    assert manifest.source["counts"]["missing"] == 1
    found = {manifest.key(i): (int(manifest.labels[i]), int(manifest.clean_labels[i])) for i in range(13)}
    assert found == {key: labels for key, labels in truth.items() if key != gone}


def test_help_shows_an_example_and_every_reader(capsys: pytest.CaptureFixture[str]) -> None:
    for command, example in [("shard", "alasca shard digits --split train"), ("verify", "alasca verify data")]:
        with pytest.raises(SystemExit) as caught:
            alasca(command, "--help")
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert example in printed
        assert command == "verify" or all(name in printed for name in readers.LAYOUTS)


@pytest.mark.parametrize("name", readers.LAYOUTS)
def test_every_reader_is_there_and_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [option.name for option in readers.LAYOUTS[name].options]
    assert list(inspect.signature(readers.find(name)).parameters) == ["root", "split", *wanted]
    with pytest.raises(SystemExit) as caught:
        alasca("shard", name, "--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"--{option.replace('_', '-')}" in printed for option in ("root", "noise", *wanted))


def test_imports_are_light() -> None:
    """The command line starts at once, and no worker process ever loads torch."""
    heavy = "{'numpy', 'torch', 'webdataset', 'sklearn', 'PIL', 'tqdm'}"
    code = (
        f"import sys, shards.commands; print(sorted({heavy} & set(sys.modules)))\n"
        "import shards.build, shards.verify; print({'torch', 'webdataset', 'sklearn'} & set(sys.modules))\n"
        "import multiprocessing as m, shards.worker as w; a, b = m.Pipe(False); w.start(a)\n"
        "import io; w.open_writer(io.BytesIO()); print(sys.modules['torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "set()", "None"]


def test_what_takes_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with if_long(Lines(), "soon done", seconds=60):
        pass
    assert capsys.readouterr().err == ""
    with if_long(Lines(), "still reading", seconds=0.01):
        until = time.monotonic() + 30
        while not (said := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.01)
    assert said == "still reading\n"


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lines = Lines(first=2, every=10)
    lines.start(1000, "images")
    for now in (101.0, 102.0, 103.0, 112.0, 113.0):  # noqa: B007 (read by the clock)
        lines.advance(100)
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["200 of 1,000 images, 100/s, 8 s left", "400 of 1,000 images, 33/s, 18 s left"]
