"""The model on its device under DeepSpeed stage 0: forward, backward, step, in the chosen precision."""

from collections.abc import Iterable

import torch
from torch import nn

from pipeline.config import Engine as EngineConfig
from pipeline.config import Optim
from pipeline.train.batchnorm import RunningStatistics
from pipeline.train.dist import World
from pipeline.train.network import Network


class Engine:
    """One micro-batch at a time: `forward`, `backward`; after the rank's last one, `step`.

    Forward goes through the wrapped module under our own autocast (see Network), not through DeepSpeed's forward: that
    one ends the caller's autocast, and gradients of gradients through it come out wrong. Backward and step are
    DeepSpeed's: it accumulates, averages over ranks, clips and runs the optimizer.

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
        self.optimizer = torch.optim.SGD(
            _parameter_groups(module.parameters(), optim),
            lr=optim.lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
        )
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
        self._micro_batches = self._missing = micro_batches
        self.module: nn.Module = self._deepspeed.module
        # After initialize: channels_last weights before it, and DeepSpeed's broadcast cannot view them as bytes.
        self._network = Network(self.module, world.device, engine.precision, engine.channels_last)
        self.statistics = RunningStatistics(self.module)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """uint8 [B, H, W, 3] on the device -> main logits [B, K] and a list of auxiliary logits [B, K]."""
        outputs = self._network(images)
        if self.module.training:
            self.statistics.collect()
        return outputs

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one micro-batch's loss (a mean over its nominal size), shape ()."""
        assert self._missing > 0, "step() comes first"
        self._missing -= 1
        self._deepspeed.backward(loss)
        if self._missing:
            self._deepspeed.step()  # before the last micro-batch this only counts

    def step(self, lr: float) -> None:
        """Update the weights with this learning rate and the gradients' mean over micro-batches and ranks."""
        assert self._missing == 0, f"{self._missing} micro-batches are missing"
        self._missing = self._micro_batches
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._deepspeed.step()
        self.statistics.finish_step()

    @property
    def lr(self) -> float:
        """Learning rate of the last update."""
        return float(self.optimizer.param_groups[0]["lr"])

    def eval(self) -> None:
        """Use running statistics, the same on every rank."""
        self.statistics.average_over_ranks()
        self.module.eval()

    def train(self) -> None:
        """Use the statistics of each micro-batch."""
        self.module.train()


def _parameter_groups(parameters: Iterable[nn.Parameter], optim: Optim) -> list[dict[str, object]]:
    """Vectors are norms and biases; they carry weight decay only if asked (Goyal et al. 2017, He et al. 2019)."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    decay = optim.weight_decay
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": decay if optim.decay_norm_and_bias else 0.0},
    ]
