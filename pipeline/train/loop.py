"""Training, from the first batch to the summary. Read `Training.run` first."""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.ahead import Ahead
from pipeline.data.loader import Feed, TrainBatches, lanes_of_a_worker, train_keys
from pipeline.record.metrics import Window
from pipeline.record.reference import Reference
from pipeline.record.summary import summarise, train_seconds
from pipeline.record.track import Tracker
from pipeline.train import dist
from pipeline.train.bad import BadImages
from pipeline.train.checkpoint import read_index
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.compose import compose
from pipeline.train.dist import World
from pipeline.train.engine import Engine
from pipeline.train.evaluate import evaluate
from pipeline.train.identity import identity, refuse_difference, versions
from pipeline.train.inputs import Inputs
from pipeline.train.memory import explained
from pipeline.train.nonfinite import NonFiniteSteps
from pipeline.train.norms import JacobianNorms
from pipeline.train.schedule import Schedule
from pipeline.train.watch import Watch


def train(config: Config) -> list[str]:
    """Train as configured, under whatever launcher started this process.

    Everything the user can get wrong is looked at before the processes meet and before anything is written.

    Returns:
        On rank 0, a line for each checkpoint that could not be written; else nothing.

    Raises:
        InputError: see `Inputs.open`, `Checkpoints.choose`, `refuse_difference`, `BadImages.agree`, `NonFiniteSteps`.
        OwnError: this process's GPU is out of memory.
    """
    inputs = Inputs.open(config, dist.world_size())
    timeout, heartbeat = config.dist.timeout, config.dist.heartbeat
    world = dist.start(timeout + heartbeat)  # after the watch, which can say more
    with Watch(world, timeout, heartbeat, dist.own_store()) as watch, explained(config, inputs, world):
        training = Training(config, inputs, world, watch)
        try:
            training.run()
        finally:
            training.close()
    dist.stop()
    return training.checkpoints.failures


