"""The doctor: a sound machine passes, real faults are named with what mends them, and one never hides another."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.doctor import launch, libraries, machine
from pipeline.doctor.check import Check, isolated
from pipeline.doctor.examine import CHECKS

ALASCA = Path(sys.executable).with_name("alasca")
SECRET = "0123456789abcdef" * 2 + "01234567"
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
AUDIT = """
import os, sys
def look(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and not args[1][0].startswith(("127.", "::1")):
        open(os.environ["SEEN"], "a").write(f"{args[1]}\\n")
sys.addaudithook(look)
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests start a process group, whose variables stay."""
    for name in list(os.environ):
        if name in LAUNCHER or name.startswith(("SLURM_", "WANDB_")):
            monkeypatch.delenv(name)


def doctor(cwd: Path, *, files: int = 0, **environment: str) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Run the real command; return its status, (state, the rest of the line) by check, and everything it printed."""

    def lower() -> None:
        if files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    done = subprocess.run(
        [ALASCA, "doctor"],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        preexec_fn=lower,
    )
    lines = [line for line in done.stdout.splitlines() if line[:6] in ("ok    ", "warn  ", "FAIL  ")]
    found = {name: (line[:6].strip(), line[30:]) for line in lines for name in [line[6:28].strip()]}
    assert len(lines) == len(found)
    assert "Traceback" not in done.stdout + done.stderr
    assert list(found) == list(CHECKS)
    return done.returncode, found, done.stdout + done.stderr


@pytest.mark.timeout(300)  # it imports everything there is
def test_a_sound_machine_passes_without_network_and_tells_no_secret(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    status, found, printed = doctor(
        tmp_path, PYTHONPATH=str(tmp_path), SEEN=str(tmp_path / "seen"), HOME=str(tmp_path), WANDB_API_KEY=SECRET
    )
    assert status == 0
    assert not [name for name, (state, _) in found.items() if state == "FAIL"]
    assert found["process group"][1].startswith("1 on cpu: started and summed in ")
    assert found["DeepSpeed runs on"] == ("ok", "cpu, DS_ACCELERATOR=cpu")
    assert found["wandb account"][1].endswith("an API key for api.wandb.ai is in WANDB_API_KEY")
    assert SECRET not in printed
    assert not (tmp_path / "seen").exists()
    ok, heed = (sum(state == s for state, _ in found.values()) for s in ("ok", "warn"))
    assert printed.splitlines()[-1] == f"{len(CHECKS)} checks: {ok} ok, {heed} warn, 0 FAIL"


@pytest.mark.timeout(300)
def test_every_fault_is_named_with_what_mends_it(tmp_path: Path) -> None:
    """What a CPU-only torch beside the registry's torchvision says at import, and more that is wrong at once."""
    for name, body in (
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
        ("webdataset", "raise ImportError('first line\\nsecond line')"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(body)
    (tmp_path / "torch-2.13.0+cpu.dist-info").mkdir()
    (tmp_path / "torch-2.13.0+cpu.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.13.0+cpu\n")
    status, found, _ = doctor(
        tmp_path, files=512, PYTHONPATH=str(tmp_path), PATH=str(tmp_path), RANK="0", DS_ACCELERATOR="bogus"
    )
    assert status == 1
    state, text = found["torchvision"]
    assert state == "FAIL"
    assert "torch 2.13.0+cpu beside torchvision 0." in text
    assert "a CPU-only wheel cannot carry" in text
    assert "operator torchvision::nms does not exist" in text
    assert "make clean install" in text and text.endswith("pip install --force-reinstall torch torchvision")
    state, text = found["webdataset"]
    assert state == "FAIL"
    assert "cannot be imported: ImportError: first line second line  ->  make clean install" in text
    assert found["deepspeed"][0] == "FAIL"
    assert found["deepspeed"][1].endswith("  ->  unset DS_ACCELERATOR")
    state, text = found["launcher variables"]
    assert state == "FAIL"
    assert text.startswith("RANK=0: RANK without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT  ->  unset RANK")
    assert found["process group"][0] == "warn"
    assert found["process group"][1].startswith("not tried")
    assert found["C compiler"][0] == "warn"
    assert found["C compiler"][1].endswith("->  apt-get install gcc")
    assert found["open files"][0] == "warn"
    assert found["open files"][1].startswith("512, below 4,096  ->  ")
    assert [found[name][0] for name in ("torch", "numpy", "decoding a JPEG", "torch.distributed")] == ["ok"] * 4


def test_a_failure_is_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "1")

    def look(name: str) -> Check:
        print("noise of a library")
        os.environ["LEFT"] = "1"
        del os.environ["KEPT"]
        raise ValueError("two\nlines " + "x" * 1000)

    check = isolated("a name", look)
    assert check.state == "FAIL"
    assert check.found.startswith("ValueError: two lines xxx") and len(check.found) < 300
    assert str(check).startswith("FAIL  a name ") and "\n" not in str(check)
    assert "LEFT" not in os.environ and os.environ["KEPT"] == "1"
    assert capsys.readouterr() == ("", "")


GOOD = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("given", "state", "words"),
    [
        ({}, "ok", "one process alone"),
        (GOOD, "ok", "RANK=3 WORLD_SIZE=4"),
        (GOOD | {"LOCAL_WORLD_SIZE": "2"}, "ok", "LOCAL_WORLD_SIZE=2"),
        ({"MASTER_ADDR": "node-0"}, "ok", "one process alone"),
        ({"WORLD_SIZE": "4"}, "warn", "taken for one process alone"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "FAIL", "RANK without LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "1"}, "FAIL", "LOCAL_RANK without RANK"),
        (GOOD | {"RANK": "4"}, "FAIL", "RANK has to be below WORLD_SIZE"),
        (GOOD | {"RANK": "-1"}, "FAIL", "RANK is no number"),
        (GOOD | {"WORLD_SIZE": "four"}, "FAIL", "WORLD_SIZE is no number"),
        (GOOD | {"LOCAL_WORLD_SIZE": "1"}, "FAIL", "LOCAL_RANK has to be below LOCAL_WORLD_SIZE"),
        (GOOD | {"MASTER_PORT": "70000"}, "FAIL", "MASTER_PORT is no port"),
        (GOOD | {"MASTER_PORT": ""}, "FAIL", "MASTER_PORT is no number"),
    ],
)
def test_launcher_variables(given: dict[str, str], state: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    check = launch.variables("x")
    assert check.state == state
    assert words in check.found
    assert (check.mend == "") == (state == "ok")
    if state == "FAIL":
        assert launch.process_group("x").found.startswith("not tried")


@pytest.mark.parametrize(
    ("value", "state"), [("1", "ok"), ("1,2", "ok"), ("100000", "warn"), ("0", "warn"), ("", "warn"), ("all", "warn")]
)
def test_threads(value: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert launch.threads("x").state == state
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch.threads("x").found.startswith("unset")


def test_a_slurm_step_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.slurm("x") == Check("x", "ok", "no Slurm job")
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launch.slurm("x") == Check("x", "ok", "job 7, nodes 2, tasks 4, this is task 0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    check = launch.slurm("x")
    assert (check.state, check.mend) == ("warn", "sbatch launch/slurm.sbatch CONFIG")
    monkeypatch.setenv("RANK", "0")
    assert launch.slurm("x").state == "ok"


def test_wandb_says_whether_a_key_is_there_and_never_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert "no API key for api.wandb.ai" in libraries.wandb("x").found
    monkeypatch.setenv("WANDB_MODE", "online")
    assert (libraries.wandb("x").state, libraries.wandb("x").mend) == ("warn", "wandb login")
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    (tmp_path / ".netrc").chmod(0o600)
    check = libraries.wandb("x")
    assert check.state == "ok"
    assert check.found == f"WANDB_MODE=online; an API key for api.wandb.ai is in {tmp_path}/.netrc"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert "no API key for wandb.example.org" in libraries.wandb("x").found
    for damaged in (f"machine api.wandb.ai {SECRET}\n".encode(), b"machine \xff\n"):
        (tmp_path / ".netrc").write_bytes(damaged)
        check = libraries.wandb("x")
        assert check.state == "warn"
        assert "netrc file cannot be read" in check.found and SECRET not in str(check)


def test_a_package_that_is_missing_or_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries.library("numpy").state == "ok"
    missing = libraries.library("no-such-package-of-ours")
    assert (missing.state, missing.found) == ("FAIL", "not installed")
    assert missing.mend.endswith("pip install --force-reinstall no-such-package-of-ours")
    (tmp_path / "numpy-1.26.4.dist-info").mkdir()
    (tmp_path / "numpy-1.26.4.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 1.26.4\n")
    monkeypatch.syspath_prepend(tmp_path)
    old = libraries.library("numpy")
    assert (old.state, old.found) == ("FAIL", "1.26.4, but alasca needs 2.0")


def test_a_compiler_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert libraries.compiler("x").state == "warn"
    (tmp_path / "gcc").write_text("")
    (tmp_path / "gcc").chmod(0o755)
    assert libraries.compiler("x") == Check("x", "ok", str(tmp_path / "gcc"))


def test_limits_of_control_groups(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    mine = tmp_path / "cgroup"
    assert (machine.cpu_limit(tmp_path, mine), machine.memory_limit(tmp_path, mine)) == (None, None)
    mine.write_text("0::/pod/run\n")
    write("pod/run/cpu.max", "max 100000\n")
    write("pod/cpu.max", "250000 100000\n")
    write("pod/memory.max", "8000000000\n")
    write("pod/run/memory.max", "max\n")
    assert machine.cpu_limit(tmp_path, mine) == 2.5
    assert machine.memory_limit(tmp_path, mine) == 8_000_000_000
    mine.write_text("4:memory:/host/only\n2:cpu,cpuacct:/host/only\n")
    write("cpu/cpu.cfs_quota_us", "50000\n")
    write("cpu/cpu.cfs_period_us", "100000\n")
    write("memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert machine.cpu_limit(tmp_path, mine) == 0.5
    assert machine.memory_limit(tmp_path, mine) == 9223372036854771712
    write("cpu/cpu.cfs_quota_us", "-1\n")
    assert machine.cpu_limit(tmp_path, mine) is None


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LEAST_DISK", "LEAST_SHARED"):
        monkeypatch.setattr(machine, name, 0)
    checks = [machine.disk("x"), machine.temporary("x"), machine.shared_memory("x")]
    assert [check.state for check in checks] == ["ok"] * 3
    assert str(tmp_path) in checks[0].found
    for name in ("LEAST_DISK", "LEAST_SHARED"):
        monkeypatch.setattr(machine, name, 1e18)
    checks = [machine.disk("x"), machine.temporary("x"), machine.shared_memory("x")]
    assert [check.state for check in checks] == ["warn"] * 3
    assert checks[2].mend == "docker run --shm-size=8g ..."
