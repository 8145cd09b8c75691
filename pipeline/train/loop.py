"""Training, from the first batch to the summary. Read `Training.run` first."""

import contextlib
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.ahead import Ahead
from pipeline.record.metrics import Window
from pipeline.record.reference import Reference
from pipeline.record.summary import train_seconds
from pipeline.record.track import Tracker
from pipeline.train import dist
from pipeline.train.checkpoint import read_index
from pipeline.train.checkpoints import Checkpoints
from pipeline.train.dist import World
from pipeline.train.evaluate import Answers, evaluate
from pipeline.train.evaluations import Evaluations
from pipeline.train.flags import Flags
from pipeline.train.identity import identity, refuse_difference
from pipeline.train.inputs import Inputs
from pipeline.train.launcher import Launcher
from pipeline.train.memory import explained
from pipeline.train.norms import JacobianNorms
from pipeline.train.outcome import outcome
from pipeline.train.restarts import Restarts
from pipeline.train.saves import Saves
from pipeline.train.schedule import Schedule
from pipeline.train.state import State
from pipeline.train.stop import Asked, Reason, Stop, mark_stopped
from pipeline.train.watch import Watch

_SECONDS_TO_FINISH = 20.0  # for a checkpoint that is being written when a run fails: less than others wait for its end


def train(config: Config, stop: Stop) -> list[str]:
    """Train as configured, under whatever launcher started this process; `stop` listens already.

    Everything the user can get wrong is looked at before the processes meet and before anything is written.

    Returns:
        On rank 0, a line for each checkpoint that could not be written; else nothing.

    Raises:
        InputError: see `Inputs.open`, `Checkpoints.choose`, `refuse_difference`, `BadImages.agree`, `NonFiniteSteps`.
        OwnError: this process's GPU is out of memory.
    """
    inputs = Inputs.open(config, dist.world_size())
    timeout, heartbeat = config.dist.timeout, config.dist.heartbeat
    world = dist.start(timeout + heartbeat, stop.hold)  # raises after the watch, which can say more
    with Watch(world, timeout, heartbeat, dist.own_store()) as watch, explained(config, inputs, world):
        training = Training(config, inputs, world, watch, stop)
        try:
            training.run()
        finally:
            training.close()
    dist.stop()
    return training.unsaved


