"""Folders and files without permission, and names that are too long, through the command line: one clear line each."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rawsmall
import rawtrees

from shards.readers import LAYOUTS

# Root may read everything. So the process builds, which imports all that it needs, locks, and gives up being root.
SCRIPT = """
import contextlib, importlib, io, json, os, shutil, sys
from pathlib import Path
sys.modules["torch"] = None  # webdataset would import it
from pipeline import cli
from shards import build, inspection, readers, sheet, verify
for name in readers.LAYOUTS:
    importlib.import_module(f"shards.readers.{name}")
place = Path(sys.argv[1])
data = place / "data"
build.build(readers.find("imagefolder")(place / "raw/own", None), data, samples_per_shard=2, workers=1)
sheet.draw(verify.verify(data).manifest, place / "sheet.png")
for copy in ("locked/data", "data-open"):
    shutil.copytree(data, place / copy)
for path in place.rglob("*"):
    path.chmod(0o755)
commands, modes = json.load(sys.stdin)
"".encode("utf-8-sig")
for path, mode in modes:
    os.chmod(place / path, mode)
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
done = []
for command in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(command)
    done.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""
NONE, LISTED = 0, 0o444  # modes of a folder: closed, and open to be listed and no more
LONG = "x" * 300

# Reader, its root, what is locked, the mode, what the line names (None: what is locked), and further options.
READERS = [
    ("imagefolder", "raw/own-folder", "raw/own-folder/cat", NONE, None, ()),
    ("imagefolder", "raw/own-file", "raw/own-file/cat/1.jpg", NONE, None, ()),
    ("imagefolder", "raw/own-listed", "raw/own-listed/cat", LISTED, "raw/own-listed/cat/0.jpg", ()),
    ("food101n", "raw/food101n", "raw/food101n/meta/imagelist.tsv", NONE, None, ()),
    ("food101n", "raw/food101", "raw/food101/meta", NONE, "raw/food101/meta/test.txt", ("--split", "test")),
    ("animal10n", "raw/animal10n", "raw/animal10n/training", NONE, "raw/animal10n", ()),
    ("cifar", "raw/cifar10", "raw/cifar10/cifar-10-batches-py/data_batch_2", NONE, None, ()),
    ("cifar", "raw/cifar100", "raw/cifar100/cifar-100-python", NONE, None, ()),
    ("idx", "raw/fashion-mnist", "raw/fashion-mnist/train-labels-idx1-ubyte.gz", NONE, None, ()),
    ("csv", "raw/list", "raw/list/train.csv", NONE, None, ("--list", "@raw/list/train.csv")),
    ("csv", "raw/list", "raw/list/classes.txt", NONE, None,
     ("--list", "@raw/list/val.tsv", "--classes", "@raw/list/classes.txt")),
    ("webdataset", "raw/tars", "raw/tars/00001.tar", NONE, None, ()),
    ("clothing1m", "raw/clothing1m", "raw/clothing1m/noisy_train_key_list.txt", NONE, None, ()),
    ("webvision", "raw/webvision", "raw/webvision/info", NONE, None, ()),
]  # fmt: skip
OTHERS = [
    (("shard", "digits", "--out", "@locked/inside/out"), "@locked/inside/out"),
    (("shard", "digits", "--out", "@locked"), "@locked"),
    (("shard", "digits", "--out", f"@{LONG}"), "File name too long"),
    (("inspect", "@locked/data"), "@locked/data"),
    (("verify", "@locked/data"), "@locked/data"),
    (("verify", f"@{LONG}"), "File name too long"),
    (("inspect", "@data-open", "--sheet", "@locked/x.png"), "@locked"),
    (("inspect", "@data-open", "--sheet", "@sealed/x.png"), "no permission to write in @sealed"),
    (("inspect", "@data"), "shard-000001.tar cannot be read (Permission denied)"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may use; pytest's own is its user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="alasca-unreadable-"))
    folder.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


def fill(place: Path) -> None:
    raw = place / "raw"
    for name, make in rawsmall.MAKERS.items():
        make(raw / name)
    rawtrees.clothing1m(raw / "clothing1m", each=3, size=8)
    rawtrees.webvision(raw / "webvision", classes=2, each=1, size=8)
    for name in ("own", "own-folder", "own-file", "own-listed"):
        (raw / name / "cat").mkdir(parents=True)
        for image in range(4):
            (raw / name / f"cat/{image}.jpg").write_bytes(rawsmall.jpeg(image))
    (place / "locked/inside").mkdir(parents=True)
    (place / "sealed").mkdir()


def test_every_refusal_of_the_file_system_is_one_line(place: Path) -> None:
    fill(place)
    cases = [*OTHERS]
    modes = [("locked", NONE), ("sealed", 0o555), ("data/shard-000001.tar", NONE)]
    out = ("--out", "@out", "--workers", "1")
    for reader, root, locked, mode, named, options in READERS:
        cases.append((("shard", reader, "--root", f"@{root}", *out, *options), f"@{named or locked}"))
        modes.append((locked, mode))
    for reader in sorted(LAYOUTS.keys() - {"digits"}):
        cases.append((("shard", reader, "--root", "@locked/inside", *out), "@locked/inside"))
        cases.append((("shard", reader, "--root", f"@{LONG}", *out), "File name too long"))

    def at(word: str) -> str:
        return word.replace("@", f"{place}/")

    commands = [[at(word) for word in command] for command, _ in cases] + [["verify", str(place / "data")]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, place],
        input=json.dumps([commands, modes]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *results, (status, printed, _) = json.loads(done.stdout)
    for command, (_, named), (ended, _, err) in zip(commands, cases, results, strict=False):
        assert ended == 2, (command, err)
        assert err.count("\n") == 1 and err.startswith("alasca: ") and at(named) in err, (command, err)
        assert "ermission" in err or "too long" in err, (command, err)
    assert status == 1
    differs = [line for line in printed.splitlines() if line.startswith("DIFFERS")]
    assert differs == ["DIFFERS  shard-000001.tar cannot be read (Permission denied)"]
