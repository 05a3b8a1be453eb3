"""The charts of the report, drawn by matplotlib as SVG to embed in the page."""

import io
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from latentrt.benchmarks.report.figures import STAGES, Entry, label
from latentrt.benchmarks.report.text import seconds, size
from latentrt.benchmarks.results import BuildRow, HostRow, Peaks, StageWork

OURS_COLOURS = ("#0d9488", "#115e59", "#2dd4bf", "#5eead4", "#134e4a")
PEER_COLOURS = ("#475569", "#94a3b8", "#b45309", "#7c3aed")
STAGE_COLOURS = {"text": "#fbbf24", "denoise": "#0d9488", "decode": "#6366f1", "component": "#0d9488"}
STAGE_MARKERS = {"text": "^", "denoise": "o", "decode": "s", "component": "o"}
INK, FAINT, GRID = "#0f172a", "#64748b", "#e2e8f0"

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "latentrt",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
WIDTH = 10.4
"""Inches; the page scales charts to its own width."""


def plain(value: float, _place: object) -> str:
    """A tick of a logarithmic axis without a power of ten."""
    return f"{value:g}"


def colours(contenders: Iterable[str], ours: Iterable[bool]) -> dict[str, str]:
    """A colour for each contender, in a fixed order: teal for latentrt, others for peers."""
    found: dict[str, str] = {}
    for name, own in sorted(set(zip(contenders, ours, strict=True))):
        table = OURS_COLOURS if own else PEER_COLOURS
        taken = sum(colour in table for colour in found.values())
        found[name] = table[taken % len(table)]
    return found


def _colours(entries: Sequence[Entry]) -> dict[str, str]:
    return colours([entry.row.contender for entry in entries], [entry.is_ours for entry in entries])


