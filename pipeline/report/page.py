"""Results -> one self-contained HTML page: no script, nothing loaded, every text of the user escaped."""

import re
from collections.abc import Iterable
from html import escape

from pipeline.report.curves import accuracy_figures, evidence_figures, loss_figures, norm_figures
from pipeline.report.measures import Accuracy, Cost
from pipeline.report.results import Method, Results, cost, digits, label_rows, pm, rows
from pipeline.report.statistics import Difference, Spread
from pipeline.report.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_NOTHING = "\N{EN DASH}"
_TIMES = "\N{MULTIPLICATION SIGN}"


def render(results: Results) -> str:
    """The page, as a complete document in UTF-8."""
    title = escape(f"Comparison: {results.title}")
    sections = [
        _header(results),
        _section("Result", _result(results)),
        _section("How to read this", _reading(results)),
        _section("Accuracy over training", accuracy_figures(results)),
        _section("Accuracy, differences, seeds", _accuracies(results)),
        _section("Speed and memory", _costs(results)),
        "" if results.target is None else _section(f"Time to {100 * results.target:g} % accuracy", _reaches(results)),
        _section(
            "Training loss",
            "<p>Each method's own sum of losses: compare a curve with itself, not with its neighbours.</p>"
            + loss_figures(results),
        ),
        _evidence(results),
        _norms(results),
        _section("Configuration: what differs", _differences(results)),
        _section("Every run", _runs(results)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(results: Results) -> str:
    runs = [run for method in results.methods for run in method.runs]
    seeds = sorted({run.seed for run in runs})
    facts = [
        _count(len(results.methods), "method"),
        _count(len(runs), "run"),
        f"{'seeds' if len(seeds) > 1 else 'seed'} {_list(seeds)}",
        f"{_list(sorted({run.epochs for run in runs}))} epochs",
        f"baseline {results.baseline}",
        f"made {results.made.replace('T', ' ').replace('+00:00', ' UTC')}",
    ]
    return f'<h1>Comparison: {escape(results.title)}</h1>\n<p class="soft">{escape(" · ".join(facts))}</p>'


def _result(results: Results) -> str:
    chosen = f" (or at the step {results.select_by} chose, where it says so)" if results.select_by else ""
    return _spread_table(f"Top-1 accuracy after the last step{chosen}, and cost; mean ± std over seeds", rows(results))


def _spread_table(caption: str, found: list[list[str]]) -> str:
    header, *lines = found
    return _table(caption, header, [[cell.replace(" +/- ", " ± ") for cell in line] for line in lines])


def _reading(results: Results) -> str:
    if results.select_by:
        which = f"“Chosen” is the step that was best on {results.select_by}, for each run and head by itself; "
        which += "the other sets chose nothing. “Last” is after the last step."
    else:
        which = "Test data chose nothing here: every run counts as it is after its last step."
    items = [
        "± is the sample standard deviation over the seeds, which the table counts; one seed has none.",
        which,
        "“Main” is the main head; “averaged” the mean of main and last auxiliary logits, for methods that have one; of "
        "two networks both are the first one's, and “ensemble” is the mean of both main heads. They are different "
        "classifiers: compare within a column.",
        f"Differences to {results.baseline} are in percentage points, paired by seed (same batches and "
        "initial weights where the data settings agree), with the 95 % interval of the paired t test. One seed gives a "
        "difference and no interval.",
        "Images/s is the median over a run's windows, waiting for data included; training time leaves out evaluation "
        "and saving. Runs ran one after another: other work on the machine meanwhile shows in these figures.",
    ]
    if results.reference:
        items.append(
            f"Ratios ({_TIMES}) are to the mean of {results.reference}, like for like: equal data settings, network, "
            "precision, processes, device and versions. “Best against best” compares the fastest settings tried of "
            "each method instead, whatever they are."
        )
    items += [f"Measured with {line}." for line in _environments(results)]
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _environments(results: Results) -> list[str]:
    """Where these runs ran: one line if all ran in the same way."""
    where: dict[str, list[str]] = {}
    for method in results.methods:
        for run in method.runs:
            versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
            line = f"{_count(run.world, 'process', 'processes')} on {run.device}; {versions}"
            where.setdefault(line, []).append(f"{method.name} seed {run.seed}")
    return [line if len(where) == 1 else f"{line} ({', '.join(runs)})" for line, runs in where.items()]


def _accuracies(results: Results) -> str:
    other = results.reference if results.reference != results.baseline else None
    header = ["method", "set", "head", "at step", "accuracy %", f"difference to {results.baseline}"]
    header += [f"difference to {other}"] if other else []
    lines = []
    for method in results.methods:
        for found in method.accuracies:
            each = ", ".join(f"{100 * value:.2f}" for value in found.spread.values if found.spread.std is not None)
            own = f"{_pm(found.spread, 2, 100)}\n{each}"
            line = [method.name, found.set, found.head, _step(method, found, results), own]
            line.append(_gap(found.to_baseline, is_self=method.name == results.baseline))
            line += [_gap(found.to_reference, is_self=method.name == other)] if other else []
            lines.append(line)
    caption = "Top-1 accuracy, mean ± std (below: each seed); differences in points, paired by seed, [95 % interval]"
    return _table(caption + "; of a head that the other lacks, to its main head", header, lines)


def _step(method: Method, found: Accuracy, results: Results) -> str:
    if found.choice == "last":
        return f"last\n{_list(sorted({run.steps for run in method.runs}))}"
    steps = [run.chosen[key].step for run in method.runs if (key := f"{found.set}/{found.head}") in run.chosen]
    return f"chosen by {results.select_by}\n{_list(steps)}"


def _gap(found: Difference | None, *, is_self: bool) -> str:
    if is_self or found is None:
        return _NOTHING
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.2f}\nn = 1, no interval"
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]\nn = {len(found.seeds)}"


