"""Samples of one interleaved run -> Markdown."""

from statistics import median

from benchmarks.variants import ALASCA, METHODS, PENALTIES, PLAIN, TIMM, Variant
from pipeline.bench import spread as spreads
from pipeline.bench.spread import spread

Samples = dict[Variant, list[float]]  # images/s, one of each repeat


def ratios(samples: Samples, over: Variant, under: Variant) -> list[float]:
    """Throughput of one over that of the other in the same repeat, so that a drift of the machine cancels."""
    return spreads.ratios(samples[over], samples[under])


def methods(samples: Samples, memory: dict[str, int | None], failed: dict[Variant, str], channels_last: bool) -> str:
    """Every method in one layout, eager: throughput, its ratio to ce, memory."""
    ce = Variant("ce", channels_last)
    lines = ["| method | images/s | ratio to ce | peak memory MB |", "|---|---|---|---|"]
    for variant in (Variant(name, channels_last) for name in METHODS):
        if variant in failed:
            lines.append(f"| {variant.method} | {failed[variant]} | | |")
        else:
            peak = memory.get(variant.method)
            megabytes = "not measured" if peak is None else f"{peak / 1e6:,.0f}"
            ratio = spread(ratios(samples, variant, ce)) if ce in samples else ""
            lines.append(f"| {variant.method} | {spread(samples[variant])} | {ratio} | {megabytes} |")
    return "\n".join(lines)


def against_penalties(samples: Samples, ways: dict[str, Variant]) -> str:
    """Throughput of ALASCA over that of each penalty; `ways` names the variant that stands for a method."""
    lines = ["| throughput over that of | har | jacobian |", "|---|---|---|"]
    for name in ALASCA:
        cells = [
            spread(ratios(samples, ways[name], ways[penalty])) if {name, penalty} <= ways.keys() else "-"
            for penalty in PENALTIES
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peers(samples: Samples, memory: dict[str, int | None], absent: dict[str, str], channels_last: bool) -> str:
    """Cross entropy through us beside the loops that have no DeepSpeed."""
    ce = Variant("ce", channels_last)
    lines = ["| cross entropy by | images/s | ours over it | peak memory MB |", "|---|---|---|---|"]
    for name in ("ce", PLAIN, TIMM):
        variant = Variant(name, channels_last)
        if variant in samples:
            peak = memory.get(name)
            megabytes = "not measured" if peak is None else f"{peak / 1e6:,.0f}"
            ratio = spread(ratios(samples, ce, variant)) if ce in samples else ""
            lines.append(f"| {'ours' if name == 'ce' else name} | {spread(samples[variant])} | {ratio} | {megabytes} |")
    return "\n".join([*lines, *(f"\n{name}: {why}." for name, why in absent.items())])


def best_ways(samples: Samples) -> dict[str, Variant]:
    """For each method the variant with the highest median."""
    return {
        name: max((v for v in samples if v.method == name), key=lambda v: median(samples[v]))
        for name in METHODS
        if any(v.method == name for v in samples)
    }


def best(samples: Samples, failed: dict[Variant, str]) -> str:
    """Every way of every method, the best in bold."""
    winners = best_ways(samples).values()
    lines = ["| method | how | images/s |", "|---|---|---|"]
    for name in METHODS:
        for variant in (v for v in [*samples, *failed] if v.method == name):
            cell = failed.get(variant) or spread(samples[variant])
            lines.append(f"| {name} | {variant.way} | {f'**{cell}**' if variant in winners else cell} |")
    return "\n".join(lines)
