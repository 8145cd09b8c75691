"""Two agents on loopback, one rank each; one is killed with all that it started, as if its machine were gone."""

import sys
import time
from collections.abc import Iterator

from drills import record
from drills.job import BIN, Job, together
from drills.row import Row
from drills.scene import SAVE_EVERY, Scene, free_port

_ENDS_S = 90.0
_LONG_S = 240.0


def drill(scene: Scene) -> Iterator[Row]:
    """Under torchrun the second node is lost, under deepspeed the first, which holds what the ranks share."""
    yield from _lose(scene, "torchrun", 1)
    yield from _lose(scene, "deepspeed", 0)


def _lose(scene: Scene, launcher: str, lost: int) -> Iterator[Row]:
    straight = scene.straight("short", 2)
    name = f"nodes-{launcher}"
    run = scene.run(name)
    began = time.monotonic()
    agents = _agents(scene, launcher, name)
    with together(*agents):
        struck, left = agents[lost], agents[1 - lost]
        left.wait_for(lambda: len(record.steps(run)) >= 2 * SAVE_EVERY + 2, "ten steps")
        done, saved = record.steps(run)[-1], record.saved(run)
        struck.end()
        killed = time.monotonic()
        status = left.status(_ENDS_S)
        orphans = left.left(20)
        took = time.monotonic() - killed
    done, at = record.steps(run)[-1], record.saved(run)
    which = "second" if lost else "first"
    problems = [] if at >= saved else [f"step {saved} was saved, now {at} is"]
    if not status:
        problems.append("exit status 0")
    yield Row(
        "a node killed",
        f"two agents of {launcher}, 1 rank each",
        f"the {which} with all its processes, after step {done}; the other was gone {took:.0f} s later",
        status=str(status),
        lost=f"{done - at} steps, back to the checkpoint of step {at}",
        same="see the next",
        orphans=orphans,
        seconds=time.monotonic() - began,
        problems=problems,
    )
    began = time.monotonic()
    agents = _agents(scene, launcher, name)
    with together(*agents):
        statuses = [agent.status(_LONG_S) for agent in agents]
        orphans = [words for agent in agents for words in agent.left(15)]
    yield Row(
        "a node killed",
        f"two agents of {launcher}, 1 rank each",
        "the same run, started again on both",
        **record.comparison(run, straight, *statuses),
        orphans=orphans,
        partial=scene.left_by(name),
        seconds=time.monotonic() - began,
    )


def _agents(scene: Scene, launcher: str, name: str) -> list[Job]:
    port = str(free_port())
    jobs = []
    for node in range(2):
        if launcher == "torchrun":
            words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
            words += ["--node-rank", str(node), "--rdzv-backend", "c10d", "--rdzv-id", name]
            words += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
            words += ["--rdzv-conf", f"is_host={int(node == 0)}"]
        else:
            hosts = scene.folder / "hostfile"
            hosts.write_text("node-a slots=1\nnode-b slots=1\n")
            words = [str(BIN / "deepspeed"), "--hostfile", str(hosts), "--no_ssh", "--master_addr", "127.0.0.1"]
            words += ["--master_port", port, "--node_rank", str(node)]
        jobs.append(scene.job(words, "short", name, log=f"-{node}"))
    return jobs