def _costs(results: Results) -> str:
    header = ["method", "images/s", "ms a step", "waiting for data %", "peak memory GB", "training s"]
    header += [f"ratio to {results.reference}", "best against best"] if results.reference else []
    lines = []
    for method in results.methods:
        line = [
            method.name,
            _cost(cost(method, "images_per_s")),
            _cost(cost(method, "step_seconds"), 1000),
            _cost(cost(method, "data_wait"), 100),
            _cost(cost(method, "memory_gb")),
            _cost(cost(method, "train_seconds")),
        ]
        lines.append(line + (_fairness(method, results) if results.reference else []))
    over = f", and {_TIMES} the mean of {results.reference} where it is like for like" if results.reference else ""
    return _table(f"Mean ± std over seeds{over}", header, lines)


def _fairness(method: Method, results: Results) -> list[str]:
    against = "like for like"
    if method.compared_to is None:
        against = f"no run like for like\ndiffers in {_list(method.unlike)}"
    elif method.compared_to != results.reference:
        against += f"\nwith {method.compared_to}: equal settings"
    best = _NOTHING
    if method.best_ratio is not None:
        best = f"{_times(method.best_ratio)} images/s\n{method.best} against {method.best_other}"
    return [against, best]


def _cost(found: Cost, scale: float = 1) -> str:
    times = "" if found.ratio is None else f"\n{_times(found.ratio)}"
    return _pm(found.spread, digits(scale * found.spread.mean), scale) + times


def _reaches(results: Results) -> str:
    header = ["method", "set", "head", "training s", "seeds that reached it"]
    lines = []
    for method in results.methods:
        for found in method.reaches:
            reached = len(found.seconds.seeds) if found.seconds else 0
            text = _pm(found.seconds, digits(found.seconds.mean)) if found.seconds else "not reached"
            text += "" if found.ratio is None else f"\n{_times(found.ratio)}"
            lines.append([method.name, found.set, found.head, text, f"{reached} of {found.seeds}"])
    caption = "Training time at the first evaluation that showed it, so up to one evaluation interval late; mean ± std "
    caption += "over the seeds that reached it"
    caption += f", {_TIMES} the mean of {results.reference} where all seeds did" if results.reference else ""
    return _table(caption, header, lines)


