"""A GPU out of memory: one line that says how the same training fits into less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.config import Config
from pipeline.train.dist import World
from pipeline.train.inputs import Inputs
from shards.errors import OwnError


@contextmanager
def explained(config: Config, inputs: Inputs, world: World) -> Iterator[None]:
    """Run the body; where the device's memory does not suffice, say what would need less.

    Raises:
        OwnError: it does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OwnError(advice(config, world.size, _bank_bytes(config, inputs, world), str(error))) from None


def smaller_pieces(lanes: int, micro_batch: int, world: int) -> tuple[int, int] | None:
    """Cut the same global batch smaller: lanes and micro-batch of at most half the micro-batch, as large as possible.

    Args:
        lanes: now.
        micro_batch: samples, now.
        world: processes, which must divide the lanes.

    Returns:
        (lanes, micro_batch), or None: BatchNorm needs two samples, and there is nothing in between.
    """
    whole = lanes * micro_batch
    for size in range(micro_batch // 2, 1, -1):
        if whole % (size * world) == 0:
            return whole // size, size
    return None


def advice(config: Config, world: int, bank_bytes: int, error: str) -> str:
    """The line.

    Args:
        config: the run.
        world: processes.
        bank_bytes: what the banks take on the device.
        error: torch's own words.
    """
    data = config.data
    what, _, _ = " ".join(error.split()).partition(" Including non-PyTorch memory")
    now = f"data.micro_batch = {data.micro_batch} and data.lanes = {data.lanes}"
    pieces = smaller_pieces(data.lanes, data.micro_batch, world)
    if pieces is None:
        ways = [f"{now} cannot be cut smaller over {world} processes: take a smaller data.crop or a larger GPU"]
    else:
        lanes, micro_batch = pieces
        ways = [
            f"instead of {now}, data.micro_batch = {micro_batch} and data.lanes = {lanes} keep the global batch of"
            f" {data.lanes * data.micro_batch} and need {micro_batch / data.micro_batch:.0%} of the memory for"
            " activations (a run of its own: other order, and BatchNorm sees fewer samples at once)"
        ]
    if bank_bytes:
        ways.append(f"engine.bank_device = 'cpu' takes {bank_bytes / 1e9:.2g} GB off the GPU")
    if config.engine.precision == "float32":
        ways.append("engine.precision = 'bfloat16' halves activations, where the GPU has it")
    return f"{what.rstrip('.')}: {'; '.join(ways)}"


def _bank_bytes(config: Config, inputs: Inputs, world: World) -> int:
    """Bytes of this rank's banks on the device."""
    if config.engine.bank_device == "cpu":
        return 0
    start, stop = inputs.plan.home(world.rank, world.size)
    itemsize: int = getattr(torch, config.engine.bank_dtype).itemsize
    return config.method.networks * len(config.method.banks) * (stop - start) * inputs.manifest.num_classes * itemsize
