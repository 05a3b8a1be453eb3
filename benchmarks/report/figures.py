"""The numbers in tables and charts, computed from the results."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentrt.benchmarks.contenders import CONTENDERS
from latentrt.benchmarks.results import Finished, Results, Row, StageWork
from latentrt.benchmarks.scenarios import Point
from latentrt.benchmarks.summary import Summary, ratios, summarise

OURS = "latentrt"
STAGES = ("text", "denoise", "decode", "component")


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender at one point.

    `seconds`: of a request. `times_ours`: the ratio of its seconds to latentrt's, round by round. `stages`: median
    seconds of each. `share_of_floor`: the least possible time divided by its median.
    """

    row: Row
    seconds: Summary
    times_ours: Summary | None
    stages: dict[str, float]
    share_of_floor: float | None

    @property
    def label(self) -> str:
        """The contender's name as shown in reports."""
        return label(self.row.contender)

    @property
    def is_ours(self) -> bool:
        """Whether it is latentrt in any form."""
        return not CONTENDERS[self.row.contender].is_peer

    @property
    def per_picture(self) -> float:
        """Median seconds per picture of the batch."""
        return self.seconds.median / self.row.point.images


def label(contender: str) -> str:
    """A contender's name as shown in reports."""
    return CONTENDERS[contender].label if contender in CONTENDERS else contender


def points(results: Results, scenario: str) -> list[Point]:
    """The points that were measured, in order."""
    return list(dict.fromkeys(row.point for row in results.of(Row, scenario)))


def entries(results: Results, scenario: str, point: Point) -> list[Entry]:
    """All contenders at a point, fastest first."""
    rows = [row for row in results.of(Row, scenario) if row.point == point]
    works = [work for work in results.of(StageWork, scenario) if work.point == point]
    ours = next((row for row in rows if row.contender == OURS), None)
    return sorted((_entry(row, ours, works) for row in rows), key=lambda entry: entry.seconds.median)


def _entry(row: Row, ours: Row | None, works: Sequence[StageWork]) -> Entry:
    walls = [sample.wall for sample in row.samples]
    own = [sample.wall for sample in ours.samples] if ours else []
    floor = sum(work.floor for work in works)
    seconds = summarise(walls)
    return Entry(
        row=row,
        seconds=seconds,
        times_ours=summarise(ratios(walls, own)) if own and len(own) == len(walls) else None,
        stages={
            stage: summarise([sample.stages[stage] for sample in row.samples]).median
            for stage in STAGES
            if all(stage in sample.stages for sample in row.samples)
        },
        share_of_floor=floor / seconds.median if works else None,
    )


def headlines(results: Results) -> list[Finished]:
    """The scenarios that compare contenders at one point."""
    return [
        found
        for found in results.of(Finished)
        if found.kind in ("pictures", "component") and not found.axis and results.of(Row, found.scenario)
    ]
