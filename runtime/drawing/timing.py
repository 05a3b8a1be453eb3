"""How long each stage of a drawing takes, by the device's own clock where it has one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from latentrt.runtime.backends import Backend, Mark


@dataclass(slots=True)
class Timeline:
    """Stages and the marks at their begin and end. Marking stops nobody; `seconds` waits for the device."""

    spans: list[tuple[str, Mark, Mark]] = field(default_factory=list)

    def seconds(self) -> dict[str, float]:
        """Seconds per stage; a stage that came several times is summed."""
        found: dict[str, float] = {}
        for name, before, after in self.spans:
            after.wait()
            found[name] = found.get(name, 0.0) + after.seconds_since(before)
        return found


@contextmanager
def stage(backend: Backend, name: str, timelines: Sequence[Timeline]) -> Iterator[None]:
    """A block that is part of this stage of each of the timelines."""
    before = backend.mark()
    yield
    after = backend.mark()
    for timeline in timelines:
        timeline.spans.append((name, before, after))
