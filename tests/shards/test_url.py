"""Which places are read, and that what is secret in them is never shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.cache import Cache
from shards.errors import InputError
from shards.manifest import Manifest
from shards.url import ascend, folder_name, is_url, join, public, redact


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("pipe:cat /data/train", "run a command"),
        ("PIPE:cat /data/train", "run a command"),
        ("pipe://cat /data/train", "run a command"),
        ("simplecache::http://host/train", "chains"),
        ("zip://train::s3://bucket/a.zip", "chains"),
        ("reference://x", "chains"),
        ("dir://x", "chains"),
        ("http:///train", "no host"),
        ("s3://", "no host or bucket"),
        ("gopher://host/train", "fsspec knows no gopher://"),
    ],
)
def test_what_is_not_read(place: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Manifest.load(place, Cache(tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["s3fs"] = None  # as if it was not installed
from shards.manifest import Manifest
Manifest.load("s3://bucket/train")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.splitlines()[-1].endswith(
        "s3:// needs a package that is not installed: pip install 'alasca[s3]'"
    )


def test_paths_are_no_urls(built: Manifest, tmp_path: Path) -> None:
    assert not any(map(is_url, ["data/train", "/data/a:b", "a::b", "C:x"[2:], "~/x?y=z"]))
    assert Manifest.load(f"file://{built.root}").root == built.root


def test_secrets_are_left_out() -> None:
    url = "https://joan:pa?ss@host:8443/data/train?X-Amz-Signature=s3cr3t&sig=t0k3n"
    for text in (redact(url), folder_name(url), public({"a": [url]})["a"][0], redact(f"cannot read '{url}' now")):
        assert not any(secret in text for secret in ("joan", "pa?ss", "s3cr3t", "t0k3n", "Amz"))
    assert redact("s3://key:secret@bucket/x") == "s3://bucket/x"
    for url in ("https://me:pa's3cr3t@host/x", "https://host/it's/x?sig=s3cr3t", "https://host/x?sig=a's3cr3t"):
        assert "s3cr3t" not in redact(url) + redact(f'cannot read "{url}" now') + folder_name(url)
    assert redact("https://host/a/b@c/d") == "https://host/a/b@c/d"
    assert public({"n": 1, "path": "/data/what?"}) == {"n": 1, "path": "/data/what?"}


def test_a_key_in_the_query_goes_with_every_file() -> None:
    assert join("https://host/train/?sig=a", "x.tar") == "https://host/train/x.tar?sig=a"
    assert join("s3://bucket/train", "x.tar") == "s3://bucket/train/x.tar"
    assert join("file:///data/what?", "x.tar") == "file:///data/what?/x.tar"


@pytest.mark.parametrize(
    ("url", "place", "seen"),
    [
        ("https://host/a/b?sig=1", "../tars", "https://host/a/tars?sig=1"),
        ("https://host/a/b/?sig=1", "../../tars/x", "https://host/tars/x?sig=1"),
        ("s3://bucket/a/b", "./c//d", "s3://bucket/a/b/c/d"),
        ("s3://bucket/a/b", "../..", "s3://bucket/"),
    ],
)
def test_a_place_is_seen_from_a_folder(url: str, place: str, seen: str) -> None:
    assert ascend(url, place) == seen


@pytest.mark.parametrize(("url", "place"), [("s3://bucket/a", "../../other"), ("http://host/a?sig=s3cr3t", "/etc")])
def test_no_place_leads_out_of_a_host(url: str, place: str) -> None:
    with pytest.raises(InputError, match=place) as caught:
        ascend(url, place)
    assert "s3cr3t" not in str(caught.value)


def test_every_address_has_a_folder_of_its_own_but_for_its_secrets() -> None:
    urls = ["s3://a/train", "s3://b/train", "http://a/train", "https://a/train", "https://a/val", "https://a/x/train"]
    assert len({folder_name(url) for url in urls}) == len(urls)
    assert folder_name("https://a/train/?sig=1") == folder_name("https://me:x@a/train?sig=2")
    assert all("/" not in folder_name(url) for url in [*urls, "s3://a/..", "s3://a/" + "x" * 300])
