"""Measures contenders at one point: warm workers, interleaved rounds, every sample kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from latentrt.benchmarks.difference import compare_files
from latentrt.benchmarks.process import Worker
from latentrt.benchmarks.results import Failure, Row, Sample
from latentrt.benchmarks.scenarios import Point, Scenario
from latentrt.runtime.errors import BenchmarkError

Item = TypeVar("Item")

PROMPT = "a red circle on a blue background"
NEGATIVE = "blurry, low quality"
SEED = 7

WARM_UPS = 2
"""Requests before the timed ones: the first is reported separately, the second runs with caches already filled."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A loaded contender: its worker, and what `load` returned."""

    name: str
    worker: Worker
    load_seconds: float
    loaded: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """The call that every contender gets at one point.

    `result`: the name of the argument for the result's file; `suffix`: the suffix of that file.
    """

    call: str
    arguments: Mapping[str, Any]
    result: str
    suffix: str

    def run(self, worker: Worker, file: Path | None = None) -> dict[str, Any]:
        """Call one worker, then wait until it leaves the processor to the next; the result goes to `file`, if given."""
        answer: dict[str, Any] = worker.call(self.call, **self.arguments, **{self.result: str(file) if file else None})
        worker.settle()
        return answer


def picture_task(scenario: Scenario, point: Point) -> Task:
    """A whole request, the same for all contenders."""
    request = {
        "prompt": PROMPT,
        "negative": NEGATIVE,
        "steps": point.steps,
        "guidance": point.guidance,
        "seed": SEED,
        "width": point.width,
        "height": point.height,
        "images": point.images,
    }
    return Task("sample", {"request": request}, "picture", ".png")


@dataclass(slots=True)
class Measured:
    """The answers of one contender at one point: to the first request, and to the timed ones."""

    first: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Round:
    """The measurement of one point. `failed` is called for every contender that drops out."""

    scenario: Scenario
    point: Point
    task: Task
    folder: Path
    failed: Callable[[Failure], None]

    def file(self, contender: str) -> Path:
        """The file of a contender's picture."""
        point = f"{self.point.width}x{self.point.height}-{self.point.steps}-{self.point.images}"
        return self.folder / f"{self.scenario.name}-{point}-{contender}{self.task.suffix}"

    def measure(self, entrants: Sequence[Entrant], reference: Path) -> list[Row]:
        """Warm up every contender, then call them in turns, each round beginning with another one.

        `reference`: the picture to compare with; nothing is compared if the file does not exist.
        """
        measured: dict[str, Measured] = {}
        for entrant in entrants:
            with self._dropping(entrant, measured):
                measured[entrant.name] = Measured(self.task.run(entrant.worker, self.file(entrant.name)))
                for _ in range(WARM_UPS - 1):
                    self.task.run(entrant.worker)
                entrant.worker.call("begin")
        for number in range(self.scenario.rounds):
            for entrant in rotated(entrants, number):
                if entrant.name in measured:
                    with self._dropping(entrant, measured):
                        measured[entrant.name].samples.append(self.task.run(entrant.worker))
        rows = []
        for entrant in entrants:
            if entrant.name in measured:
                with self._dropping(entrant, measured):
                    rows.append(self._row(entrant, measured[entrant.name], reference))
        return rows

    @contextmanager
    def _dropping(self, entrant: Entrant, measured: dict[str, Measured]) -> Iterator[None]:
        """A block in which an error drops one contender, while the others go on."""
        try:
            yield
        except BenchmarkError as error:
            measured.pop(entrant.name, None)
            self.failed(Failure(self.scenario.name, entrant.name, str(error), entrant.worker.log.name))

    def _row(self, entrant: Entrant, measured: Measured, reference: Path) -> Row:
        last = measured.samples[-1]
        return Row(
            scenario=self.scenario.name,
            contender=entrant.name,
            point=self.point,
            samples=tuple(Sample(one["wall"], one["stages"], one["step"]) for one in measured.samples),
            first=measured.first["wall"],
            load=entrant.load_seconds,
            memory_load=entrant.loaded["memory"],
            memory_run=last["memory"],
            memory_device=last["memory_device"],
            picture=self.file(entrant.name).name,
            difference=compare_files(self.file(entrant.name), reference) if reference.is_file() else None,
            versions=entrant.loaded["versions"],
            notes=tuple(entrant.loaded["notes"]),
            captured=last.get("captured"),
        )


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """The items in the order of round `number`: each round begins with another one."""
    start = number % len(items) if items else 0
    return [*items[start:], *items[:start]]


def in_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Values of each measure, round by round: for variants that share one process."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in rotated(list(measures), number):
            found[name].append(measures[name]())
    return found
