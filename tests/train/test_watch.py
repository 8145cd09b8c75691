"""Processes that watch each other: as threads of this one, over a real store; what they would end with is noted."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
import torch
from torch.distributed import PrefixStore, Store, TCPStore

from pipeline.train.dist import World
from pipeline.train.roll import Beat, pid_space
from pipeline.train.verdict import is_an_echo
from pipeline.train.watch import Watch
from shards.errors import InputError, OwnError

HEARTBEAT = 1.8  # a beat every 0.3 s
LONG = 30.0
pytestmark = pytest.mark.timeout(60)


def client(port: int) -> Store:
    return TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=20))


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Rank:
    """One process of a run: a thread that does what it is told, under a watch."""

    def __init__(self, rank: int, port: int, work: Callable[[Watch], None], timeout: float = LONG, local: int = 0):
        self.ends: list[int] = []
        world = World(rank, 2, local, torch.device("cpu"))
        self.watch = Watch(world, timeout, HEARTBEAT, client(port), end=self.ends.append)
        self.error: BaseException | None = None
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"rank {rank}")
        self.thread.start()

    def _run(self) -> None:
        try:
            with self.watch:
                self._work(self.watch)
        except BaseException as error:
            self.error = error

    def wait(self) -> int:
        """Status with which the process would have been ended."""
        limit = time.monotonic() + 30
        while not self.ends:
            assert time.monotonic() < limit
            time.sleep(0.02)
        return self.ends[0]


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """Set at the end of the test, so that no rank outlives it."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def busy(stop: threading.Event) -> Callable[[Watch], None]:
    def work(watch: Watch) -> None:
        step = 0
        while not stop.wait(0.02):
            step += 1
            watch.phase("step", step)

    return work


def beat(store: Store, rank: int, **changes: object) -> None:
    fields = {"count": 1, "host": "node-b", "pid": 1, "space": "there", "phase": "data", "step": 41, "seconds": 2.0}
    PrefixStore("watch", store).set(str(rank), Beat(**{**fields, **changes}).encode())  # type: ignore[arg-type]


def test_ranks_that_finish_leave_in_peace_and_the_store_last(server: TCPStore, stop: threading.Event) -> None:
    first = Rank(0, server.port, lambda watch: None)
    second = Rank(1, server.port, lambda watch: (stop.wait(3 * HEARTBEAT), None)[1])
    first.thread.join(HEARTBEAT / 2)
    assert first.thread.is_alive()  # its process may keep the store
    for rank in (second, first):
        rank.thread.join(20)
        assert not rank.thread.is_alive() and rank.error is None and rank.ends == []
    # The first of two that left is not missed by the other.
    third = Rank(1, server.port, lambda watch: None)
    third.thread.join(20)
    assert third.ends == []


def test_a_rank_that_left_is_not_missed(server: TCPStore, stop: threading.Event) -> None:
    gone = Rank(1, server.port, lambda watch: None)
    stays = Rank(0, server.port, lambda watch: (stop.wait(2 * HEARTBEAT), None)[1])
    gone.thread.join(20)
    stays.thread.join(20)
    assert not stays.thread.is_alive() and stays.ends == gone.ends == []


def failing(error: BaseException) -> Callable[[Watch], None]:
    def work(watch: Watch) -> None:
        watch.phase("save", 41)
        time.sleep(2 * HEARTBEAT / 6)  # the other has been heard
        raise error

    return work


def test_a_rank_that_raises_ends_the_other_with_its_traceback(
    server: TCPStore, busy: Callable[[Watch], None], capsys: pytest.CaptureFixture[str]
) -> None:
    other, failed = Rank(0, server.port, busy), Rank(1, server.port, failing(ValueError("a bug")))
    assert other.wait() == failed.wait() == 1
    blocks = capsys.readouterr().err.split("alasca: rank ")[1:]
    assert len(blocks) == 2 and blocks[0] == blocks[1]  # both are the first of their nodes
    assert blocks[0].startswith(f"1 on {socket.gethostname()} failed in step 41: save:\nTraceback")
    assert "ValueError: a bug" in blocks[0] and "--resume auto" in blocks[0]


def test_on_its_own_node_a_failure_is_printed_once(
    server: TCPStore, busy: Callable[[Watch], None], capsys: pytest.CaptureFixture[str]
) -> None:
    other, failed = Rank(0, server.port, busy), Rank(1, server.port, failing(ValueError("a bug")), local=1)
    assert other.wait() == failed.wait() == 1
    assert capsys.readouterr().err.count("a bug") == 1


