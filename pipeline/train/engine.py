"""The model on its device under DeepSpeed stage 0: forward, backward, step, in the chosen precision."""

import copy

import torch
from torch import nn

from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim
from pipeline.train import nonfinite
from pipeline.train.batchnorm import RunningStatistics, unrecorded
from pipeline.train.dist import World
from pipeline.train.ema import WeightEma
from pipeline.train.network import Network
from pipeline.train.optimizer import begin_momentum, sgd


class Engine:
    """One micro-batch at a time: `forward`, `backward`; after the rank's last one, `step`.

    Forward goes through the wrapped module under our own autocast (see Network), not through DeepSpeed's forward: that
    one ends the caller's autocast, and gradients of gradients through it come out wrong. Backward and step are
    DeepSpeed's: it accumulates, averages over ranks, clips and runs the optimizer. Nothing here waits for the device.

    Args:
        module: the network, on the host; the same on every rank, or made so here.
        optim: optimizer settings.
        engine: precision and layout.
        world: this process.
        micro_batch: samples of one forward.
        micro_batches: forwards of this rank in one step.

    Raises:
        InputError: a precision that the device does not have.
    """

    def __init__(
        self,
        module: nn.Module,
        optim: Optim,
        engine: EngineConfig,
        world: World,
        micro_batch: int,
        micro_batches: int,
    ) -> None:
        import deepspeed  # by now `dist.start` has told it which accelerator there is

        module = module.to(world.device)
        # DeepSpeed broadcasts parameters only.
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)
        averaged = copy.deepcopy(module) if optim.ema else None
        self.optimizer = sgd(module.parameters(), optim)
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": micro_batches,
                "zero_optimization": {"stage": 0},
                # Written even when off: left out, DeepSpeed clips at 1.0.
                "gradient_clipping": optim.clip,
                "steps_per_print": 2**31 - 1,
            },
        )
        self._world, self._micro_batches = world, micro_batches
        self._losses: list[torch.Tensor] = []  # of the step at hand
        self.module: nn.Module = self._deepspeed.module
        # After initialize: channels_last weights before it, and DeepSpeed's broadcast cannot view them as bytes.
        self._network = self._evaluated = Network(self.module, world.device, engine.precision, engine.channels_last)
        self.ema: WeightEma | None = None
        if averaged is not None:
            self._evaluated = Network(averaged, world.device, engine.precision, engine.channels_last)
            self.ema = WeightEma(averaged, self.module, optim.ema)
        begin_momentum(self.optimizer)
        self.statistics = RunningStatistics(self.module)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Images as of `Network` on the device -> main logits [B, K] and a list of auxiliary logits [B, K].

        After `eval` they are those of the EMA of the weights, where there is one.
        """
        if not self.module.training:
            return self._evaluated(images)
        outputs = self._network(images)
        self.statistics.collect()
        return outputs

    @torch.no_grad()
    def look(self, images: torch.Tensor, averaged: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As `forward` in training, but without gradient, and no running statistic moves.

        Args:
            images: as of `forward`.
            averaged: ask the EMA of the weights, which there has to be.
        """
        network, module = self._network, self.module
        if averaged:
            assert self.ema is not None, "optim.ema is off"
            network, module = self._evaluated, self.ema.module
        with unrecorded(module):
            return network(images)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one micro-batch's loss (a mean over its nominal size), shape ()."""
        assert len(self._losses) < self._micro_batches, "step() comes first"
        self._losses.append(loss.detach())
        self._deepspeed.backward(loss)
        if len(self._losses) < self._micro_batches:
            self._deepspeed.step()  # before the last micro-batch this only counts

    def step(self, lr: float) -> torch.Tensor:
        """Update the weights with this learning rate and the gradients' mean over micro-batches and ranks.

        If a loss, a gradient or a BatchNorm statistic of any rank is not finite, weights, their average, momentum and
        running statistics stay as they are, on every rank; the host learns of it from the flags alone.

        Returns:
            Flags as of `nonfinite.find`, on the device: [lanes + 2], all 0 in a step as it should be.
        """
        missing = self._micro_batches - len(self._losses)
        assert missing == 0, f"{missing} micro-batches are missing"
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The last backward has averaged the gradients over the ranks.
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        flags = nonfinite.find(self._losses, gradients, self.statistics.sums, self._world)
        self._losses = []
        skipped = flags.amax()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self._deepspeed.step()
        self.statistics.finish_step(skipped.bool())
        if self.ema is not None:
            self.ema.move(skipped.bool())
        return flags

    @property
    def lr(self) -> float:
        """Learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def average_over_ranks(self) -> None:
        """Make all ranks hold the same running statistics; between steps, before evaluating or saving."""
        self.statistics.average_over_ranks()
        if self.ema is not None:
            self.ema.average_over_ranks()

    def eval(self) -> None:
        """Use running statistics, the same on every rank, and the EMA of the weights, where there is one."""
        self.average_over_ranks()
        self.module.eval()

    def train(self) -> None:
        """Use the statistics of each micro-batch."""
        self.module.train()
