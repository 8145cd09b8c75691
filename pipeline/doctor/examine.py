"""All checks, in the order in which one would mend them."""

from collections import Counter

from pipeline.doctor import accelerator, launch, libraries, machine
from pipeline.doctor.check import Look, isolated

CHECKS: dict[str, Look] = {
    "python": libraries.python,
    **dict.fromkeys(libraries.MODULES, libraries.library),
    "torchvision": libraries.torchvision,
    "decoding a JPEG": libraries.jpeg,
    "C compiler": libraries.compiler,
    "CPU cores": machine.cores,
    "memory": machine.memory,
    "disk": machine.disk,
    "temporary files": machine.temporary,
    "/dev/shm": machine.shared_memory,
    "open files": machine.open_files,
    "GPU": accelerator.gpu,
    "torch.distributed": accelerator.backends,
    "launcher variables": launch.variables,
    "OMP_NUM_THREADS": launch.threads,
    "Slurm": launch.slurm,
    "process group": launch.process_group,
    "DeepSpeed runs on": accelerator.deepspeed,
    "wandb account": libraries.wandb,
}


def examine() -> int:
    """Print a line for each check as it is made, and a count; return 0 where none fails, else 1. Needs no network."""
    states: Counter[str] = Counter()
    for name, look in CHECKS.items():
        check = isolated(name, look)
        states[check.state] += 1
        print(check, flush=True)
    print(f"{states.total()} checks: {states['ok']} ok, {states['warn']} warn, {states['FAIL']} FAIL")
    return 1 if states["FAIL"] else 0
