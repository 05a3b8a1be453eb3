"""One section of the page per scenario; its content depends on the scenario's kind."""

from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path

from latentrt.benchmarks.context import PICTURES
from latentrt.benchmarks.report import charts, markup, text
from latentrt.benchmarks.report.figures import Entry, entries, label, points
from latentrt.benchmarks.results import (
    BuildRow,
    Failure,
    Finished,
    HostRow,
    NotRun,
    Peaks,
    Results,
    Row,
    StageWork,
)
from latentrt.benchmarks.scenarios import Point
from latentrt.benchmarks.summary import summarise
from latentrt.engine import graph, network

WORK_HEADER = ("stage", "runs", "operations", "least traffic", "traffic unfused", "floor")


def section(results: Results, found: Finished, folder: Path) -> str:
    """Heading, content, failures, contenders that did not run, and command of a scenario."""
    parts = [
        f'<section id="{found.scenario}"><h2>{found.scenario}</h2>',
        markup.paragraph(found.question, "faint"),
        *BODIES[found.kind](results, found, folder),
        *_notes(results, found),
        markup.code(found.command),
        "</section>",
    ]
    return "".join(parts)


def _requests(results: Results, found: Finished, folder: Path) -> Iterator[str]:
    """Requests or one component: at one point, or along an axis."""
    if not results.of(Row, found.scenario):
        return
    if found.axis:
        yield from _curves(results, found)
    else:
        for point in points(results, found.scenario):
            yield from _comparison(results, found, point, folder)


def _comparison(results: Results, found: Finished, point: Point, folder: Path) -> Iterator[str]:
    ranked = entries(results, found.scenario, point)
    works = [work for work in results.of(StageWork, found.scenario) if work.point == point]
    yield markup.paragraph(f"{point}. {text.conditions(found, min(entry.seconds.count for entry in ranked))}.")
    yield charts.comparison(ranked)
    yield _entry_table(ranked)
    if len(ranked[0].stages) > 1:
        yield markup.heading("Where the time goes") + charts.stages(ranked, works) + _stage_table(ranked)
    yield from _physics(results, found, ranked, works)
    shown = [markup.picture(folder / PICTURES / (entry.row.picture or ""), entry.label) for entry in ranked]
    if any(shown):
        yield markup.heading("The same request, drawn by each") + f'<div class="pictures">{"".join(shown)}</div>'


def _entry_table(ranked: list[Entry]) -> str:
    lines = text.without_empty_columns(text.HEADER, [text.cells(entry) for entry in ranked])
    return markup.table(lines, [entry.is_ours for entry in ranked])


def _stage_table(ranked: list[Entry]) -> str:
    """Median seconds of every stage, of the time outside the stages, and of the host's time from step to step.

    On a GPU the host runs ahead: as long as its step is shorter than the device's, the device never waits for it.
    """
    names = list(ranked[0].stages)
    lines = []
    for entry in ranked:
        host = [sample.step for sample in entry.row.samples if sample.step is not None]
        between = summarise([sample.wall - sum(sample.stages.values()) for sample in entry.row.samples]).median
        lines.append(
            (
                entry.label,
                *(text.seconds(entry.stages[name]) for name in names),
                text.seconds(max(between, 0.0)),
                text.seconds(entry.stages.get("denoise", 0.0) / entry.row.point.steps),
                text.seconds(summarise(host).median) if host else text.NOTHING,
            )
        )
    header = ("contender", *names, "outside the stages", "denoise per step", "host, step to step")
    return markup.table(text.without_empty_columns(header, lines), [entry.is_ours for entry in ranked])


def _physics(results: Results, found: Finished, ranked: list[Entry], works: list[StageWork]) -> Iterator[str]:
    peaks = next(
        (peak for peak in results.of(Peaks) if peak.device == found.device and found.precision in peak.tflops), None
    )
    if not works or peaks is None:
        return
    yield markup.heading("The machine's roof, and how near each stage comes")
    yield charts.roofline(ranked, works, peaks, found.precision)
    yield markup.table([WORK_HEADER, *(_work_cells(work) for work in works)])


def _work_cells(work: StageWork) -> tuple[str, ...]:
    return (
        work.stage,
        str(work.evaluations),
        f"{work.flops / 1e9:,.1f} GFLOP",
        text.size(work.least_bytes),
        text.size(work.unfused_bytes),
        text.seconds(work.floor),
    )


