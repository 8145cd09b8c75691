"""The process that speaks to wandb for a run. Started by `view`, as a file; it knows wandb and nothing of ours.

Lines of JSON come in: {"open": {...}}, then {"log": {...}} or {"show": {...}}, and at last {"finish": {...}}. Out go
{"in": directory} once wandb took the run, and {"out": reason} if it could not. The input ends without a finish when the
run died: wandb is told so, and is left with everything that came before, which no thread of a killed process could do.
"""

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve one run, from its first line to the end of the input."""
    source, sink = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    nowhere = os.open(os.devnull, os.O_RDWR)  # wandb's own children inherit these, and print what they like
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    asked = json.loads(source.readline())["open"]
    try:
        run = opened(asked)
        directory = Path(run.dir).parent
        sink.write(json.dumps({"in": str(directory)}) + "\n")
        code = 1
        for line in source:
            message = json.loads(line)
            if "finish" in message:
                run.summary.update(message["finish"])
                code = 0
                break  # a process that the run began may keep the pipe open
            if "show" in message:
                show(run, **message["show"])
            else:
                record(run, message["log"])
        run.finish(code)
        check(directory)
    except BaseException as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        with contextlib.suppress(OSError):
            sink.write(json.dumps({"out": reason}) + "\n")
        os._exit(1)  # wandb would wait at exit for what has just failed; its service follows the process that began it


def opened(asked: dict[str, Any]) -> Any:
    """Begin the run, its curves drawn over our own step."""
    sys.argv = asked["argv"]  # wandb notes the command
    import wandb

    patience = asked["patience"]
    run = wandb.init(
        **asked["init"],
        settings=wandb.Settings(
            init_timeout=patience,
            finish_timeout=patience,
            finish_timeout_raises=True,
            x_stats_pid=asked["pid"],
            silent=True,
            console="off",
            program=asked["argv"][0],
        ),
    )
    # wandb drops steps that go back; ours may, after a resume.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


_ranked: set[str] = set()


def record(run: Any, figures: dict[str, Any]) -> None:
    """Hand on one record; of an accuracy on a set, the summary keeps the best beside the last."""
    for name in figures:
        if name.startswith("eval/") and name.endswith("top1") and name not in _ranked:
            _ranked.add(name)
            run.define_metric(name, step_metric="step", summary="last,max")
    run.log(figures)


def show(run: Any, rows: list[list[str]], page: str) -> None:
    """Hand on a table, its header first, and a page of HTML."""
    import wandb

    header, *body = rows
    run.log({"comparison": wandb.Table(columns=header, data=body), "report": wandb.Html(Path(page), inject=False)})


def check(directory: Path) -> None:
    """Raise where wandb could not write: it tells nobody but a log, which a full disk does not take either."""
    log = directory / "logs" / "debug-internal.log"
    if log.exists() and "failed to save record" in log.read_text(encoding="utf-8", errors="replace"):
        raise OSError(f"it could not write all of its own log: {log}")
    if shutil.disk_usage(directory).free < 2**20:
        raise OSError(f"the disk of {directory} is full")


if __name__ == "__main__":
    main()
