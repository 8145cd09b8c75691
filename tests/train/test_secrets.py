"""What a URL or the environment keeps secret stays out of everything that a run writes and says."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import trained
from server import serving, status

from pipeline import configfile
from pipeline.config import Config
from pipeline.train.dist import World
from pipeline.train.launcher import Launcher
from shards.errors import InputError
from shards.manifest import Manifest

SECRET = "s3cr3t-key"


def test_a_run_from_a_secret_address_tells_nobody(
    configured: Callable[..., Config],
    world: World,
    photos: Manifest,
    clean_photos: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("sys.argv", ["train.py", "a.toml", "--data.train", f"https://me:{SECRET}@h/x?s={SECRET}"])
    with serving(photos.root) as train, serving(clean_photos.root) as test:
        train.faults["samples.npy"] = [status(503)]
        places = [f"http://me:{SECRET}@{server.url[7:]}/?sig={SECRET}" for server in (train, test)]
        config = configured(
            data__train=places[0],
            data__cache=str(tmp_path / "cache"),
            eval__test={"data": places[1]},
            track__wandb="offline",
        )
        trained(config, world)
        assert train.asked["samples.npy"] == 2  # so that something was said of it
    said = capfd.readouterr()
    assert "trying again" in said.err
    assert SECRET not in said.out + said.err
    written = [path for folder in (config.folder, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert [path.name for path in written if SECRET.encode() in path.read_bytes()] == ["config.toml"]
    assert stat.S_IMODE((config.folder / "config.toml").stat().st_mode) == 0o600
    assert not any(SECRET in str(path) for path in written)


def test_the_command_that_goes_on_names_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    place = f"--data.train=https://me:{SECRET}@h/x?s={SECRET}"
    monkeypatch.setattr("sys.orig_argv", ["python", "launch/train.py", "a.toml", place, "--run.name", "what?"])
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    said = Launcher().command()
    assert said == "python launch/train.py a.toml --data.train=https://h/x --run.name 'what?' --resume auto"


def test_a_mistake_in_the_configuration_tells_no_key() -> None:
    place = f"https://me:{SECRET}@h/x?s={SECRET}"
    for word in (place, f"--train={place}"):
        with pytest.raises(InputError, match="unknown argument") as caught:
            configfile.overlay({}, [word])
        assert SECRET not in str(caught.value)
    for tables in ({"train": [place]}, {"train": "x", "cache_gb": place}, {"train": "x", "subset": {"a": place}}):
        with pytest.raises(InputError, match=r"^test: data\.") as caught:
            configfile.parse({"data": tables, "optim": {"epochs": 1}}, name="x", where="test")
        assert SECRET not in str(caught.value)