def _evidence(results: Results) -> str:
    """Absent where no true label is known."""
    found = label_rows(results)
    if not found:
        return ""
    text = (
        "Training images whose true label is known, augmented as they were learnt from; all in percent. A method with "
        "a confidence in each label treats those above one half as clean; others trust all alike."
    )
    table = _spread_table("Means over the last epoch; mean ± std over seeds", found)
    return _section("What became of wrong labels", f"<p>{escape(text)}</p>{table}{evidence_figures(results)}")


def _norms(results: Results) -> str:
    """Absent where no run measured them."""
    figures = norm_figures(results)
    images = max((n.images for method in results.methods for run in method.runs for n in run.norms), default=0)
    text = (
        "Norms of the Jacobians of the main head's logits, to the normalised pixels and each stage's output: smaller "
        f"is smoother, around training images. Each is a root mean square over {images:g} images of a step, one random "
        "direction an image: a noisy estimate of the Frobenius norm, and no upper bound of the Lipschitz constant. A "
        "method that keeps its logits small has smaller norms for that alone."
    )
    return _section("Smoothness of the network", f"<p>{escape(text)}</p>{figures}") if figures else ""


def _differences(results: Results) -> str:
    if not results.differences:
        return "<p>Nothing.</p>"
    names = [method.name for method in results.methods]
    lines = [[key, *(values.get(name, _NOTHING) for name in names)] for key, values in results.differences.items()]
    return _table("Keys whose values differ between methods", ["key", *names], lines)


def _runs(results: Results) -> str:
    header = ["method", "seed", "steps", "epochs", "images/s", "ms a step", "training s"]
    header += ["bad images", "where", "folder"]
    lines = []
    for method in results.methods:
        for run in method.runs:
            figures = (run.images_per_s, 1000 * run.step_seconds, run.train_seconds)
            where = f"{_count(run.world, 'process', 'processes')} on {run.device}"
            line = [str(run.seed), str(run.steps), f"{run.epochs:g}", *(f"{v:.{digits(v)}f}" for v in figures)]
            lines.append([method.name, *line, str(run.bad_images), where, run.folder])
    return f"<details><summary>{_count(len(lines), 'run')}</summary>{_table('One row a run', header, lines)}</details>"


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def _table(caption: str, header: list[str], lines: list[list[str]]) -> str:
    """Cells are text, escaped here; what follows a line break in one is small print."""
    numeric = [all(_numeric(line[i]) for line in lines) for i in range(len(header))]
    head = "".join(
        f'<th scope="col"{_class(n, "")}>{_unit(text)}</th>' for n, text in zip(numeric, header, strict=True)
    )
    body = []
    for first, *rest in lines:
        cells = "".join(f"<td{_class(n, c)}>{_cell(c)}</td>" for n, c in zip(numeric[1:], rest, strict=True))
        body.append(f'<tr><th scope="row"><span>{_breakable(first)}</span></th>{cells}</tr>\n')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(body)}</tbody></table></div>"
    )


def _numeric(cell: str) -> bool:
    return not cell or cell == _NOTHING or cell == "not reached" or cell[0] in "+-0123456789"


def _class(numeric: bool, cell: str) -> str:
    return ' class="n"' if numeric else ' class="wide"' if len(cell) > 48 else ""


def _cell(text: str) -> str:
    main, _, small = text.partition("\n")
    return escape(main) + (f"<small>{escape(small)}</small>" if small else "")


def _breakable(text: str) -> str:
    """A long name may break at its joints."""
    return re.sub(r"([._/])", r"\1<wbr>", escape(text))


def _unit(header: str) -> str:
    """Its last word, a unit or a short noun, does not stand alone on a line."""
    return escape(re.sub(r" (%|GB|s)(?= |$)", "\N{NO-BREAK SPACE}\\1", header))


def _pm(found: Spread | None, decimals: int, scale: float = 1) -> str:
    return pm(found, decimals, scale).replace("+/-", "±")


def _times(value: float) -> str:
    return f"{_TIMES} {value:.{2 if value >= 0.1 else 4}f}"


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def _list(values: Iterable[object]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
