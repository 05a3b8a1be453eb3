"""Which requests take the next step together: lanes by size, earliest due first. Pure logic, without clock or pipeline.

A lane holds the requests that can be one batch: of one model, size and number of tokens. Every request is due at a time
of its own: when it came, plus `PATIENCE` times what it would take alone, or earlier if it has a deadline. The lane of
the request that is due first takes the next step, with as many of its requests as the batch holds, those due first
ahead. This is earliest deadline first (Liu and Layland 1973), with deadlines in proportion to the work:

- short requests overtake long ones, in a full batch too, where a long one pauses and keeps its state;
- nobody starves: whatever comes late enough is due later;
- a request joins and leaves between any two steps.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

PATIENCE = 8.0
"""How many times its own drawing time a request may take before it goes ahead of new ones of the same length."""

FIRST_GUESS = 1e-7
"""Seconds per step and pixel before the first step was measured: 0.1 s at 1024 x 1024."""

MEMORY = 0.9
"""Weight of the steps before in the running mean of a model's seconds per step and pixel."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What requests must have in common to share a batch. Sizes in pixels; `tokens`: those of the prompts.

    `alone`: the id of a request that shares with nobody.
    """

    model: str
    width: int
    height: int
    tokens: int
    alone: str = ""

    def __str__(self) -> str:
        return f"{self.model} {self.width}x{self.height} {self.tokens}"


@dataclass(slots=True)
class Job:
    """A request as the scheduler sees it. `steps`: in all; `steps_left` is set to what is left after each step.

    `places`: those that it takes in a batch, if its pictures need more than one each.
    """

    id: str
    lane: Lane
    pictures: int
    steps: int
    came: float
    deadline: float | None = None
    places: int = 0
    begun: bool = False
    steps_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.steps_left = self.steps
        self.places = max(self.places, self.pictures)


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of one lane: the jobs that take it, those due first ahead."""

    lane: Lane
    jobs: tuple[Job, ...]

    @property
    def pictures(self) -> int:
        """Pictures in the batch."""
        return sum(job.pictures for job in self.jobs)


class Scheduler:
    """The jobs at hand, and whose turn it is. Every method takes the time `now` in seconds where it matters.

    `most_pictures`: pictures in a batch, by model. `patience`: see `PATIENCE`; 0 is first come, first served.
    """

    def __init__(self, most_pictures: dict[str, int], patience: float = PATIENCE):
        self._most = most_pictures
        self._patience = patience
        self._jobs: dict[str, Job] = {}
        self._seconds: dict[Hashable, float] = {}

    def add(self, job: Job) -> None:
        """Take a job in."""
        self._jobs[job.id] = job

    def remove(self, id: str) -> Job | None:
        """Let a job go: it is done, cancelled or failed. None if it is not there."""
        return self._jobs.pop(id, None)

    def expired(self, now: float) -> list[Job]:
        """The jobs whose deadline has passed."""
        return [job for job in self._jobs.values() if job.deadline is not None and now >= job.deadline]

    def next_turn(self) -> Turn | None:
        """The lane that takes the next step, and with whom. None if there are no jobs."""
        if not self._jobs:
            return None
        first = min(self._jobs.values(), key=self.order)
        return Turn(first.lane, tuple(self._batch(first.lane)))

    def _batch(self, lane: Lane) -> Iterable[Job]:
        room = self._most[lane.model]
        for job in sorted((job for job in self._jobs.values() if job.lane == lane), key=self.order):
            if job.places <= room:
                room -= job.places
                yield job

    def stepped(self, turn: Turn, seconds: float) -> None:
        """Learn from a step how long they take."""
        one = seconds / (turn.pictures * turn.lane.width * turn.lane.height)
        before = self._seconds.get(turn.lane.model, one)
        self._seconds[turn.lane.model] = MEMORY * before + (1 - MEMORY) * one

    def order(self, job: Job) -> tuple[float, float, str]:
        """What jobs are sorted by: when they are due. It follows what is known of the time that steps take."""
        due = job.came + self._patience * self.seconds_alone(job)
        return (due if job.deadline is None else min(due, job.deadline)), job.came, job.id

    def seconds_alone(self, job: Job) -> float:
        """About how long a job takes, all of its steps, when nobody else is there."""
        pixels = job.lane.width * job.lane.height
        return job.steps * job.pictures * pixels * self._seconds.get(job.lane.model, FIRST_GUESS)

    @property
    def lanes(self) -> int:
        """Lanes with jobs."""
        return len({job.lane for job in self._jobs.values()})

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return sum(not job.begun for job in self._jobs.values())

    def __len__(self) -> int:
        return len(self._jobs)
