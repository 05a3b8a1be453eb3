"""Numbers and table rows in words, the same for the page and for Markdown."""

from collections.abc import Sequence

from latentrt.benchmarks.report.figures import OURS, Entry
from latentrt.benchmarks.results import Difference, Environment, Finished

HEADER = (
    "contender",
    "median",
    "quartiles",
    "time over latentrt's",
    "of the floor",
    "first request",
    "loading",
    "host memory",
    "GPU memory",
    "largest, mean difference",
    "PSNR",
)

NOTHING = "–"
"""Shown where there is no figure."""


def seconds(value: float) -> str:
    """Three digits with a suitable unit: 12.3 s, 45.6 ms, 78.9 µs."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1 or unit == "µs":
            return f"{_digits(value * factor)} {unit}"
    raise AssertionError  # the last unit always fits


def _digits(value: float) -> str:
    if not value:
        return "0"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def size(value: float | None) -> str:
    """Bytes with a suitable unit, or a dash."""
    if value is None:
        return NOTHING
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def percent(value: float | None) -> str:
    """A share in percent, or a dash."""
    return NOTHING if value is None else f"{100 * value:.0f} %"


def difference(found: Difference | None) -> tuple[str, str]:
    """A difference in words: largest and mean, and PSNR."""
    if found is None:
        return NOTHING, NOTHING
    if found.unit != "levels":
        return f"{found.max:.1e}, {found.mean:.1e} (relative)", NOTHING
    return f"{found.max:.0f}, {found.mean:.3f} of 255", "identical" if found.psnr is None else f"{found.psnr:.0f} dB"


def times_ours(entry: Entry) -> str:
    """The ratio of a contender's seconds to latentrt's, with the extremes over the rounds."""
    if entry.row.contender == OURS or entry.times_ours is None:
        return "1" if entry.row.contender == OURS else NOTHING
    ratio = entry.times_ours
    return f"{ratio.median:.2f}× ({ratio.least:.2f} – {ratio.most:.2f})"


def cells(entry: Entry) -> tuple[str, ...]:
    """A row of the table with the columns of `HEADER`."""
    summary, row = entry.seconds, entry.row
    return (
        entry.label,
        seconds(summary.median),
        f"{seconds(summary.lower)} – {seconds(summary.upper)}",
        times_ours(entry),
        percent(entry.share_of_floor),
        seconds(row.first),
        seconds(row.load),
        size(row.memory_run),
        size(row.memory_device),
        *difference(row.difference),
    )


def without_empty_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Header and rows without the columns that hold no figure."""
    kept = [index for index in range(len(header)) if any(row[index] != NOTHING for row in rows)]
    return [[line[index] for index in kept] for line in (header, *rows)]


def machine(environment: Environment) -> str:
    """The machine in one line."""
    facts = environment.machine
    gpus = "".join(f", {gpu.get('name', 'GPU')} (driver {gpu.get('driver_version', '?')})" for gpu in environment.gpus)
    return f"{facts['processor']}, {environment.threads} threads, {facts['memory_gb']} GB{gpus}"


def conditions(found: Finished, rounds: int) -> str:
    """What was measured, in one line."""
    samples = f"median of {rounds} interleaved rounds" if rounds > 1 else "one round"
    return f"{found.model}, {found.precision}, {found.device}, sampler {found.sampler}; {samples}"