def _curves(results: Results, found: Finished) -> Iterator[str]:
    ranked = [entry for point in points(results, found.scenario) for entry in entries(results, found.scenario, point)]
    rounds = min(entry.seconds.count for entry in ranked)
    yield markup.paragraph(f"{text.conditions(found, rounds)}. Bands: fastest to slowest sample.")
    yield charts.scaling(found.axis, [(entry.row.point.along(found.axis), entry) for entry in ranked])  # type: ignore[arg-type]
    lines = [
        (str(entry.row.point), entry.label, *text.cells(entry)[1:5], text.seconds(entry.per_picture))
        for entry in ranked
    ]
    header = ("request", "contender", *text.HEADER[1:5], "per picture")
    yield markup.folded("every point", markup.table([header, *lines], [entry.is_ours for entry in ranked]))


def _builds(results: Results, found: Finished, folder: Path) -> Iterator[str]:
    rows = results.of(BuildRow, found.scenario)
    if not rows:
        return
    yield charts.build_bars(rows)
    lines = [
        (
            label(row.contender),
            f"{row.limits['width']} × {row.limits['height']}, pictures {row.limits['images']}",
            text.seconds(row.seconds),
            text.size(row.bytes),
            text.size(row.memory),
        )
        for row in rows
    ]
    yield markup.table([("form", "sizes", "seconds", "size", "peak memory"), *lines])
    names = dict.fromkeys(name for row in rows for name in row.components)
    engines = [(name, *(_component(row, name) for row in rows)) for name in names]
    yield markup.table([("engine", *(label(row.contender) for row in rows)), *engines])
    inside = [
        (label(row.contender), name, _heavy(layers))
        for row in rows
        for name, layers in row.layers.items()
        if _heavy(layers)
    ]
    yield markup.folded(
        "precision of every heavy layer, read back", markup.table([("form", "component", "layers"), *inside])
    )


def _heavy(layers: Mapping[str, int]) -> str:
    """The layers that do nearly all the arithmetic, as ONNX or TensorRT calls them, with their dtypes."""
    heavy = graph.HEAVY | network.HEAVY
    return ", ".join(f"{count} {kind}" for kind, count in sorted(layers.items()) if kind.split()[0] in heavy)


def _component(row: BuildRow, name: str) -> str:
    if name not in row.components:
        return text.NOTHING
    seconds, size = row.components[name]
    return f"{text.seconds(seconds)}, {text.size(size)}"


def _host(results: Results, found: Finished, folder: Path) -> Iterator[str]:
    rows = results.of(HostRow, found.scenario)
    if not rows:
        return
    few, many = rows[0].steps
    yield markup.paragraph(
        f"The real pipelines, with networks that return at once. Time of {many} steps less that of {few}, over "
        f"{many - few}; median of {len(rows[0].per_step)} rounds."
    )
    yield charts.host_bars(rows)
    lines = []
    for row in rows:
        found_here = summarise(row.per_step)
        lines.append(
            (label(row.contender), *(text.seconds(getattr(found_here, name)) for name in ("median", "least", "most")))
        )
    yield markup.table([("contender", "per step", "least", "most"), *lines])


def _notes(results: Results, found: Finished) -> Iterator[str]:
    """Failures, contenders that did not run, and settings and versions of the others."""
    for failure in results.of(Failure, found.scenario):
        yield f'<div class="failed"><b>Failed.</b> {escape(failure.message)}</div>'
    absent = [f"{label(one.contender)}: {one.reason}" for one in results.of(NotRun, found.scenario)]
    if absent:
        yield markup.paragraph("Not run: " + "; ".join(absent) + ".", "faint")
    told = {row.contender: row for row in results.of(Row, found.scenario)}
    lines = [
        (
            label(name),
            ", ".join(f"{package} {version}" for package, version in row.versions.items()),
            "; ".join(row.notes),
        )
        for name, row in told.items()
    ]
    if lines:
        yield markup.folded("versions and settings", markup.table([("contender", "versions", "settings"), *lines]))


BODIES: Mapping[str, Callable[[Results, Finished, Path], Iterator[str]]] = {
    "pictures": _requests,
    "component": _requests,
    "build": _builds,
    "host": _host,
}
