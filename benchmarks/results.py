"""The results of a run: one JSON object per line, each a frozen record of some kind."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from latentrt.benchmarks.scenarios import Point
from latentrt.runtime.errors import BenchmarkError

RESULTS = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all records; `KIND` is written to the field `record`."""

    KIND: ClassVar[str]

    def line(self) -> str:
        """The record as JSON, without a newline."""
        return json.dumps({"record": self.KIND, **asdict(self)}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Environment(Record):
    """Machine and software; once per run."""

    KIND = "environment"
    started: str
    command: str
    commit: str
    machine: Mapping[str, Any]
    gpus: tuple[Mapping[str, str], ...]
    versions: Mapping[str, str]
    threads: int


@dataclass(frozen=True, slots=True)
class Peaks(Record):
    """The machine's measured peaks: 10¹² operations per second by precision, and 10⁹ bytes copied per second."""

    KIND = "peaks"
    device: str
    tflops: Mapping[str, float]
    gigabytes: float
    method: str


@dataclass(frozen=True, slots=True)
class StageWork(Record):
    """Work of one stage of a request, counted in the ONNX graphs: operations and bytes; `floor`: least seconds."""

    KIND = "work"
    scenario: str
    point: Point
    stage: str
    evaluations: int
    flops: int
    least_bytes: int
    unfused_bytes: int
    floor: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed request: total seconds, seconds per stage, and the host's median seconds from step to step."""

    wall: float
    stages: Mapping[str, float]
    step: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a picture from that of diffusers in float32, in levels of 255; PSNR in dB, None if identical.

    For a component, `max` and `mean` are relative to the root mean square of the reference.
    """

    max: float
    mean: float
    psnr: float | None
    unit: str = "levels"


@dataclass(frozen=True, slots=True)
class Row(Record):
    """One contender at one point. `first` and `load` in seconds; memory in bytes, None if it cannot be measured.

    `captured`: whether the steps were replayed as a CUDA graph; None where there is none, or nobody says.
    """

    KIND = "row"
    scenario: str
    contender: str
    point: Point
    samples: tuple[Sample, ...]
    first: float
    load: float
    memory_load: int | None
    memory_run: int | None
    memory_device: int | None
    picture: str | None
    difference: Difference | None
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    captured: bool | None = None


@dataclass(frozen=True, slots=True)
class BuildRow(Record):
    """A contender's engines: built anew in a scenario of builds, elsewhere whenever they were missing.

    `components`: seconds and bytes of each; `layers`: those of each, counted as `TYPE dtype`.
    """

    KIND = "build"
    scenario: str
    contender: str
    limits: Mapping[str, str]
    seconds: float
    bytes: int
    memory: int | None
    components: Mapping[str, tuple[float, int]]
    layers: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class HostRow(Record):
    """The host's own seconds per step, one value per round."""

    KIND = "host"
    scenario: str
    contender: str
    per_step: tuple[float, ...]
    steps: tuple[int, int]


@dataclass(frozen=True, slots=True)
class NotRun(Record):
    """A contender that was not asked for, or that this machine cannot run."""

    KIND = "not-run"
    scenario: str
    contender: str
    reason: str


NOT_ASKED_FOR = "not asked for"
"""How the reason begins of a contender that was left out."""


@dataclass(frozen=True, slots=True)
class Failure(Record):
    """A scenario, or a contender in it, that should have run and did not."""

    KIND = "failure"
    scenario: str
    contender: str
    message: str
    log: str = ""


@dataclass(frozen=True, slots=True)
class Finished(Record):
    """A scenario that has ended, with what is needed to report and repeat it."""

    KIND = "finished"
    scenario: str
    question: str
    model: str
    precision: str
    device: str
    kind: str
    axis: str
    sampler: str
    seconds: float
    command: str
    reference: str = ""
    """The device on which the pictures to compare with were drawn; empty in runs before this was recorded."""


RECORDS: dict[str, type[Record]] = {
    kind.KIND: kind for kind in (Environment, Peaks, StageWork, Row, BuildRow, HostRow, NotRun, Failure, Finished)
}


@dataclass(frozen=True, slots=True)
class Results:
    """All records of a run, in the order in which they were written."""

    records: tuple[Record, ...]

    def of(self, kind: type[Any], scenario: str | None = None) -> list[Any]:
        """The records of one kind, of one scenario or of all scenarios."""
        found: list[Any] = [record for record in self.records if type(record) is kind]
        return found if scenario is None else [record for record in found if record.scenario == scenario]


def read(folder: Path) -> Results:
    """Read the results in the folder of a run.

    Raises:
        BenchmarkError: there are none, or a line was not written by this version.
    """
    file = folder / RESULTS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BenchmarkError(f"{file}: cannot be read ({error}). Name a folder that latentrt bench wrote") from error
    return Results(tuple(parse(lines, file)))


def parse(lines: Iterable[str], file: Path) -> Iterator[Record]:
    """Parse lines into records; `file` is used in messages."""
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            yield _record(RECORDS[values.pop("record")], values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(
                f"{file}, line {number}: not a result of this version ({error}). Run the benchmark again"
            ) from error


def _record(kind: type[Record], values: dict[str, Any]) -> Record:
    """Make a record from plain JSON values."""
    if unknown := values.keys() - {entry.name for entry in fields(kind)}:
        raise TypeError(f"unknown fields {', '.join(sorted(unknown))}")
    if "point" in values:
        values["point"] = Point(**values["point"])
    if "samples" in values:
        values["samples"] = tuple(Sample(**sample) for sample in values["samples"])
    if values.get("difference"):
        values["difference"] = Difference(**values["difference"])
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, at any depth."""
    if isinstance(value, dict):
        return {name: _frozen(inner) for name, inner in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
