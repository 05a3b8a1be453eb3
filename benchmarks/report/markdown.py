"""The README's table of a kept run, which stands between two markers."""

from collections.abc import Sequence
from pathlib import Path

from latentrt.benchmarks.report import text
from latentrt.benchmarks.report.figures import entries, headlines, points
from latentrt.benchmarks.results import Environment, Results
from latentrt.runtime.cache import write_atomically
from latentrt.runtime.errors import BenchmarkError, told_as

BEGIN, END = "<!-- bench-table -->", "<!-- /bench-table -->"

COLUMNS = (0, 1, 2, 3, 4, 9, 10)
"""Indices of the columns of `text.HEADER` for which a README has room."""


def headline_table(results: Results) -> str:
    """A table for each scenario that compares contenders, with its conditions and its command."""
    environment = next(iter(results.of(Environment)), None)
    parts = []
    for found in headlines(results):
        for point in points(results, found.scenario):
            ranked = entries(results, found.scenario, point)
            rows = [[text.cells(entry)[index] for index in COLUMNS] for entry in ranked]
            header = [text.HEADER[index] for index in COLUMNS]
            rounds = min(entry.seconds.count for entry in ranked)
            table = markdown_table(text.without_empty_columns(header, rows))
            title = f"**{found.scenario}**: {point}, guidance {point.guidance:g}. {text.conditions(found, rounds)}."
            parts.append(f"{title}\n\n{table}\n\n    {found.command}\n")
    where = (
        f"{text.machine(environment)}. {environment.started[:10]}, commit {environment.commit}.\n"
        if environment
        else ""
    )
    return "\n".join([*parts, where])


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is the header; all columns but the first are right-aligned."""
    header, *rows = lines
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (header, rule, *rows)
    )


def replace_between_markers(file: Path, table: str) -> None:
    """Replace the text between the markers of a file by a table.

    Raises:
        BenchmarkError: the file cannot be read, or lacks the markers.
    """
    try:
        before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    except OSError as error:
        raise BenchmarkError(f"--readme {file}: cannot be read ({error}). Name an existing file") from error
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise BenchmarkError(f"--readme {file}: needs the lines {BEGIN} and {END}, in this order, for the table")
    with told_as(BenchmarkError, f"--readme {file}", "written"):
        write_atomically(file, f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}".encode())