def _figure(height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def _svg(figure: Figure, description: str) -> str:
    """The figure's `<svg>` element alone: no prolog, no metadata, the page's own fonts."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", text)
    for _ in ("width", "height"):
        text = re.sub(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"', r"\1", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1).strip()


def comparison(entries: Sequence[Entry]) -> str:
    """A bar per contender, fastest on top: median, quartiles as a whisker, every sample as a dot."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(0.62 * len(entries) + 0.7)
        shades = _colours(entries)
        for place, entry in enumerate(entries):
            summary = entry.seconds
            axes.barh(place, summary.median, 0.58, color=shades[entry.row.contender])
            spread = [[summary.median - summary.lower], [summary.upper - summary.median]]
            axes.errorbar(summary.median, place, xerr=spread, color=INK, capsize=3, linewidth=1.1)
            walls = [sample.wall for sample in entry.row.samples]
            axes.scatter(walls, [place] * len(walls), 11, color="white", edgecolor=INK, linewidth=0.7, zorder=3)
        most = max(entry.seconds.most for entry in entries)
        for place, entry in enumerate(entries):
            ratio = entry.times_ours
            shown = seconds(entry.seconds.median) + (f"   {ratio.median:.2f}×" if ratio and ratio.median != 1 else "")
            axes.text(entry.seconds.most + 0.015 * most, place, shown, va="center", fontweight="bold")
        axes.set_yticks(range(len(entries)), [entry.label for entry in entries])
        axes.invert_yaxis()
        axes.set_xlim(0, most * 1.22)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds per request; × is the time over latentrt's, median of the rounds")
        return _svg(figure, "seconds per request of every contender")


def stages(entries: Sequence[Entry], works: Sequence[StageWork]) -> str:
    """A stacked bar per contender: where the time goes; below them, the least time at the machine's peaks."""
    names = [stage for stage in STAGES if any(stage in entry.stages for entry in entries)]
    bars = [(entry.label, entry.stages) for entry in entries]
    if works:
        bars.append(("the machine's floor", {work.stage: work.floor for work in works}))
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(0.52 * len(bars) + 1.0)
        for place, (_, parts) in enumerate(bars):
            start = 0.0
            for stage in names:
                axes.barh(place, parts.get(stage, 0.0), 0.56, left=start, color=STAGE_COLOURS[stage])
                start += parts.get(stage, 0.0)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("median seconds")
        for stage in names:
            axes.barh(0, 0, color=STAGE_COLOURS[stage], label=stage)
        figure.legend(loc="outside upper right", ncols=len(names))
        return _svg(figure, "median seconds of every stage")


def scaling(axis: str, curves: Sequence[tuple[int, Entry]]) -> str:
    """Two panels over the quantity that grows: seconds per request, and seconds per unit of that quantity."""
    per = {"steps": "per step", "images": "per picture", "size": "per megapixel"}[axis]
    with mpl.rc_context(STYLE):
        figure, (left, right) = _figure(3.3, 2)
        shades = _colours([entry for _, entry in curves])
        for name, shade in shades.items():
            own = [(place, entry) for place, entry in curves if entry.row.contender == name]
            places = [place for place, _ in own]
            units = [_units(axis, entry) for _, entry in own]
            middle = [entry.seconds.median for _, entry in own]
            low, high = ([getattr(entry.seconds, bound) for _, entry in own] for bound in ("least", "most"))
            left.plot(places, middle, "o-", color=shade, label=label(name), linewidth=2, markersize=5)
            left.fill_between(places, low, high, color=shade, alpha=0.15, linewidth=0)
            right.plot(
                places,
                [value / unit for value, unit in zip(middle, units, strict=True)],
                "o-",
                color=shade,
                linewidth=2,
            )
        for axes, title in ((left, "seconds per request"), (right, f"seconds {per}")):
            axes.set_title(title, loc="left", fontsize=10.5, color=FAINT)
            axes.set_ylim(bottom=0)
            axes.set_xticks(sorted({place for place, _ in curves}))
            axes.tick_params(axis="x", labelrotation=0)
            axes.set_xlabel({"steps": "steps", "images": "pictures in the batch", "size": "pixels, both edges"}[axis])
        figure.legend(loc="outside upper right", ncols=len(shades))
        return _svg(figure, f"seconds over {axis}")


def _units(axis: str, entry: Entry) -> float:
    point = entry.row.point
    return {"steps": point.steps, "images": point.images, "size": point.width * point.height / 1e6}[axis]


def roofline(entries: Sequence[Entry], works: Sequence[StageWork], peaks: Peaks, precision: str) -> str:
    """Every stage of every contender under the machine's roof (Williams et al. 2009)."""
    top, bandwidth = peaks.tflops[precision], peaks.gigabytes / 1e3
    reached = [
        (work.flops / work.least_bytes, work.flops / entry.stages[work.stage] / 1e12, work.stage, entry.row.contender)
        for entry in entries
        for work in works
        if work.stage in entry.stages
    ]
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(4.2)
        ridge = top / bandwidth
        low = min(ridge, *(x for x, *_ in reached)) / 3
        high = max(ridge, *(x for x, *_ in reached)) * 3
        axes.plot([low, ridge, high], [low * bandwidth, top, top], color=INK, linewidth=1.6)
        axes.fill_between([low, ridge, high], [low * bandwidth, top, top], 1e-9, color="#f1f5f9", linewidth=0)
        shades = _colours(entries)
        for x, y, stage, name in reached:
            axes.scatter(x, y, 64, color=shades[name], marker=STAGE_MARKERS[stage], edgecolor="white", zorder=3)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(min(y for _, y, *_ in reached) / 3, top * 2.6)
        axes.text(high * 0.94, top * 1.25, f"{top:.3g} TFLOP/s measured, {precision}", ha="right", color=FAINT)
        for direction in (axes.xaxis, axes.yaxis):
            direction.set_major_formatter(plain)
        axes.set_xlabel(f"operations per byte that must move ({peaks.gigabytes:.3g} GB/s measured)")
        axes.set_ylabel("TFLOP/s reached")
        for name, shade in shades.items():
            axes.scatter([], [], 64, color=shade, label=label(name))
        for stage in dict.fromkeys(stage for _, _, stage, _ in reached):
            axes.scatter([], [], 50, color="none", edgecolor=INK, marker=STAGE_MARKERS[stage], label=stage)
        figure.legend(loc="outside upper right", ncols=len(shades) + len(STAGES))
        return _svg(figure, "operations per second of every stage under the machine's roof")


def build_bars(rows: Sequence[BuildRow]) -> str:
    """Two panels: seconds to build, and size of the engines."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = _figure(0.6 * len(rows) + 0.9, 2)
        for axes, values, name, words in (
            (left, [row.seconds for row in rows], "seconds to build", seconds),
            (right, [row.bytes for row in rows], "size of all engines", size),
        ):
            axes.barh(range(len(rows)), values, 0.58, color=OURS_COLOURS[0])
            for place, value in enumerate(values):
                axes.text(value + 0.02 * max(values), place, words(value), va="center", fontweight="bold")
            axes.set_xlim(0, max(values) * 1.4)
            axes.set_xticks([])
            axes.grid(visible=False)
            axes.set_title(name, loc="left", fontsize=10.5, color=FAINT)
            axes.set_yticks(range(len(rows)), [label(row.contender) for row in rows] if axes is left else [])
            axes.invert_yaxis()
        return _svg(figure, "seconds to build and size of the engines")


def host_bars(rows: Sequence[HostRow]) -> str:
    """The host's time per step."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure(0.6 * len(rows) + 0.9)
        medians = [statistics.median(row.per_step) for row in rows]
        shades = colours([row.contender for row in rows], [row.contender.startswith("latentrt") for row in rows])
        widest = max(*medians, 1e-6) * 1e6
        for place, (row, median) in enumerate(zip(rows, medians, strict=True)):
            axes.barh(place, median * 1e6, 0.58, color=shades[row.contender])
            axes.text(max(median, 0) * 1e6 + widest / 100, place, seconds(median), va="center", fontweight="bold")
        axes.set_xlim(0, widest * 1.15)
        axes.set_yticks(range(len(rows)), [label(row.contender) for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("microseconds of the host per step")
        return _svg(figure, "the host's time per step")
