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
from pipeline.train.checkpoint import Checkpoints, read_index
from pipeline.train.compose import compose
from pipeline.train.dist import World
from pipeline.train.engine import Engine
from pipeline.train.evaluate import evaluate
from pipeline.train.identity import identity, refuse_difference, versions
from pipeline.train.inputs import Inputs
from pipeline.train.norms import JacobianNorms
from pipeline.train.schedule import Schedule


def train(config: Config) -> None:
    """Train as configured, under whatever launcher started this process.

    Everything the user can get wrong is looked at before the processes meet and before anything is written.

    Raises:
        InputError: see `Inputs.open`, `Checkpoints.choose`, `refuse_difference`, `BadImages.agree`.
    """
    inputs = Inputs.open(config, dist.world_size())
    world = dist.start(config.dist.timeout)
    training = Training(config, inputs, world)
    try:
        training.run()
    finally:
        training.close()
    dist.stop()


class Training:
    """One run in one process of it; holds what the steps share."""

    def __init__(self, config: Config, inputs: Inputs, world: World) -> None:
        self.config, self.world = config, world
        self.manifest, self.selection = inputs.manifest, inputs.selection
        self.sets, self.plan = inputs.sets, inputs.plan
        self.lanes = self.plan.lanes_of(world.rank, world.size)
        self.schedule = Schedule(config.optim, self.plan.steps_per_epoch)
        self.identity = identity(config, self.manifest, self.selection)
        self.checkpoints = Checkpoints(config.folder / "checkpoints", world, config.checkpoint.keep)
        checkpoint = self.checkpoints.choose(config.run.resume)
        self.start = 0
        if checkpoint is not None:
            index = read_index(checkpoint)
            refuse_difference(index["identity"], self.identity, str(checkpoint))
            self.start = index["step"]
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
            self.step(step, window, looks)
            done = step + 1
            ends_epoch, saves = done % per_epoch == 0, done % save_every == 0 or done == last
            evaluates = done == last or (ends_epoch and done // per_epoch % config.eval.every == 0)
            self.tracker.progress(done)
            self.ahead.reached(done)
            if looks:
                self.tracker.log("norms", done, {**self._place(done), **self.norms.record(step // per_epoch)})
            # A window never spans a checkpoint, so that a resumed run writes the same lines.
            if done % config.track.every == 0 or evaluates or saves:
                self._record(step, window)
                if evaluates:
                    self._evaluate(done)
                if saves:
                    self._save(done)
                window = Window()
        if last < self.schedule.total_steps:
            self.tracker.pause(last)
        elif self.world.rank == 0:
            self.tracker.finish(self._summary())

    def step(self, step: int, window: Window, looks: bool = False) -> None:
        """Forward and backward of this rank's micro-batches, then the update; `looks` keeps images for the norms."""
        for _ in self.lanes:
            self._micro_batch(step // self.plan.steps_per_epoch, window, looks)
        self.engine.step(self.schedule.lr(step))

    def close(self) -> None:
        """End what works for this process beside it; whatever happened."""
        self.ahead.close()
        self.feed.close()

    def _micro_batch(self, epoch: int, window: Window, looks: bool) -> None:
        """Forward and backward of one lane's share of the step; `looks` keeps a few images for the norms."""
        asked = time.perf_counter()
        host_batch = next(self.feed)
        window.waited(time.perf_counter() - asked)
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

    def _evaluate(self, done: int) -> None:
        self.engine.eval()
        for name, manifest in self.sets.items():
            began = time.perf_counter()
            figures = evaluate(self.engine.forward, manifest, self.config, self.world, self.bad[f"eval.{name}"])
            self._record_bad(f"eval.{name}", done)
            spent = {"seconds": time.perf_counter() - began, "train_seconds": self.train_seconds}
            record = {**self._place(done), "set": name, **figures, **spent}
            related = self.reference.evaluation(record) if self.reference else {}
            self.tracker.log("eval", done, record | related)
        self.engine.train()

    def _save(self, done: int) -> None:
        self.engine.statistics.average_over_ranks()
        self.checkpoints.save(
            done,
            model=self.engine.module.state_dict(),
            optimizer=self.engine.optimizer.state_dict(),
            own={
                "objective": self.objective.state_dict(),
                "bad": {name: bad.state_dict() for name, bad in self.bad.items()},
            },
            about={"identity": self.identity, "classes": self.manifest.classes, "versions": versions()},
        )

    def _restore(self, checkpoint: Path) -> None:
        model, optimizer, own = self.checkpoints.load(checkpoint, self.world.device)
        self.engine.module.load_state_dict(model)
        self.engine.statistics.reload()
        self.engine.optimizer.load_state_dict(optimizer)
        self.objective.load_state_dict(own["objective"])
        for name, bad in self.bad.items():
            bad.load_state_dict(own["bad"].get(name, {}))

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
