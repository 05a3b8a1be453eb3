"""How long each stage of a drawing takes, by the device's own clock if it has one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from latentrt.runtime.backends import Backend, Mark


@dataclass(slots=True)
class Timeline:
    """Stages, and the marks at their start and end. Setting a mark does not block; `seconds` waits for the device.

    before: seconds per stage that were counted elsewhere, before a drawing was copied.
    """

    spans: list[tuple[str, Mark, Mark]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)

    def seconds(self) -> dict[str, float]:
        """Seconds per stage; a stage that occurred several times is summed."""
        seconds = dict(self.before)
        for name, before, after in self.spans:
            after.wait()
            seconds[name] = seconds.get(name, 0.0) + after.seconds_since(before)
        return seconds


@contextmanager
def stage(backend: Backend, name: str, timelines: Sequence[Timeline]) -> Iterator[None]:
    """Count a `with` block as part of this stage in every timeline."""
    before = backend.mark()
    yield
    after = backend.mark()
    for timeline in timelines:
        timeline.spans.append((name, before, after))