class Training:
    """One run in one process of it; holds what the steps share."""

    def __init__(
        self, config: Config, inputs: Inputs, world: World, watch: Watch | None = None, stop: Stop | None = None
    ) -> None:
        self.config, self.world, self.stop = config, world, stop or Stop(Launcher())
        self.watch = watch or Watch(world, config.dist.timeout, config.dist.heartbeat)  # which nobody looks at
        self.manifest, self.selection = inputs.manifest, inputs.selection
        self.sets, self.plan = inputs.sets, inputs.plan
        self.lanes = self.plan.lanes_of(world.rank, world.size)
        self.schedule = Schedule(config.optim, self.plan.steps_per_epoch)
        self.identity = identity(config, self.manifest, self.selection)
        folder = config.folder / "checkpoints"
        # A save that is waited for must give up before the watch does.
        patience, moves = 0.8 * config.dist.timeout, partial(self.watch.phase, "save")
        self.checkpoints = Checkpoints(folder, world, config.checkpoint.keep, patience, moves)
        self.checkpoints.meet()
        restarts = Restarts(config, world, self.stop.launcher)
        checkpoint = self.checkpoints.choose(restarts.resume())
        self.start, self.unsaved = 0, list[str]()  # and lines on checkpoints that the end has to tell of
        if checkpoint is not None:
            index = read_index(checkpoint)
            classes = index["classes"], self.manifest.classes
            refuse_difference(index["identity"], self.identity, str(checkpoint), classes)
            self.start = index["step"]
        total = self.schedule.total_steps
        self.last = min(total, config.run.max_steps or total)
        self.evaluations = Evaluations(config, self.sets, self.plan.steps_per_epoch, self.start, self.last, world)
        self.ahead = Ahead(self.manifest, self.plan, self.lanes, self.start, self.last, dist.neighbours())
        of_the_node = self.ahead.warning() if world.local_rank == 0 else None
        of_the_run = inputs.warnings(config) if world.rank == 0 else ()
        for warning in filter(None, (of_the_node, *of_the_run)):
            print(f"alasca: {warning}", file=sys.stderr, flush=True)
        self.feed = inputs.feed(config, world, self.start, self.last)
        self.state = State(config, inputs, world)
        self.engine, self.objective = self.state.engine, self.state.objective
        self.bad, self.nonfinite = self.state.bad, self.state.nonfinite
        self.norms = JacobianNorms(self.engine.module, config.run.seed, config.data.lanes, config.engine.channels_last)
        if checkpoint is not None:
            self.state.restore(self.checkpoints, checkpoint)
            if world.rank == 0:
                self.checkpoints.rewind(self.start)
        self.tracker = Tracker(
            config,
            leader=world.rank == 0,
            total_steps=total,
            start_step=self.start,
            identity=self.identity,
        )
        restarts.mark()
        leads = world.rank == 0
        self.saves = Saves(config, self.checkpoints, self.plan, self.identity, leads, self.last, checkpoint)
        self.flags = Flags("stop", "save", world=world, timeout_s=config.dist.timeout + config.dist.heartbeat)
        # Only the leader's records count, and only it may meet a file that somebody else is writing.
        self.train_seconds = train_seconds(config.folder) if leads else 0.0  # of earlier attempts
        self.reference = Reference(Path(config.track.reference)) if config.track.reference and leads else None

    def run(self) -> None:
        """Every step that is left: micro-batches, update, record, evaluation, checkpoint. May be asked to stop."""
        folder, leads = self.config.folder, self.world.rank == 0
        with self.stop.obeyed(folder, leads, self.config.run.max_minutes):
            done, reason = self._steps()
            self.watch.phase("save")
            self.checkpoints.finish()
            self.watch.phase("finish")
            if reason is not None:
                saved = self.checkpoints.newest_step()
                self.unsaved = self.checkpoints.failures if saved < done else []
                if leads and saved == done:
                    mark_stopped(folder, done, reason)
                beyond = self.schedule.total_steps if reason == "run.max_steps" else None
                self.tracker.pause(saved, reason, self.stop.launcher.command(beyond))
            elif leads:
                self.unsaved = self.checkpoints.failures
                summary = outcome(self.config, self.plan, done, self.engine.module, self.world, self.sets)
                self.tracker.finish(summary | {"identity": self.identity})

    def _steps(self) -> tuple[int, str | None]:
        """Finished steps, all saved, and why there are not more of them; None at the end of the run."""
        config, per_epoch = self.config, self.plan.steps_per_epoch
        self.stop.mind_saving(self.saves.seconds)
        self.engine.train()
        if self.start == 0 and (lacking := self.plan.deficit(0)):
            self.tracker.log("balance", 0, {f"lacking/{self.manifest.classes[k]}": n for k, n in lacking.items()})
        reason = self._evaluate(self.start) if self.evaluations.due(self.start) else None
        if self.saves.lacking(self.start):
            self._save(self.start)
        window = Window()
        if reason is None and self.start < self.last:
            reason = self._first_batch(window)
        if reason is not None:
            return self.start, str(reason)
        for step in range(self.start, self.last):
            looks = config.track.norms > 0 and (step + 1) % config.track.norms == 0
            flags = self.step(step, window, looks)
            done = step + 1
            self.nonfinite.note(done, flags, self.tracker)
            agreed = self.flags.read()
            reason = self._agreed(agreed)
            self.flags.post(stop=self.stop.asked() or 0, save=self.saves.ask())
            evaluates = self.evaluations.due(done)
            saves = self.saves.due(done, evaluates, agreed["save"])
            self.tracker.progress(done)
            self.ahead.reached(done)
            if looks:
                self.tracker.log("norms", done, {**self._place(done), **self.norms.record(step // per_epoch)})
            # A window never spans a checkpoint, so that a resumed run writes the same lines.
            if done % config.track.every == 0 or evaluates or saves or reason:
                self._record(step, window)
                if evaluates and not reason:
                    reason = self._evaluate(done)
                if saves or reason:
                    self._save(done)
                window = Window()
            if reason:
                return done, str(reason)
        self.flags.read()
        done = max(self.start, self.last)
        return done, None if done == self.schedule.total_steps else "run.max_steps"

    def step(self, step: int, window: Window, looks: bool = False) -> torch.Tensor:
        """Forward and backward of this rank's micro-batches, then the update; `looks` keeps images for the norms.

        Returns what was not finite (`pipeline.train.nonfinite.find`); then nothing has changed.
        """
        for lane in self.lanes:
            self._micro_batch(step, lane, window, looks)
        flags = self.engine.step(self.schedule.lr(step))
        skipped = flags.any()
        self.objective.settle(skipped)
        window.settle(skipped)
        epochs, begun = divmod(step + 1, self.plan.steps_per_epoch)
        if not begun:
            self.watch.phase("epoch")
            self.objective.end_epoch(epochs)
        return flags

    def close(self) -> None:
        """End what works for this process beside it; whatever happened."""
        self.ahead.close()
        self.feed.close()
        self.checkpoints.close(_SECONDS_TO_FINISH)

    def _first_batch(self, window: Window) -> Reason | None:
        """Wait for it on all ranks. Nothing was done yet, so the wait may be cut off; then all of them leave."""
        asked = time.perf_counter()
        self.watch.phase("data", self.start + 1)
        with contextlib.suppress(Asked), self.stop.interruptible():
            self.feed.prepare()
        self.stop.pass_on()
        window.waited(time.perf_counter() - asked)
        return self._agreed(self.flags.agree(stop=self.stop.asked() or 0))

    def _agreed(self, flags: dict[str, int]) -> Reason | None:
        """Why to stop, the same on all ranks."""
        return Reason(flags["stop"]) if flags["stop"] else None

    def _micro_batch(self, step: int, lane: int, window: Window, looks: bool) -> None:
        """Forward and backward of one lane's share of the step; `looks` keeps a few images for the norms."""
        asked, epoch = time.perf_counter(), step // self.plan.steps_per_epoch
        self.watch.phase("data", step + 1)
        host_batch = next(self.feed)
        window.waited(time.perf_counter() - asked)
        self.watch.phase("step" if step > self.start else "compile")  # libraries choose and build kernels in the first
        batch = host_batch.to(self.world.device)
        main, aux = self.engine.forward(self.objective.inputs(batch, step, lane))
        losses = self.objective(main, aux, batch.labels, batch.positions, batch.valid, epoch)
        self.engine.backward(losses.total)
        if looks:
            self.norms.take(batch.first_view, batch.positions, batch.valid)
        sums = {"valid": batch.valid.sum(), "loss": losses.total * len(batch.labels), "top1": losses.right}
        window.add(len(batch.labels), sums | losses.parts, losses.shares)
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

    def _evaluate(self, done: int) -> Reason | None:
        """Evaluate on every set that the record of this step lacks: a stop may have cut an earlier attempt off here.

        Returns:
            Why it was cut off, on all ranks: then the set at hand has no record.
        """
        missing, known = self.evaluations.missing(done)
        for name, accuracy in known.items():
            self.saves.note(done, name, accuracy)
        if missing:
            self.engine.eval()
        for name, manifest in missing.items():
            began, bad = time.perf_counter(), self.bad[f"eval.{name}"]
            answers = Answers(self._answer, manifest, self.config, self.world, bad, stop=self.stop.asked)
            figures = evaluate(answers)
            if figures is None:
                self.engine.train()
                return self._agreed(self.flags.agree(stop=self.stop.asked() or 0))
            self._record_bad(f"eval.{name}", done)
            spent = {"seconds": time.perf_counter() - began, "train_seconds": self.train_seconds}
            record = {**self._place(done), "set": name, **figures, **spent}
            related = self.reference.evaluation(record) if self.reference else {}
            self.tracker.log("eval", done, record | related)
            self.saves.note(done, name, figures["main/top1"])
        self.engine.train()
        return None

    def _answer(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        self.watch.phase("evaluate")  # anew for each batch: a long evaluation is no hang
        return self.engine.forward(images)

    def _save(self, done: int) -> None:
        self.watch.phase("save")
        self.tracker.sync()  # the lines up to here are as safe as the checkpoint
        self.saves.save(self.state, done)
        self.stop.mind_saving(self.saves.seconds)
