"""A server that fails in the middle of an epoch: what passes leaves no trace, what stays is one line with the name."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import server as web
from epochs import epoch, feed, same
from server import serving

from shards.cache import Cache
from shards.errors import InputError, OwnError
from shards.manifest import Manifest

FAULTS = {
    "500": web.status(500),
    "stall": web.stalls(20),
    "short_read": web.short,
    "truncated": web.truncated,
    "html_page_with_status_200": web.page,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_leaves_no_trace_in_an_epoch(photos: Manifest, tmp_path: Path, hurried: None, fault: str) -> None:
    with serving(photos.root) as server:
        manifest = Manifest.load(server.url, Cache(tmp_path, seconds=4))
        for shard in photos.shards[1:3]:
            server.faults[shard.name] = [FAULTS[fault]]
        assert same(epoch(manifest), epoch(photos))
        assert [server.asked[shard.name] for shard in photos.shards] == [1, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", "the server answers with status 500; gave up after .* data.fetch_timeout"),
        ("stall", "no answer within .*; gave up after .* data.fetch_timeout"),
        ("short_read", "; gave up after .* data.fetch_timeout"),
        ("truncated", "71,168 bytes came with SHA-256 .* the manifest says 71,680 .*copy the shards there again"),
        ("html_page_with_status_200", "46 bytes came with SHA-256 .* copy the shards there again"),
        ("404", r"it is not there \(404\); see to the address, or copy the folder there again"),
    ],
)
def test_what_stays_ends_the_epoch_with_the_name_of_the_shard(
    photos: Manifest, tmp_path: Path, hurried: None, fault: str, words: str
) -> None:
    name = photos.shards[1].name
    with serving(photos.root) as server:
        manifest = Manifest.load(server.url, Cache(tmp_path, seconds=1))
        server.always[name] = FAULTS.get(fault, web.status(404))
        with pytest.raises(OwnError, match=f"^{server.url}/{name}: .*{words}") as caught:
            epoch(manifest)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.rglob(f"*{name}*")]


def between(photos: Manifest, cache: Cache, down: Callable[[web.Server], None], steps: int = 3) -> bool:
    """Whether an epoch is the local one, though `down` happens to its server after so many micro-batches."""
    expected = epoch(photos)
    with serving(photos.root) as server, closing(feed(Manifest.load(server.url, cache))) as batches:
        found = [next(batches) for _ in range(steps)]
        fetched = sum(server.asked[shard.name] for shard in photos.shards)
        assert 0 < fetched < len(photos.shards)
        server.shutdown()
        server.server_close()
        down(server)
        found += [*batches]
    return same(found, expected)


def test_a_server_that_is_down_for_ten_seconds_is_waited_for(
    photos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shards.store._LONGEST_WAIT", 2.0)
    over = threading.Event()
    began = time.monotonic()

    def come_back(server: web.Server) -> None:
        def serve() -> None:
            time.sleep(10)
            with serving(photos.root, server.server_address[1]):
                over.wait(30)

        threading.Thread(target=serve, daemon=True).start()

    try:
        assert between(photos, Cache(tmp_path, seconds=60), come_back)
    finally:
        over.set()
    assert time.monotonic() - began > 10
    (line,) = capsys.readouterr().err.splitlines()
    assert "trying again for" in line


def test_a_server_that_is_down_for_good_ends_the_epoch(photos: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/shard-\d{6}\.tar: .*; gave up after .*or raise data.fetch_timeout$"):
        between(photos, Cache(tmp_path, seconds=1.5), lambda server: None)
    assert not [*tmp_path.rglob("*.part")]
