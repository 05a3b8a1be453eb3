"""How far a build is: TensorRT's phases as they pass, and an estimate of the time that is left."""

import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from latentrt.engine.base import BuildProgress

SECONDS_PER_GIGABYTE = {"tensorrt-rtx": 27.0, "tensorrt": 90.0, "onnxruntime": 10.0}
"""First guess, in seconds per 10⁹ bytes of ONNX files; TensorRT-RTX as measured on two CPU cores."""

SECONDS_AT_LEAST = 1.0


class Tracker:
    """Sends `BuildProgress` events and learns from each finished component how fast this machine is."""

    def __init__(
        self,
        backend: str,
        sizes: Mapping[str, int],
        earlier: Mapping[str, float],
        callback: Callable[[BuildProgress], None] | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`sizes`: bytes of each component to build, in order; `earlier`: seconds that some took in another build."""
        rate = SECONDS_PER_GIGABYTE[backend] / 1e9
        self.expected = {name: earlier.get(name, SECONDS_AT_LEAST + rate * size) for name, size in sizes.items()}
        self.callback = callback
        self.clock = clock
        self.order = list(sizes)
        self.took: dict[str, float] = {}
        self.current = ""
        self.began = 0.0

    def begin(self, component: str) -> None:
        """A component's build begins."""
        self.current, self.began = component, self.clock()
        self.phase("starting")

    def phase(self, phase: str) -> None:
        """The current component enters a phase."""
        if self.callback is not None:
            seconds = self.clock() - self.began
            number = self.order.index(self.current) + 1
            self.callback(
                BuildProgress(self.current, number, len(self.order), phase, seconds, self.seconds_left(seconds))
            )

    def done(self) -> float:
        """The current component is finished; returns the seconds it took."""
        seconds = self.took[self.current] = self.clock() - self.began
        self.phase("done")
        return seconds

    def seconds_left(self, seconds: float) -> float:
        """Estimate for the rest of the current component and all that follow."""
        guessed = sum(self.expected[name] for name in self.took)
        speed = sum(self.took.values()) / guessed if guessed else 1.0
        after = self.order[self.order.index(self.current) + 1 :]
        rest = 0.0 if self.current in self.took else max(0.0, speed * self.expected[self.current] - seconds)
        return rest + speed * sum(self.expected[name] for name in after)


def monitor(trt: ModuleType, report: Callable[[str], None], interval: float = 0.1) -> Any:
    """An `IProgressMonitor` that reports TensorRT's phases as `name step/steps`, at most once per `interval` seconds.

    TensorRT calls it from its own threads and cannot take an exception: what `report` raises, an interrupt too, is
    kept in `error` and stops the build.
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
