"""The progress of a build: TensorRT's phases, and an estimate of the time left."""

import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from latentrt.engine.base import BuildProgress

SECONDS_AT_LEAST = 1.0
"""Part of the first guess for a component that does not depend on its size."""


class Tracker:
    """Sends `BuildProgress` events, and learns from each finished component how fast this machine is."""

    def __init__(
        self,
        seconds_per_gigabyte: float,
        sizes: Mapping[str, int],
        earlier: Mapping[str, float],
        callback: Callable[[BuildProgress], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`sizes`: bytes of each component to build, in order; `earlier`: seconds that components took before."""
        rate = seconds_per_gigabyte / 1e9
        self.expected = {name: earlier.get(name, SECONDS_AT_LEAST + rate * size) for name, size in sizes.items()}
        self.callback = callback
        self.clock = clock
        self.order = list(sizes)
        self.took: dict[str, float] = {}
        self.current = ""
        self.began = 0.0

    def begin(self, component: str) -> None:
        """Note that the build of a component begins."""
        self.current, self.began = component, self.clock()
        self.phase("starting")

    def phase(self, phase: str) -> None:
        """Note that the current component enters a phase."""
        if self.callback is not None:
            seconds = self.clock() - self.began
            number = self.order.index(self.current) + 1
            self.callback(
                BuildProgress(self.current, number, len(self.order), phase, seconds, self.seconds_left(seconds))
            )

    def done(self) -> float:
        """Note that the current component is finished. Returns the seconds it took."""
        seconds = self.took[self.current] = self.clock() - self.began
        self.phase("done")
        return seconds

    def seconds_left(self, seconds: float) -> float:
        """Estimated seconds for the rest of the current component, which has taken `seconds`, and all after it."""
        guessed = sum(self.expected[name] for name in self.took)
        speed = sum(self.took.values()) / guessed if guessed else 1.0
        after = self.order[self.order.index(self.current) + 1 :]
        rest = 0.0 if self.current in self.took else max(0.0, speed * self.expected[self.current] - seconds)
        return rest + speed * sum(self.expected[name] for name in after)


def monitor(trt: ModuleType, report: Callable[[str], None], interval: float = 0.1) -> Any:
    """An `IProgressMonitor` that reports TensorRT's phases as `name step/steps`, at most once per `interval` seconds.

    TensorRT calls it from its own threads and cannot pass exceptions on: whatever `report` raises, including an
    interrupt, is kept in `error` and stops the build.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self.steps: dict[str, int] = {}
            self.last = float("-inf")

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._report(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(f"{phase_name} {step + 1}/{self.steps.get(phase_name, step + 1)}")
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def _report(self, text: str) -> None:
            try:
                now = time.monotonic()
                if self.error is None and now - self.last >= interval:
                    self.last = now
                    report(text)
            except BaseException as error:
                self.error = error

    return Monitor()