class Training:
    """One run in one process of it; holds what the steps share."""

    def __init__(self, config: Config, inputs: Inputs, world: World, watch: Watch | None = None) -> None:
        self.config, self.world = config, world
        self.watch = watch or Watch(world, config.dist.timeout, config.dist.heartbeat)  # which nobody looks at
        self.manifest, self.selection = inputs.manifest, inputs.selection
        self.sets, self.plan = inputs.sets, inputs.plan
        self.lanes = self.plan.lanes_of(world.rank, world.size)
        self.schedule = Schedule(config.optim, self.plan.steps_per_epoch)
        self.identity = identity(config, self.manifest, self.selection)
        folder = config.folder / "checkpoints"
        self.checkpoints = Checkpoints(folder, world, config.checkpoint.keep, config.dist.timeout)
        checkpoint = self.checkpoints.choose(config.run.resume)
        self.start = 0
        if checkpoint is not None:
            index = read_index(checkpoint)
            refuse_difference(index["identity"], self.identity, str(checkpoint))
            self.start = index["step"]
        self.checkpoints.meet()
        last = self.schedule.total_steps
        self.ahead = Ahead(self.manifest, self.plan, self.lanes, self.start, last, dist.neighbours())
        of_the_node = self.ahead.warning() if world.local_rank == 0 else None
        of_the_run = inputs.warning() if world.rank == 0 else None
        for warning in filter(None, (of_the_node, of_the_run)):
            print(f"alasca: {warning}", file=sys.stderr, flush=True)
        self.feed = self._feed()
        self.engine = Engine(
            inputs.module, config.optim, config.engine, world, config.data.micro_batch, len(self.lanes)
        )
        self.objective = compose(config, self.manifest, self.selection, self.plan, world, self.engine.module)
        self.norms = JacobianNorms(self.engine.module, config.run.seed, config.data.lanes, config.engine.channels_last)
        allowed = config.data.max_bad_fraction
        self.bad = {"train": BadImages(self.manifest, allowed, of=self.plan.num_active)}
        self.bad |= {f"eval.{name}": BadImages(manifest, allowed) for name, manifest in self.sets.items()}
        self.nonfinite = NonFiniteSteps(config, self.plan)
        if checkpoint is not None:
            self._restore(checkpoint)
            if world.rank == 0:
                self.checkpoints.rewind(self.start)
        self.tracker = Tracker(
            config,
            leader=world.rank == 0,
            total_steps=self.schedule.total_steps,
            start_step=self.start,
            identity=self.identity,
        )
        # Only the leader's records count, and only it may meet a file that somebody else is writing.
        leads = world.rank == 0
        self.train_seconds = train_seconds(config.folder) if leads else 0.0  # of earlier attempts
        self.reference = Reference(Path(config.track.reference)) if config.track.reference and leads else None

    def run(self) -> None:
        """Every step that is left: micro-batches, update, record, evaluation, checkpoint."""
        config, per_epoch = self.config, self.plan.steps_per_epoch
        last = min(self.schedule.total_steps, config.run.max_steps or self.schedule.total_steps)
        save_every = config.checkpoint.every_steps or per_epoch
        self.engine.train()
        if self.start == 0 and (lacking := self.plan.deficit(0)):
            self.tracker.log("balance", 0, {f"lacking/{self.manifest.classes[k]}": n for k, n in lacking.items()})
        window = Window()
        for step in range(self.start, last):
            looks = config.track.norms > 0 and (step + 1) % config.track.norms == 0
            for _ in self.lanes:
                self._micro_batch(step, window, looks)
            flags = self.engine.step(self.schedule.lr(step))
            skipped = flags.any()
            self.objective.settle(skipped)
            window.settle(skipped)

            done = step + 1
            self.nonfinite.note(done, flags, self.tracker)
            ends_epoch, saves = done % per_epoch == 0, done % save_every == 0 or done == last
            evaluates = done == last or (ends_epoch and done // per_epoch % config.eval.every == 0)
            self.tracker.progress(done)
            self.ahead.reached(done)
            if looks:
                self.tracker.log("norms", done, {**self._place(done), **self.norms.record(step // per_epoch)})
            # A window never spans a checkpoint, so that a resumed run writes the same lines.
            if done % config.track.every == 0 or evaluates or saves:
                self._record(step, window)
                selected = self._evaluate(done) if evaluates else None
                if saves:
                    self._save(done, selected)
                window = Window()
        self.checkpoints.finish()
        if last < self.schedule.total_steps:
            self.tracker.pause(last)
        elif self.world.rank == 0:
            self.watch.phase("finish")
            self.tracker.finish(self._summary())

    def close(self) -> None:
        """End what works for this process beside it; whatever happened."""
        self.ahead.close()
        self.feed.close()

    def _micro_batch(self, step: int, window: Window, looks: bool) -> None:
        """Forward and backward of one lane's share of the step; `looks` keeps a few images for the norms."""
        asked, epoch = time.perf_counter(), step // self.plan.steps_per_epoch
        self.watch.phase("data", step + 1)
        host_batch = next(self.feed)
        window.waited(time.perf_counter() - asked)
        self.watch.phase("step" if step > self.start else "compile")  # libraries choose and build kernels in the first
        batch = host_batch.to(self.world.device)
        main, aux = self.engine.forward(batch.images)
        losses = self.objective(main, aux, batch.labels, batch.positions, batch.valid, epoch)
        self.engine.backward(losses.total)
        if looks:
            self.norms.take(batch.images, batch.positions, batch.valid)
        right = (main.argmax(dim=1) == batch.labels) & batch.valid
        window.add(
            len(batch.labels),
            {
                "valid": batch.valid.sum(),
                "loss": losses.total * len(batch.labels),
                "top1": right.sum(),
                **losses.parts,
            },
        )
        self.bad["train"].add(host_batch.bad)

    def _record(self, step: int, window: Window) -> None:
        """One line of figures, and the images newly found bad."""
        done = step + 1
        self.watch.phase("record")
        self.nonfinite.look(self.tracker)
        figures = {**self._place(done), "lr": self.engine.lr, **window.close()}
        self.train_seconds += figures["seconds"]
        related = self.reference.training({"step": done, **figures}) if self.reference else {}
        self.tracker.log("train", done, figures | related)
        self._record_bad("train", done)

    def _place(self, done: int) -> dict[str, Any]:
        """Where in the run a record stands."""
        return {"epoch": done / self.plan.steps_per_epoch, "samples": done * self.plan.global_batch}

    def _record_bad(self, name: str, done: int) -> None:
        """Name the images newly found bad; too many of them end the run."""
        for fields in self.bad[name].agree():
            self.tracker.log("bad", done, {"dataset": name, **fields})

    def _evaluate(self, done: int) -> float | None:
        """One record for each set; returns the accuracy that chooses the best checkpoint, if one does."""
        selected = None
        self.engine.eval()
        for name, manifest in self.sets.items():
            began = time.perf_counter()
            figures = evaluate(self._answer, manifest, self.config, self.world, self.bad[f"eval.{name}"])
            self._record_bad(f"eval.{name}", done)
            spent = {"seconds": time.perf_counter() - began, "train_seconds": self.train_seconds}
            record = {**self._place(done), "set": name, **figures, **spent}
            related = self.reference.evaluation(record) if self.reference else {}
            self.tracker.log("eval", done, record | related)
            if name == self.config.eval.select_by:
                selected = figures["main/top1"]
        self.engine.train()
        return selected

    def _answer(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.watch.phase("evaluate")  # anew for each batch: a long evaluation is no hang
        return self.engine.forward(images)

    def _save(self, done: int, selected: float | None) -> None:
        self.watch.phase("save")
        self.engine.statistics.average_over_ranks()
        self.checkpoints.save(
            done,
            model=self.engine.module.state_dict(),
            optimizer=self.engine.optimizer.state_dict(),
            own=self.objective.state_dict(),
            home=self.plan.home(self.world.rank, self.world.size),
            about={
                "selected": selected,
                "identity": self.identity,
                "classes": self.manifest.classes,
                "versions": versions(),
                "world": self.world.size,
                "bad": {name: bad.state_dict() for name, bad in self.bad.items()},
                "nonfinite": self.nonfinite.state_dict(),
            },
        )

    def _restore(self, checkpoint: Path) -> None:
        home = self.plan.home(self.world.rank, self.world.size)
        model, optimizer, owns = self.checkpoints.load(checkpoint, self.world.device, home)
        self.engine.module.load_state_dict(model)
        self.engine.statistics.reload()
        self.engine.optimizer.load_state_dict(optimizer)
        for own in owns:
            self.objective.load_state_dict(own)
        index = read_index(checkpoint)
        for name, bad in self.bad.items():
            bad.load_state_dict(index["bad"].get(name, []))
        self.nonfinite.load_state_dict(index["nonfinite"])

    def _feed(self) -> Feed:
        """This rank's micro-batches, from the first step that is left to the end of the run."""
        data = self.config.data
        dataset = TrainBatches(
            self.manifest,
            self.plan,
            self.selection.labels,
            crop=data.crop,
            augment=data.augment,
            flip=data.flip,
            max_pixels=data.max_pixels,
            lanes=lanes_of_a_worker(len(self.lanes), data.workers),
        )
        keys = train_keys(self.plan, self.lanes, self.start, self.schedule.total_steps)
        return Feed(dataset, keys, data.workers, pin=self.world.device.type == "cuda")

    def _summary(self) -> dict[str, Any]:
        return {
            "name": self.config.run.name,
            "steps": self.schedule.total_steps,
            "epochs": self.config.optim.epochs,
            "samples": self.schedule.total_steps * self.plan.global_batch,
            **summarise(self.config.folder, self.schedule.total_steps),
            "parameters": sum(p.numel() for p in self.engine.module.parameters()),
            "world": self.world.size,
            "device": torch.cuda.get_device_name() if self.world.device.type == "cuda" else "cpu",
            "versions": versions(),
            "identity": self.identity,
            "set_fingerprints": {name: manifest.fingerprint for name, manifest in self.sets.items()},
        }
