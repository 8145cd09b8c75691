"""Run folders with figures written by hand, and a comparison of three methods as a page would show it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from pipeline.report import results
from pipeline.report.results import Results

MakeRun = Callable[..., Path]

VERSIONS = {"alasca": "0.1.0", "torch": "2.15.0"}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A finished run: `accuracies` per set and head, one value an evaluation; 10 steps of 64 images in `seconds` each.

    `norms` are those after each evaluation, `evidence` of the two windows before each; `config` overrides dotted keys,
    `summary` fields of the summary.
    """

    def make(
        method: str,
        seed: int = 0,
        *,
        accuracies: dict[str, list[float]],
        seconds: float = 2.0,
        losses: list[float | None] | None = None,
        norms: list[dict[str, float | None]] | None = None,
        evidence: list[dict[str, float | None]] | None = None,
        config: dict[str, Any] | None = None,
        **summary: Any,
    ) -> Path:
        folder = tmp_path / "runs" / f"{method.encode().hex()}-{seed}"
        folder.mkdir(parents=True)
        tables: dict[str, Any] = {
            "run": {"name": f"{method}-seed{seed}", "dir": "runs", "seed": seed, "resume": "auto"},
            "data": {"train": "shards", "lanes": 2, "micro_batch": 32},
            "model": {"name": "resnet20"},
            "method": {"base": "ce", "aux": "none"},
            "optim": {"epochs": max((len(values) for values in accuracies.values()), default=2), "lr": 0.1},
        }
        for dotted, value in (config or {}).items():
            section, key = dotted.split(".")
            tables.setdefault(section, {})[key] = value
        (folder / "config.toml").write_text(tomli_w.dumps(tables))

        records: list[dict[str, Any]] = []
        evaluations = max((len(values) for values in accuracies.values()), default=2)
        sets = list(dict.fromkeys(key.split("/")[0] for key in accuracies))
        for number in range(1, evaluations + 1):
            at = {"step": 10 * number, "epoch": float(number)}
            for half, back in ((1, 5), (2, 0)):  # two windows an evaluation
                loss = losses[number - 1] if losses else 3.0 / (number + half / 2)
                records.append({"kind": "train", **at, "step": at["step"] - back, "epoch": number - back / 10})
                records[-1] |= {"loss": loss, "seconds": seconds / 2, "top1": 0.5}
                records[-1] |= {f"evidence/{k}": v for k, v in (evidence[number - 1] if evidence else {}).items()}
            for name in sets:
                heads = {f"{key.split('/')[1]}/top1": v[number - 1] for key, v in accuracies.items() if name in key}
                records.append({"kind": "eval", **at, "set": name, **heads})
            if norms:
                own_norms = norms[number - 1]
                records.append({"kind": "norms", **at, "images": 8, **own_norms})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        final = {
            name: {f"{key.split('/')[1]}/top1": v[-1] for key, v in accuracies.items() if name in key} for name in sets
        }
        own = {
            "steps": 10 * evaluations,
            "epochs": tables["optim"]["epochs"],
            "samples": 640 * evaluations,
            "sets": final,
            "images_per_s": 640 / seconds,
            "data_wait": 0.05,
            "memory_gb": 0.5,
            "train_seconds": seconds * evaluations,
            "bad_images": 0,
            "world": 2,
            "device": "cpu",
            "versions": VERSIONS,
        }
        (folder / "summary.json").write_text(json.dumps(own | summary))
        return folder

    return make


@pytest.fixture
def comparison(make_run: MakeRun) -> Results:
    """Four methods, three seeds, 24 evaluations, two sets; two methods without averaged heads, one without norms
    and without evidence on labels."""

    def curve(top: float, seed: int, speed: float) -> list[float]:
        return [
            top * (1 - math.exp(-speed * n)) + 0.02 * math.sin(top * 40 * n + 5 * seed) * math.exp(-n / 40)
            for n in range(1, 25)
        ]

    def steepness(top: float, seed: int, n: int) -> dict[str, float | None]:
        at_input = 0.3 * math.exp((0.9 - top) * n) * (1 + 0.1 * math.sin(9 * n + seed))
        return {"input": at_input, **{f"hidden/stage{s}": 4 * at_input**0.2 / s for s in (1, 2, 3)}}

    def memory(top: float, n: int, trusts: bool) -> dict[str, float | None]:
        memorised = (0.9 - top) * (1 - math.exp(-n / 12)) * 3
        found: dict[str, float | None] = {"true_top1": top - memorised / 4, "memorised": memorised}
        found |= {"probability_right": 0.9 * top, "probability_wrong": 0.8 * memorised}
        return found | ({"precision": None if n == 1 else 0.6 + top / 4, "recall": 0.9} if trusts else {})

    methods: dict[str, list[Path]] = {}
    for name, top, speed, seconds, changes in (
        ("ce", 0.70, 0.30, 20.0, {}),
        ("lipschitz", 0.79, 0.20, 70.0, {"method.penalty": "har", "method.penalty_weight": 0.001}),
        ("alasca", 0.82, 0.25, 24.0, {"method.aux": "alasca"}),
        ("<script>alert(1)</script>", 0.76, 0.24, 12.0, {"data.micro_batch": 64, "model.name": 'r"n&20'}),
    ):
        methods[name] = []
        for seed in (0, 1, 2):
            accuracies = {"val/main": curve(top - 0.01, seed, speed), "test/main": curve(top, seed + 3, speed)}
            if name not in ("ce", "<script>alert(1)</script>"):
                accuracies |= {f"{s}/averaged": curve(top + 0.02, seed + 6, speed) for s in ("val", "test")}
            norms = None if name == "lipschitz" else [steepness(top, seed, n) for n in range(1, 25)]
            evidence = None if name == "lipschitz" else [memory(top, n, name == "alasca") for n in range(1, 25)]
            run = make_run(
                name,
                seed,
                accuracies=accuracies,
                seconds=seconds * (1 + seed / 50),
                norms=norms,
                evidence=evidence,
                config=changes,
            )
            methods[name].append(run)
    return results.collect(
        "label noise on digits", methods, baseline="ce", reference="lipschitz", target=0.75, select_by="val"
    )
