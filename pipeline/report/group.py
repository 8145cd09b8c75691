"""A comparison as wandb sees it: one more run in the group of its runs, with the figures, the table and the page."""

from pathlib import Path

from pipeline.config import Track
from pipeline.record.view import View
from pipeline.report import results
from pipeline.report.results import Results

NAME = "comparison"


def show(found: Results, folder: Path, page: Path, track: Track) -> None:
    """Show a comparison in the group that `track` names; a later one of the same folder takes its place.

    As everywhere, wandb that fails is one warning.
    """
    kept = folder / NAME
    about = {"baseline": found.baseline, "reference": found.reference, "target": found.target}
    view = View(kept, track, NAME, about | {"differences": found.differences}, resumed=True)
    view.show(results.rows(found), page)
    view.finish(figures(found))


def figures(found: Results) -> dict[str, float]:
    """Every figure of the comparison by its path: METHOD/SET/HEAD/last/mean, METHOD/images_per_s/ratio, ...

    `to_baseline` and `to_reference` are mean differences of accuracies (0 to 1) with the bounds of their 95 % interval,
    to the same head of that method, or to its main head where it lacks such a head;
    `ratio` is over the like-for-like run of the reference, `best_ratio` best against best.
    """
    named: dict[str, float | None] = {}
    for method in found.methods:
        for a in method.accuracies:
            at = f"{method.name}/{a.set}/{a.head}/{a.choice}"
            named |= {f"{at}/mean": a.spread.mean, f"{at}/std": a.spread.std}
            for role, gap in (("to_baseline", a.to_baseline), ("to_reference", a.to_reference)):
                if gap is not None:
                    named |= {f"{at}/{role}": gap.mean, f"{at}/{role}/low": gap.low, f"{at}/{role}/high": gap.high}
        for c in method.costs:
            at = f"{method.name}/{c.name}"
            named |= {f"{at}/mean": c.spread.mean, f"{at}/std": c.spread.std, f"{at}/ratio": c.ratio}
        for name, own in method.evidence.items():
            named |= {f"{method.name}/evidence/{name}/mean": own.mean, f"{method.name}/evidence/{name}/std": own.std}
        named[f"{method.name}/images_per_s/best_ratio"] = method.best_ratio
        for r in method.reaches:
            at = f"{method.name}/{r.set}/{r.head}/seconds_to_target"
            named |= {f"{at}/mean": r.seconds.mean if r.seconds else None, f"{at}/ratio": r.ratio}
    return {name: value for name, value in named.items() if value is not None}
