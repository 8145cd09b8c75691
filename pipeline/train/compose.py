"""The configured losses, with the per-sample state and the penalties they need."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.config import Config
from pipeline.data.plan import Plan
from pipeline.data.selection import Selection
from pipeline.method.alasca import AdaptiveBase, Alasca, Trust
from pipeline.method.bank import SampleBank
from pipeline.method.dividemix import DivideMix
from pipeline.method.elr import EarlyLearning
from pipeline.method.elrplus import ElrPlus
from pipeline.method.evidence import Evidence
from pipeline.method.forward import ForwardCorrection
from pipeline.method.lipschitz import HiddenGradients, InputJacobian, Penalty, class_weights
from pipeline.method.losses import base_loss
from pipeline.method.objective import Objective
from pipeline.method.outputs import BaseLoss, HeadLoss
from pipeline.method.pairobjective import PairObjective
from pipeline.method.pairs import Choice, CoTeaching, CoTeachingPlus, Decoupling
from pipeline.method.supervision import SelfDistillation, Supervision
from pipeline.method.twonetworks import TwoNetworks
from pipeline.train import dist
from pipeline.train.dist import World
from pipeline.train.engine import Engine
from pipeline.train.forgetrate import known_forget_rate
from pipeline.train.noisematrix import noise_matrix
from shards.errors import InputError
from shards.manifest import Manifest
from shards.transitions import Matrix


def compose(
    config: Config, manifest: Manifest, selection: Selection, plan: Plan, world: World, engine: Engine
) -> Objective | TwoNetworks:
    """Build what a step of the engine minimises; per-sample state covers this rank's home alone."""
    method = config.method
    matrix, evidence = noise_matrix(config, manifest, selection), _evidence(manifest, selection, plan, world)
    objectives = []
    for _ in range(method.networks):
        banks = {name: _bank(config, plan, world, manifest.num_classes) for name in method.banks}
        trust = _trust(config, banks) if method.trusts else None
        base, aux = _base(config, banks, matrix, world, trust), _aux(config, trust)
        penalty = _penalty(config, manifest, selection, engine.module)
        objectives.append(Objective(base, aux, penalty, method.weight_of_penalty, banks, evidence, trust))
        evidence = None  # on the first of two networks alone
    if method.pair == "none":
        return objectives[0]
    first, second = objectives
    if method.pair == "elr+":
        targets = [_elr(config, each.banks) for each in objectives]
        look = partial(engine.look, averaged=True)
        return ElrPlus(first, second, targets, look, config.run.seed, **method.elr_plus.model_dump())
    if method.pair == "dividemix":
        return _dividemix(config, plan, world, engine, first, second)
    return PairObjective(first, second, _choice(config, known_forget_rate(config, manifest, selection)))


def read_class_errors(paths: Sequence[str], manifest: Manifest) -> list[float]:
    """Mean error (0 to 1) of each class over the files of `alasca eval --class-errors` that have one: {class: error}.

    A class for which none has one (it had no images: null) gets 1: nothing speaks for it.

    Raises:
        InputError: no file, one that cannot be read, or not an entry for each class of the dataset.
    """
    if not paths:
        raise InputError("method.har.class_errors = [] names no file: leave it out for uniform weights")
    errors = np.array([_class_errors(path, manifest) for path in paths])
    known = ~np.isnan(errors)
    sums, counts = np.where(known, errors, 0.0).sum(axis=0), known.sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), 1.0).tolist()


def _class_errors(path: str, manifest: Manifest) -> list[float]:
    where = f"method.har.class_errors = '{path}'"
    try:
        errors = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{where} cannot be read: {reason}") from None
    if not isinstance(errors, dict) or set(errors) != set(manifest.classes):
        raise InputError(f"{where} must hold one error for each class of {manifest.place}")
    for name, share in errors.items():
        if share is not None and (not isinstance(share, int | float) or not 0 <= share <= 1):
            raise InputError(f"{where}: the error of {name} is {share}, must be from 0 to 1")
    return [math.nan if errors[name] is None else float(errors[name]) for name in manifest.classes]


def _trust(config: Config, banks: Mapping[str, SampleBank]) -> Trust:
    options = config.method.alasca.model_dump(exclude={"aux_weight"})
    return Trust(**options | {"warmup_epochs": config.alasca_warmup_epochs}, bank=banks.get("alasca"))


def _base(
    config: Config, banks: Mapping[str, SampleBank], matrix: Matrix | None, world: World, trust: Trust | None
) -> BaseLoss:
    method = config.method
    if method.base == "adaptive" and trust is not None:
        return AdaptiveBase(trust)
    if matrix is not None:
        return ForwardCorrection(torch.from_numpy(matrix.values).to(world.device))
    if method.base == "elr":
        return _elr(config, banks)
    return base_loss(method.base, method.base_options)


def _elr(config: Config, banks: Mapping[str, SampleBank]) -> EarlyLearning:
    return EarlyLearning(banks["elr"], **config.method.elr.model_dump())


def _aux(config: Config, trust: Trust | None) -> HeadLoss | None:
    method = config.method
    if method.aux == "none":
        return None
    if method.aux == "alasca" and trust is not None:
        return Alasca(trust, method.alasca.aux_weight)
    options = getattr(method, method.aux).model_dump()
    return SelfDistillation(**options) if method.aux == "distillation" else Supervision(**options)


def _choice(config: Config, rate: float | None) -> Choice:
    method = config.method
    if rate is None:
        return Decoupling(method.decoupling.warmup_epochs)
    if method.pair == "coteaching":
        return CoTeaching(rate, method.coteaching.ramp_epochs)
    return CoTeachingPlus(rate, method.coteaching_plus.ramp_epochs, method.coteaching_plus.initial_epochs)


def _dividemix(
    config: Config, plan: Plan, world: World, engine: Engine, first: Objective, second: Objective
) -> DivideMix:
    for objective in (first, second):
        # One number a sample, so in full precision.
        objective.banks |= {name: _bank(config, plan, world, 1, "float32") for name in DivideMix.BANKS}
    place, options = (config.run.seed, plan.steps_per_epoch), config.method.dividemix.model_dump()
    return DivideMix(first, second, engine.look, dist.gather, *place, **options)


def _bank(config: Config, plan: Plan, world: World, width: int, dtype: str | None = None) -> SampleBank:
    start, stop = plan.home(world.rank, world.size)
    device = world.device if config.engine.bank_device == "auto" else torch.device("cpu")
    return SampleBank(start, stop, width, getattr(torch, dtype or config.engine.bank_dtype), device)


def _evidence(manifest: Manifest, selection: Selection, plan: Plan, world: World) -> Evidence | None:
    """None, on all ranks, where no sample in use has a known true label."""
    clean = manifest.clean_labels[selection.ids]
    if not (clean >= 0).any():
        return None
    start, stop = plan.home(world.rank, world.size)
    return Evidence(torch.from_numpy(clean[start:stop].astype(np.int32)).to(world.device), start)


def _penalty(config: Config, manifest: Manifest, selection: Selection, module: nn.Module) -> Penalty | None:
    method = config.method
    if method.penalty == "jacobian":
        return InputJacobian(module, method.jacobian.n_proj, config.run.seed)
    if method.penalty == "none":
        return None
    weights = None
    if method.har.class_errors is not None:
        errors = torch.tensor(read_class_errors(method.har.class_errors, manifest))
        counts = torch.from_numpy(np.bincount(selection.active_labels, minlength=manifest.num_classes))
        weights = class_weights(errors, counts)
    return HiddenGradients(module, weights)
