"""What README and docs tell people to type works: every shell block is run, or says why it is not.

Training is made small on the way (a tiny network and images, two steps, one process instead of eight); everything
else runs as it is written, on raw trees of the published layouts.
"""

import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import rawsmall
import rawtrees

from pipeline.cli import main
from tests.conftest import make_raw, unlaunched

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "launch/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
LANGUAGES = {"sh", "text", "toml"}
SMALL = (
    "--model.name resnet20 --model.stem imagenet --model.pretrained none --data.crop 16 --data.lanes 2"
    " --data.micro_batch 4 --data.workers 0 --run.max_steps 2 --track.wandb disabled"
)
FENCE = re.compile(
    r"^(?:<!-- not run by the tests: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)

NUMBERS = itertools.count()

pytestmark = pytest.mark.timeout(600)


class Block(NamedTuple):
    page: str
    line: int
    language: str
    reason: str | None
    text: str


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(page, text.count("\n", 0, m.start()) + 1, m["language"], m["reason"], m["text"])
        for m in FENCE.finditer(text)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the reader of the docs has it: launch scripts, recipes, raw data."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("launch", "configs"):
        (folder / name).symlink_to(ROOT / name)
    raw = folder / "raw"
    rawtrees.clothing1m(raw / "clothing1m")
    rawtrees.webvision(raw / "webvision")
    rawtrees.imagenet(raw / "imagenet")
    for name, make in rawsmall.MAKERS.items():
        make(raw / name)
    make_raw(raw / "own/train")
    make_raw(raw / "own/val", each=8, seed=1)
    return folder


def small(line: str) -> str:
    """A training command in small; any other as it is."""
    if "launch/train.py" not in line:
        return line
    line = re.sub(r"--nproc-per-node \d+", "--standalone --nproc-per-node 1", line)
    line = re.sub(r"--num_gpus \d+", f"--num_accelerators 1 --master_port {20000 + os.getpid() % 10000}", line)
    balance = " --data.balance true" if "clothing1m" in line else ""
    name = f"run-{next(NUMBERS)}"  # docs start one recipe in several ways
    return f"{line} {SMALL}{balance} --run.name {name}"


def run(block: Block, folder: Path) -> None:
    if "<<" in block.text:  # a here-document is the shell's
        shell(block.text, folder)
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["alasca"] and words[1] in ("shard", "index", "verify", "inspect"):
            words += ["--workers", "1"] if words[1] == "shard" else []
            assert main(words[1:]) == 0, f"{block.page}: {line}"
        elif words:
            shell(small(line), folder)


def shell(command: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={**unlaunched(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_what_is_shown_works(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for block in blocks(page):
        if block.language == "sh" and block.reason is None:
            run(block, place)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    fences = re.findall(r"^```", (ROOT / page).read_text(), re.M)
    found = blocks(page)
    assert len(fences) == 2 * len(found)
    for block in found:
        assert block.language in LANGUAGES, f"{page}, line {block.line}: ```{block.language}"
        assert block.reason is None or block.language == "sh", f"{page}, line {block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert "://" in target or ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_demo_is_as_the_readme_says() -> None:
    told = re.search(
        r"trains ResNet-20 for (\d+) epochs on (\d+) CPU processes", " ".join((ROOT / "README.md").read_text().split())
    )
    assert told is not None
    demo, comparison = (tomllib.loads((ROOT / f"configs/{name}.toml").read_text()) for name in ("demo", "compare/demo"))
    assert (int(told[1]), int(told[2])) == (demo["optim"]["epochs"], comparison["ranks"])
