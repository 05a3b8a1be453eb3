"""The report as one HTML page that needs no network: styles, charts and pictures are embedded."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from latentrt.benchmarks.report import markup, text
from latentrt.benchmarks.report.figures import entries, headlines, points
from latentrt.benchmarks.report.sections import section
from latentrt.benchmarks.results import Environment, Failure, Finished, Peaks, Results
from latentrt.runtime.cache import write_atomically
from latentrt.runtime.errors import BenchmarkError, told_as

PAGE = "report.html"
CSS = Path(__file__).with_name("style.css")


def write_report(results: Results, folder: Path) -> Path:
    """Write the page to a run's folder, which also holds its pictures. Returns its path.

    Raises:
        BenchmarkError: it cannot be written.
    """
    page = folder / PAGE
    with told_as(BenchmarkError, page, "written"):
        write_atomically(page, render(results, folder).encode())
    return page


def render(results: Results, folder: Path) -> str:
    """The whole page; `folder` holds the run's pictures."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>latentrt benchmark</title><style>{CSS.read_text(encoding='utf-8')}</style></head><body><main>",
        *_top(results),
        *(section(results, found, folder) for found in results.of(Finished)),
        *_environment(results),
        "</main></body></html>",
    ]
    return "".join(parts)


def _top(results: Results) -> Iterator[str]:
    """Title, machine, failed scenarios, and a card for each comparison with a peer."""
    yield "<h1>latentrt benchmark</h1>"
    for environment in results.of(Environment):
        yield markup.paragraph(
            f"{text.machine(environment)}. {environment.started}, commit {environment.commit}.", "faint"
        )
    failed = sorted({failure.scenario for failure in results.of(Failure)})
    if failed:
        yield f'<div class="failed"><b>Failed scenarios:</b> {escape(", ".join(failed))}</div>'
    cards = [card for found in headlines(results) for card in _cards(results, found)]
    yield f'<div class="cards">{"".join(cards)}</div>'


def _cards(results: Results, found: Finished) -> Iterator[str]:
    for point in points(results, found.scenario):
        for entry in entries(results, found.scenario, point):
            if entry.is_ours or entry.times_ours is None:
                continue
            ratio = entry.times_ours.median
            kind = "card" if ratio >= 1 else "card slower"
            where = f'<span class="faint">{escape(found.scenario)}, {point}</span>'
            yield f'<div class="{kind}"><b>{ratio:.2f}×</b>as fast as {escape(entry.label)}<br>{where}</div>'


def _environment(results: Results) -> Iterator[str]:
    """The machine and its peaks, all versions, and how to read the figures."""
    yield "<section><h2>Environment and method</h2>"
    for environment in results.of(Environment):
        facts = [("machine", ""), *((WORDS.get(name, name), str(value)) for name, value in environment.machine.items())]
        facts += [("threads per contender", str(environment.threads)), ("commit", environment.commit)]
        facts += [(f"GPU {name}", value) for gpu in environment.gpus for name, value in gpu.items()]
        yield markup.table(facts)
        yield markup.table([("package", "version"), *environment.versions.items()])
        yield markup.heading("Command") + markup.code(environment.command)
    for peak in results.of(Peaks):
        reached = ", ".join(f"{value:.3g} TFLOP/s {name}" for name, value in peak.tflops.items())
        yield markup.paragraph(f"Peaks measured on {peak.device}: {reached}, {peak.gigabytes:.3g} GB/s. {peak.method}.")
    yield markup.paragraph(METHOD, "faint")
    yield "</section>"


WORDS = {"memory_gb": "memory, GB", "load_before": "load before the run"}
"""Words for facts of the machine whose names are not."""

METHOD = (
    "Every contender runs in its own process and stays warm. In each round, all contenders take a turn, beginning with "
    "another one each time; a turn starts when the previous process is idle. Checkpoint, prompt, seed, sampler and "
    "steps are the same for all. Pictures are compared with those of diffusers in float32. The floor is the work in "
    "the ONNX graphs at the machine's measured peaks, stage by stage: the larger of the times for arithmetic and for "
    "unavoidable memory traffic. Host memory is the largest resident set during the timed requests. All samples are in "
    "results.jsonl next to this page."
)
