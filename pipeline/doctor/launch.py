"""How a run would start here: a launcher's variables, threads, Slurm, and a process group that really starts."""

import os
import time

from pipeline.doctor.check import Check, reason

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE_S = 30.0


def variables(name: str) -> Check:
    """What launchers set in the environment: all of it, or nothing that misleads."""
    there = {key: os.environ[key] for key in _NAMES if key in os.environ}
    found = " ".join(f"{key}={value}" for key, value in there.items())
    unset = f"unset {' '.join(there)}, or start with torchrun or deepspeed"
    if wrong := _wrong(there):
        return Check(name, "FAIL", f"{found}: {wrong}", unset)
    if "RANK" not in there:
        if "WORLD_SIZE" in there:
            return Check(name, "warn", f"{found}: taken for one process alone, since there is no RANK", unset)
        return Check(name, "ok", f"{found}: one process alone" if found else "none set: one process alone")
    return Check(name, "ok", found)


def _wrong(there: dict[str, str]) -> str:
    """What is inconsistent, empty where nothing is."""
    for key, value in there.items():
        if key != "MASTER_ADDR" and not (value.isascii() and value.isdigit()):
            return f"{key} is no number"
    if "RANK" not in there:
        lone = [key for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE") if key in there]
        return f"{' and '.join(lone)} without RANK" if lone else ""
    if lacking := [key for key in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in there]:
        return f"RANK without {', '.join(lacking)}"
    number = {key: int(value) for key, value in there.items() if key != "MASTER_ADDR"}
    local = number.get("LOCAL_WORLD_SIZE", number["WORLD_SIZE"])
    if number["RANK"] >= number["WORLD_SIZE"]:
        return "RANK has to be below WORLD_SIZE"
    if number["LOCAL_RANK"] >= local or local > number["WORLD_SIZE"]:
        return "LOCAL_RANK has to be below LOCAL_WORLD_SIZE, and that not above WORLD_SIZE"
    if not 0 < number["MASTER_PORT"] < 65536:
        return "MASTER_PORT is no port"
    return ""


def threads(name: str) -> Check:
    """Threads of one process on the CPU."""
    asked, cores = os.environ.get("OMP_NUM_THREADS"), len(os.sched_getaffinity(0))
    if asked is None:
        return Check(name, "ok", f"unset: a process takes all {cores} cores; torchrun sets 1")
    count = asked.partition(",")[0].strip()  # a list gives the threads of each level of nesting
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        return Check(name, "warn", f"{asked!r} is no number of threads", "unset OMP_NUM_THREADS")
    if int(count) > cores:
        return Check(name, "warn", f"{asked}, but there are {cores} cores", f"export OMP_NUM_THREADS={cores}")
    return Check(name, "ok", f"{asked} of {cores} cores")


def slurm(name: str) -> Check:
    """A Slurm job, in which every task that no launcher started would be a run of its own."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return Check(name, "ok", "no Slurm job")
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or "1"
    nodes, task = os.environ.get("SLURM_JOB_NUM_NODES", "1"), os.environ.get("SLURM_PROCID", "0")
    found = f"job {job}, nodes {nodes}, tasks {tasks}, this is task {task}"
    if "RANK" not in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ and tasks != "1":
        found += "; no launcher started it, so every task would be a run of its own"
        return Check(name, "warn", found, "sbatch launch/slurm.sbatch CONFIG")
    return Check(name, "ok", found)


def process_group(name: str) -> Check:
    """Start the group as a run would, and sum over it; on the GPU too where there is one."""
    if variables(name).state == "FAIL":
        return Check(name, "warn", "not tried: the launcher's variables are inconsistent", "mend these first")
    import torch

    from pipeline.train import dist

    began = time.monotonic()
    try:
        world = dist.start(_PATIENCE_S)
        total = dist.sum_over_ranks(torch.ones(1))
        if world.device.type == "cuda":
            on_device = torch.ones(1, device=world.device)
            torch.distributed.all_reduce(on_device)
            total = torch.minimum(total, on_device.cpu())
    except Exception as error:
        mend = (
            "NCCL_DEBUG=INFO alasca doctor says more; GLOO_SOCKET_IFNAME=lo helps where the host's name leads nowhere"
        )
        if os.environ.get("WORLD_SIZE", "1") != "1":
            mend = "start it on all processes at once, and look whether MASTER_ADDR and MASTER_PORT can be reached"
        return Check(name, "FAIL", reason(error), mend)
    finally:
        dist.stop()
    if total.item() != world.size:
        return Check(name, "FAIL", f"{world.size} ones add up to {total.item():g}", "report it, with this line")
    seconds = time.monotonic() - began
    return Check(name, "ok", f"{world.size} on {world.device}: started and summed in {seconds:.1f} s")
