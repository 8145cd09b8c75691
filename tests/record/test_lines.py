import resource
import signal
import sys
from pathlib import Path

import pytest

from pipeline.record import lines as module
from pipeline.record.lines import Lines


def test_lines_follow_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("zero\n")
    lines = Lines(tmp_path / "f")
    lines.append("one")
    assert (tmp_path / "f").read_text() == "zero\none\n"
    lines.append("ähre")
    assert lines.close() == 0
    assert (tmp_path / "f").read_text() == "zero\none\nähre\n"


def test_a_full_disk_delays_lines_and_tears_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel stops this process's files at 1,000 bytes, in the middle of a line, as a full disk does."""
    file, lines = tmp_path / "f", Lines(tmp_path / "f")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        for number in range(4):
            lines.append(str(number) * 299)
        assert file.read_text().splitlines() == [str(number) * 299 for number in range(3)]
        lines.append("4" * 299)
        assert file.stat().st_size == 900
        assert len(capsys.readouterr().err.splitlines()) == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        lines.append("5" * 299)
        assert file.read_text().splitlines() == [str(number) * 299 for number in range(6)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        lines.append("6")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert lines.close() == 1


def test_a_log_on_the_disk_that_is_full_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    log = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - closing it would raise
    lines = Lines(tmp_path / "f")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", log)
        patched.setattr(module.os, "pwrite", full)
        lines.append("one")
    lines.append("two")
    assert (tmp_path / "f").read_text() == "one\ntwo\n"
    with pytest.raises(OSError, match="No space"):  # so it was written to
        log.close()
