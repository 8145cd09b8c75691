"""The command line: help without heavy imports, one line and a status for mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main


def test_help_is_quick_and_has_examples() -> None:
    probe = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['train', '--help'])\n"
        "finally: print('torch' in sys.modules, 'pydantic' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines()[-1] == "False False False"
    assert "example:" in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "/nowhere.toml"], "alasca: cannot read the configuration /nowhere.toml: No such file or directory"),
        (["train", "{config}", "--resume"], "alasca: --run.resume has no value"),
        (["train", "{config}", "--optim.lrr", "1"], "unknown key 'optim.lrr'; did you mean 'lr'?"),
        (["train", "{config}"], "alasca: data.train = '/nowhere': /nowhere: no such folder"),
        (["eval", "/nowhere", "--data", "x"], "alasca: /nowhere is no run"),
        (["compare", "/nowhere.toml"], "alasca: cannot read the configuration /nowhere.toml"),
        (["verify", "/nowhere"], "alasca: /nowhere: no such folder"),
        (["shard", "imagefolder", "--root", "/nowhere", "--out", "{out}"], "/nowhere"),
        (["shard", "digits", "--noise", "symetric:0.4", "--out", "{out}"], "symmetric"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text('data = { train = "/nowhere" }\noptim = { epochs = 1 }\n')
    out = tmp_path / "out"
    assert main([word.format(config=config, out=out) for word in argv]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [config]


def test_other_processes_of_a_node_wait_for_the_first_to_speak(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Leaving at once would make the launcher end the first before its line is out; one left alone says it itself."""
    waits: list[float] = []
    said_before: list[str] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        said_before.append(capsys.readouterr().err)

    monkeypatch.setattr("pipeline.cli.time.sleep", wait)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["train", "/nowhere.toml"]) == 2
    assert waits == [] and capsys.readouterr().err.count("\n") == 1

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["train", "/nowhere.toml"]) == 2
    assert len(waits) == 1 and waits[0] >= 20
    assert said_before == [""] and capsys.readouterr().err.count("\n") == 1


def test_help_after_the_configuration_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "x.toml", "--help"])
    assert stopped.value.code == 0
    assert "example:" in capsys.readouterr().out


def test_unknown_commands_and_readers_are_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["trian"], ["shard", "imagefolders", "--out", "x"], []):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 2
