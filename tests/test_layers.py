"""The house's order: imports go down the list and never up; files stay small; nothing is a drawer."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file may import from its own line and from those above it.
ORDER = [
    "shards",
    "shards.errors",
    "shards.draws",
    "shards.tar",
    "shards.image",
    "shards.progress",
    "shards.interrupts",
    "shards.parallel",
    "shards.names",
    "shards.table",
    "shards.url",
    "shards.remote",
    "shards.localfolder",
    "shards.remotefolder",
    "shards.destination",
    "shards.cache",
    "shards.store",
    "shards.shard",
    "shards.manifest",
    "shards.readers",
    "shards.transitions",
    "shards.instance",
    "shards.noise",
    "shards.worker",
    "shards.outline",
    "shards.publication",
    "shards.plan",
    "shards.part",
    "shards.staging",
    "shards.build",
    "shards.merge",
    "shards.mix",
    "shards.headline",
    "shards.inspection",
    "shards.sheet",
    "shards.shardcheck",
    "shards.verify",
    "shards.places",
    "shards.contents",
    "shards.index",
    "shards.index_command",
    "shards.commands",
    "pipeline.section",
    "pipeline.methodconfig",
    "pipeline.config",
    "pipeline.configfile",
    "pipeline.data",
    "pipeline.model",
    "pipeline.method",
    "pipeline.record",
    "pipeline.train",
    "pipeline.report",
    "pipeline.bench",
    "pipeline.doctor.check",
    "pipeline.doctor.libraries",
    "pipeline.doctor",
    "pipeline.cli",
    "pipeline.__main__",
]


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("shards", "pipeline"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def place(module: str) -> int:
    return max(i for i, name in enumerate(ORDER) if module == name or module.startswith(name + "."))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


@pytest.mark.parametrize(("module", "path"), [m for m in modules() if m[0] != "pipeline"], ids=lambda v: str(v)[-40:])
def test_imports_go_down_the_house(module: str, path: Path) -> None:
    for name in imported(path):
        if name.split(".")[0] in ("shards", "pipeline"):
            candidates = [name, name.rpartition(".")[0]]
            known = next(c for c in candidates if any(c == o or c.startswith(o + ".") for o in ORDER))
            assert place(known) <= place(module), f"{module} imports {name}, which stands further down"


def test_files_are_small_and_named_for_one_thing() -> None:
    for path in [path for name in ("shards", "pipeline", "launch", "drills") for path in ROOT.glob(f"{name}/**/*.py")]:
        assert path.read_text().count("\n") <= 300, f"{path} is over 300 lines"
        assert path.stem not in ("utils", "util", "helpers", "common", "misc"), path
