"""What the places on the command line of `alasca index` mean."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import places
from shards.errors import InputError
from shards.places import Tar, find, labels_of


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Whole addresses of what places mean, as seen from an empty folder; nobody is asked for anything."""
    monkeypatch.chdir(tmp_path)

    def ask(*args: object) -> None:
        raise AssertionError(f"asked for {args}")

    monkeypatch.setattr("shards.remote.filesystem", ask)
    monkeypatch.setattr("shards.remotefolder.filesystem", ask)
    return lambda *given: [tar.where.removeprefix(f"{tmp_path}/") for tar in find(given)]


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def test_tars_and_folders_in_their_order(found: Callable[..., list[str]]) -> None:
    touch("b/2.tar", "b/1.tar", "b/1.parquet", "b/1_stats.json", "b/.hidden.tar", "a/x.tar", "b/deep/3.tar")
    assert found("b", "a/x.tar") == ["b/1.tar", "b/2.tar", "a/x.tar"]
    assert found(f"file://{Path.cwd()}/a", "b/./2.tar") == ["a/x.tar", "b/2.tar"]


@pytest.mark.parametrize(
    ("place", "expanded"),
    [
        ("s3://b/t-{008..011}.tar", [f"s3://b/t-{n}.tar" for n in ("008", "009", "010", "011")]),
        ("http://h/t-{8..11}.tar", [f"http://h/t-{n}.tar" for n in (8, 9, 10, 11)]),
        ("s3://b/{0..1}/t-{00..01}.tar", [f"s3://b/{a}/t-0{b}.tar" for a in (0, 1) for b in (0, 1)]),
        ("s3://b/{5..5}.tar", ["s3://b/5.tar"]),
    ],
)
def test_braces(found: Callable[..., list[str]], place: str, expanded: list[str]) -> None:
    assert found(place) == expanded


def test_braces_of_paths(found: Callable[..., list[str]]) -> None:
    touch("t/09.tar", "t/10.tar", "t/11.tar")
    assert found("t/{09..10}.tar") == ["t/09.tar", "t/10.tar"]
    with pytest.raises(InputError, match=r"t/12\.tar: no such file"):
        found("t/{09..12}.tar")


@pytest.mark.parametrize("braces", ["a..c", "3", "", "1,2", "9..1", "00..146", "-1..3", "1..2..3", "\u0660..\u0669"])
def test_other_braces_are_refused(found: Callable[..., list[str]], braces: str) -> None:
    with pytest.raises(InputError, match=r"^s3://b/\{.*\}\.tar: \{.*\} is no range such as \{000\.\.146\}"):
        found(f"s3://b/{{{braces}}}.tar")


@pytest.mark.parametrize(
    "given",
    [
        ["s3://b/{0..999999999999999999}.tar"],
        ["s3://b/{00000..99999}/{00..99}.tar"],
        ["s3://b/{000000..999999}.tar", "http://h/a.tar"],
    ],
)
def test_too_many_are_refused_before_anything_is_made_of_them(
    found: Callable[..., list[str]], given: list[str]
) -> None:
    with pytest.raises(InputError, match=rf"tars are more than {places.MOST:,}; are the braces meant so"):
        found(*given)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nothing", "nothing: no such file"),
        ("nothing.tar", r"nothing\.tar: no such file"),
        ("a", r"^a: no \.tar file in it; unpack"),
        ("a/x.tar.gz", r"does not end in \.tar; unpack"),
        ("a/with space.tar", r"'with space\.tar' is not a plain file name.*; rename it"),
        ("mixed", r"^mixed: its tars are of several splits \(train, val\)"),
        ("pipe:cat a.tar", "pipe: URLs run a command"),
        ("tar://a.tar::s3://b/c.tar", "chains of file systems"),
        ("http://h/folder", r"http://h/folder: folders cannot be listed over http; .*\{000\.\.146\}\.tar"),
        ("s3://b/wi%20th?x.tar", "s3://b/wi%20th: this URL has"),
    ],
)
def test_what_is_no_place(found: Callable[..., list[str]], place: str, words: str) -> None:
    touch("a/x.tar.gz", "a/with space.tar", "mixed/train-0.tar", "mixed/val-0.tar")
    os.remove("a/with space.tar") if place == "a" else None
    with pytest.raises(InputError, match=words) as caught:
        found(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://me:s3cr3t@h/a.tar", "https://h/a.tar?sig=s3cr3t", "s3://s3cr3t@b/{0..1}.tar"])
def test_secrets_never_come_near_a_manifest(found: Callable[..., list[str]], url: str) -> None:
    with pytest.raises(InputError, match=r"^(https|s3)://.*which would be written into the manifest") as caught:
        found(url)
    assert "s3cr3t" not in str(caught.value)


def test_a_tar_stands_once(found: Callable[..., list[str]]) -> None:
    touch("a/x.tar")
    with pytest.raises(InputError, match=r"a/x\.tar: named twice"):
        found("a", "a/../a/x.tar")


def test_short_names_tell_tars_apart_and_say_nothing_of_the_machine() -> None:
    assert labels_of([Tar("/home/me/tars", "0.tar"), Tar("s3://b/tars", "1.tar")]) == ["0.tar", "1.tar"]
    same = [Tar("/home/me/train", "0.tar"), Tar("/home/me/val", "0.tar"), Tar("/home/me/val", "1.tar")]
    assert labels_of(same) == ["train/0.tar", "val/0.tar", "val/1.tar"]
    assert labels_of([Tar("/a/x", "0.tar"), Tar("s3://b/x", "0.tar")]) == ["a/x/0.tar", "b/x/0.tar"]
