import argparse
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from shards import commands, readers
from shards.errors import InputError
from shards.manifest import Manifest
from shards.progress import Lines


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
    assert f"{out}: 360 images, 10 classes, 1 shards, 0.7 MB, symmetric noise on 40.00% of the labels" in printed.out
    assert printed.out.count("\n") == 1
    assert printed.err == ""
    assert alasca(*command) == 0
    assert "nothing to do" in capsys.readouterr().err

    assert alasca("verify", out) == 0
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
    assert "passed over 1 files that are no images (list.txt)" in printed.err
    assert "WARNING  2 images cannot be read" in printed.out
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.source["seed"], manifest.source["resize"], len(manifest.shards)) == (5, 8, 2)


def test_mistakes_are_named_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, options in [
        ("symmetric", ("digits", "--noise", "gaussian:0.4")),
        ("leave --root out", ("digits", "--root", tmp_path)),
        ("needs --root", ("imagefolder",)),
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


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    lines = Lines(first=2, every=10)
    lines.start(1000, "images")
    for now in (101.0, 102.0, 103.0, 112.0, 113.0):  # noqa: B007 (read by the clock)
        lines.advance(100)
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["200 of 1,000 images, 100/s, 8 s left", "400 of 1,000 images, 33/s, 18 s left"]