@pytest.mark.parametrize("kind", [InputError, OwnError])
@pytest.mark.parametrize("local", [0, 1])
def test_a_mistake_found_by_one_rank_is_one_line_on_each_node(
    server: TCPStore,
    busy: Callable[[Watch], None],
    kind: type[InputError],
    local: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other, failed = Rank(0, server.port, busy), Rank(1, server.port, failing(kind("x = 3: want 4")), local=local)
    assert other.wait() == 2
    failed.thread.join(20)
    assert failed.ends == [] and isinstance(failed.error, InputError)  # the command line says it, and leaves with 2
    says_it_itself = local == 1 and kind is OwnError
    line = f"alasca: rank 1 on {socket.gethostname()}: x = 3: want 4\n"
    assert capsys.readouterr().err == ("" if says_it_itself else line)


def test_a_silent_rank_is_named_with_what_it_did_last(
    server: TCPStore, busy: Callable[[Watch], None], capsys: pytest.CaptureFixture[str]
) -> None:
    left = Rank(0, server.port, busy)
    for count in range(10):  # alive for longer than the silence that counts as death
        beat(server, 1, count=count)
        time.sleep(HEARTBEAT / 6)
        assert left.ends == []
    assert left.wait() == 1
    assert "alasca: rank 1 on node-b gave no sign of life for 1.8 s" in (said := capsys.readouterr().err)
    assert "last seen in step 41: data, for 2 s" in said


def test_a_process_that_ended_on_this_machine_is_missed_at_once(
    server: TCPStore, busy: Callable[[Watch], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = Rank(0, server.port, busy)
    began = time.monotonic()
    while not left.ends:  # it does not even fall silent
        beat(server, 1, count=int(time.monotonic() * 10), pid=ended.pid, space=pid_space())
        assert time.monotonic() - began < 30
        time.sleep(0.1)
    assert f"(process {ended.pid}) ended without a word" in capsys.readouterr().err


def test_an_error_of_a_collective_waits_for_its_cause(
    server: TCPStore, capsys: pytest.CaptureFixture[str], stop: threading.Event
) -> None:
    def echo(watch: Watch) -> None:
        beat(server, 1)
        with pytest.raises(RuntimeError) as caught:
            client(server.port).wait(["never"], timedelta(milliseconds=300))
        assert is_an_echo(caught.value)
        raise caught.value

    left = Rank(0, server.port, echo)
    assert left.wait() == 1
    said = capsys.readouterr().err
    assert "rank 1 on node-b gave no sign of life" in said and "Traceback" not in said


def test_an_error_of_a_collective_without_a_cause_elsewhere_is_the_ranks_own(
    server: TCPStore, busy: Callable[[Watch], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(watch: Watch) -> None:
        client(server.port).wait(["never"], timedelta(milliseconds=300))

    other, failed = Rank(0, server.port, busy), Rank(1, server.port, fails)
    assert other.wait() == failed.wait() == 1
    assert "DistStoreError" in capsys.readouterr().err


def test_only_errors_from_within_collectives_are_echoes() -> None:
    with pytest.raises(RuntimeError) as ours:
        torch.zeros(2) + torch.zeros(3)
    with pytest.raises((TypeError, ValueError)) as theirs:
        torch.distributed.all_reduce(None)
    assert not is_an_echo(ours.value) and is_an_echo(theirs.value)


def test_a_hang_is_shown_as_a_table_and_stacks(
    server: TCPStore, stop: threading.Event, busy: Callable[[Watch], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def hangs(watch: Watch) -> None:
        watch.phase("data", 7)
        stop.wait()

    moving, hung = Rank(0, server.port, busy, timeout=3.0), Rank(1, server.port, hangs, timeout=3.0)
    assert moving.wait() == hung.wait() == 1
    said = capsys.readouterr().err
    table = said[said.index("alasca: rank 1 did not move for 3 s (dist.timeout)") :].splitlines()
    assert table[1].split() == ["rank", "host", "step", "doing", "for"]
    rows = [line.split() for line in table[2:4]]
    assert [row[0] for row in rows] == ["0", "1"]
    assert rows[0][3] == "step" and rows[0][4] == "0"
    assert rows[1][2:] == ["7", "data", "3", "s"]
    assert "in hangs\n    stop.wait()" in said  # where it hangs
    assert said.count("what its threads were doing") == 2


def test_a_process_alone_ends_its_own_hang(stop: threading.Event, capsys: pytest.CaptureFixture[str]) -> None:
    ends: list[int] = []
    with Watch(World(0, 1, 0, torch.device("cpu")), 0.5, HEARTBEAT, end=ends.append) as watch:
        for _ in range(10):  # a long phase that goes on is none
            watch.phase("evaluate")
            time.sleep(0.1)
        assert ends == []
        while not ends:
            time.sleep(0.05)
    assert ends == [1] and "in test_a_process_alone_ends_its_own_hang" in capsys.readouterr().err


class Relay:
    """What stands between a client and the store, and may fall silent without a word, as a lost machine does."""

    def __init__(self, port: int) -> None:
        self.silent = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target = port
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.silent.is_set():
                    sink.sendall(data)


def test_a_store_that_falls_silent_ends_who_needs_it(
    server: TCPStore, busy: Callable[[Watch], None], capsys: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(server.port)
    beat(server, 0, host="node-a", phase="evaluate")
    left = Rank(1, relay.port, busy)
    time.sleep(HEARTBEAT / 2)
    relay.silent.set()
    assert left.wait() == 1
    said = capsys.readouterr().err
    assert "the store that the processes share did not answer for 1.8 s" in said
    assert "Rank 0 on node-a was last seen in step 41: evaluate" in said
