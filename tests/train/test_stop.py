"""Stop and flags without a run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.train.dist import World
from pipeline.train.flags import Flags
from pipeline.train.launcher import Launcher
from pipeline.train.stop import Stop

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("launcher", "second"), [({}, "SIGINT"), ({"TORCHELASTIC_RUN_ID": "x"}, "SIGTERM")])
def test_a_second_ctrl_c_leaves_at_once_even_where_the_process_hangs(
    tmp_path: Path, launcher: dict[str, str], second: str
) -> None:
    """In C, holding no lock of Python's, like a collective that waits for a rank that is gone.

    torchrun makes SIGTERM of a second Ctrl-C.
    """
    script = f"""
import ctypes, pathlib
from pipeline.train.launcher import Launcher
from pipeline.train.stop import Stop
with Stop(Launcher()) as stop, stop.obeyed(pathlib.Path({str(tmp_path)!r}), True, None):
    print("hangs", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | launcher,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        assert "Ctrl-C again leaves at once" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(getattr(signal, second))
        assert process.wait(20) == 130
        assert process.stderr.read() == "alasca: left at once; the newest checkpoint is what there is\n"
    finally:
        process.kill()
        process.communicate()


def test_a_slow_save_is_warned_of_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for leads in (True, False):
        with Stop(Launcher()) as stop, stop.obeyed(tmp_path, leads, None):
            for seconds in (None, 20.0, 34.4, 50.0):
                stop.mind_saving(seconds)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("alasca: a save takes 34 s, and launchers kill 30 s after SIGTERM")


def test_flags_of_one_process(world: World) -> None:
    flags = Flags("stop", "save", world=world, timeout_s=10)
    assert flags.read() == {"stop": 0, "save": 0}
    flags.post(save=1)
    assert flags.read() == {"stop": 0, "save": 1}
    flags.post(stop=2)
    assert flags.agree(stop=1, save=3) == {"stop": 2, "save": 3}
    assert flags.read() == {"stop": 0, "save": 0}
