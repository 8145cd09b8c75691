"""The processes of a run: who am I, which device is mine, and sums over all of us."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from shards.errors import OwnError


@dataclass(frozen=True)
class World:
    """This process among the processes of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


def world_size() -> int:
    """Processes that the launcher announced; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def _launched() -> bool:
    """Whether a launcher started this process; clusters also set MASTER_ADDR or WORLD_SIZE where none did."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def neighbours() -> int:
    """Processes of the run on this node, as torchrun or deepspeed announced them; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))


def start(timeout_s: float, met: Callable[[], None] = lambda: None) -> World:
    """Join the run's process group: of torchrun, of the deepspeed launcher, or of this one process alone.

    Collectives on host tensors go over gloo, those on GPUs over NCCL.

    Args:
        timeout_s: seconds after which any collective raises.
        met: called as soon as all processes are there.

    Raises:
        OwnError: fewer GPUs on this node than processes.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available()
    if gpu and local_rank >= torch.cuda.device_count():
        raise OwnError(
            f"local rank {local_rank} has no GPU: it sees {torch.cuda.device_count()}; start fewer processes"
        )
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    else:
        # Read when deepspeed is imported, which would otherwise probe for accelerators.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _share_cores()
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    if _launched():
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        # torchrun keeps the store over its restarts, with the addresses of processes that are gone. Agents of several
        # nodes may count differently.
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            store = PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    else:
        # DeepSpeed reads these, and without them would look for MPI.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=timeout_s))
    met()
    _start_deepspeed(timeout_s)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _share_cores() -> None:
    """The deepspeed launcher lets every process take all cores, which on a CPU makes them fight."""
    if neighbours() > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // neighbours()))


def _start_deepspeed(timeout_s: float) -> None:
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import groups, logger

    logger.setLevel(logging.WARNING)
    # Training never uses this op; on a CPU deepspeed would compile it for a minute, and need a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(timeout=timedelta(seconds=timeout_s), auto_mpi_discovery=False, verbose=False)
    # Otherwise deepspeed makes a group of its own for the gradients, with a timeout of 30 minutes.
    groups._WORLD_GROUP = dist.group.WORLD


def own_store() -> Store | None:
    """A connection of the caller's own to what the processes share, so that no other waits for it; None if alone."""
    return None if dist.get_world_size() == 1 else dist.distributed_c10d._get_default_store().clone()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a host tensor over the ranks, in place."""
    assert values.device.type == "cpu"
    dist.all_reduce(values)
    return values


def gather(item: Any) -> list[Any]:
    """Everybody's item, by rank, on every rank."""
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def barrier() -> None:
    """Wait for every rank, on the host."""
    sum_over_ranks(torch.zeros(1))
