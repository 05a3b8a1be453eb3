"""A run on a GPU as one block of Markdown, to be pasted into an issue."""

import shlex
from collections.abc import Iterator

from latentrt.benchmarks.report import text
from latentrt.benchmarks.report.figures import Entry, entries, headlines, label, points
from latentrt.benchmarks.report.markdown import markdown_table
from latentrt.benchmarks.results import NOT_ASKED_FOR, BuildRow, Environment, Failure, Finished, NotRun, Results
from latentrt.benchmarks.scenarios import Point

BLOCK = "issue.md"

HEADER = (
    "contender",
    "steps per second",
    "per picture",
    "first request",
    "engines built in",
    "size",
    "GPU memory",
    "CUDA graph",
    "largest, mean difference",
    "PSNR",
)

CAPTURED = {True: "yes", False: "no", None: text.NOTHING}

LONGEST = 300
"""Letters of an error's message that are shown; the rest is in the results."""


def issue_block(results: Results) -> str:
    """The block; empty for a run of scenarios for the CPU."""
    environment = next(iter(results.of(Environment)), None)
    on_gpu = any(found.device == "cuda" for found in results.of(Finished))
    if environment is None or not (on_gpu or "--gpu" in shlex.split(environment.command)):
        return ""
    return "\n".join([f"### {environment.command}\n", *_where(environment), *_measured(results), *_missing(results)])


def _where(environment: Environment) -> Iterator[str]:
    """The GPUs, the machine, and every version."""
    for gpu in environment.gpus:
        capability, driver, memory = (
            gpu.get(name, "unknown") for name in ("compute_cap", "driver_version", "memory.total")
        )
        yield f"- {gpu.get('name', 'GPU')}: compute capability {capability}, driver {driver}, {memory} of memory"
    if "--rehearse" in shlex.split(environment.command):
        yield "- A rehearsal: small versions of the scenarios, on the CPU"
    elif not environment.gpus:
        yield "- No GPU was described: neither nvidia-smi nor CUDA names one"
    machine = environment.machine
    memory = f"{machine.get('memory_gb')} GB"
    yield f"- {machine.get('processor')}, {machine.get('cores')} cores, {memory}, {machine.get('system')}"
    versions = (f"{name} {version}" for name, version in environment.versions.items())
    yield f"- {', '.join(versions)}, Python {machine.get('python')}"
    yield f"- commit {environment.commit or 'unknown (an installed package)'}, {environment.started}\n"


def _measured(results: Results) -> Iterator[str]:
    """A table for each scenario that compares contenders at one point."""
    for found in headlines(results):
        for point in points(results, found.scenario):
            ranked = entries(results, found.scenario, point)
            rounds = min(entry.seconds.count for entry in ranked)
            rows = [_cells(results, found, point, entry) for entry in ranked]
            conditions = f"{point}, guidance {point.guidance:g}. {text.conditions(found, rounds)}.{_compared(found)}"
            yield f"**{found.scenario}**: {conditions}\n"
            yield f"{markdown_table(text.without_empty_columns(HEADER, rows))}\n"
    for found in results.of(Finished):
        if found.kind == "build":
            for row in results.of(BuildRow, found.scenario):
                took = f"{text.seconds(row.seconds)}, {text.size(row.bytes)}, at most {text.size(row.memory)} of memory"
                yield f"- {found.scenario}, {label(row.contender)}: {took}"


def _compared(found: Finished) -> str:
    where = {"cpu": "the CPU", "cuda": "the GPU"}.get(found.reference)
    return f" Differences are those from diffusers in float32 on {where}." if where else ""


def _cells(results: Results, found: Finished, point: Point, entry: Entry) -> tuple[str, ...]:
    denoise = entry.stages.get("denoise")
    built = next((row for row in results.of(BuildRow, found.scenario) if row.contender == entry.row.contender), None)
    return (
        entry.label,
        f"{point.steps / denoise:.2f}" if denoise else text.NOTHING,
        text.seconds(entry.per_picture),
        text.seconds(entry.row.first),
        text.seconds(built.seconds) if built else text.NOTHING,
        text.size(built.bytes if built else None),
        text.size(entry.row.memory_device),
        CAPTURED[entry.row.captured],
        *text.difference(entry.row.difference),
    )


def _missing(results: Results) -> Iterator[str]:
    """What failed, and who could not run and why."""
    for failure in results.of(Failure):
        message = " ".join(failure.message.split())
        shown = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
        yield f"- FAILED {failure.scenario} {failure.contender}: {shown}"
    absent = [one for one in results.of(NotRun) if not one.reason.startswith(NOT_ASKED_FOR)]
    reasons = dict.fromkeys(f"{label(one.contender)}: {one.reason}" for one in absent)
    for reason in reasons:
        yield f"- not run: {reason}"
