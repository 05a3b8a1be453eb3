"""Clocks and memory, from inside the process that is measured."""

import os
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Linux, proc(5): writing it to clear_refs sets the peak resident set size to the present one."""


class Stamp(Protocol):
    """A moment that can be asked how long after another it was."""

    def seconds_since(self, earlier: Any) -> float:
        """Seconds from `earlier` to this moment."""


class HostStamp:
    """A moment of the host's clock."""

    def __init__(self) -> None:
        self.time = time.perf_counter()

    def seconds_since(self, earlier: "HostStamp") -> float:
        """Seconds between two moments."""
        return self.time - earlier.time


class TorchStamp:
    """A moment of a CUDA stream, recorded without stopping the host."""

    def __init__(self) -> None:
        import torch

        self.event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def seconds_since(self, earlier: "TorchStamp") -> float:
        """Seconds on the device; both events must have happened."""
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class Clock:
    """Marks the end of each stage of one request, and counts the host's time from step to step."""

    def __init__(self, stamp: Callable[[], Any], synchronize: Callable[[], None]):
        self.stamp = stamp
        self.synchronize = synchronize
        self.marks: list[tuple[str, Any]] = []
        self.steps: list[float] = []
        self.started = 0.0

    def start(self) -> None:
        """A request begins."""
        self.synchronize()
        self.steps.clear()
        self.marks[:] = [("", self.stamp())]
        self.started = time.perf_counter()

    def mark(self, stage: str) -> None:
        """A stage ends; the same stage again moves its end."""
        if self.marks[-1][0] == stage:
            self.marks.pop()
        self.marks.append((stage, self.stamp()))

    def step(self) -> None:
        """A step of the loop ends, as the host sees it."""
        self.steps.append(time.perf_counter())
        self.mark("denoise")

    def stop(self, last: str) -> dict[str, Any]:
        """The request ends with the stage `last`: wall time, stages, median host time per step."""
        self.mark(last)
        self.synchronize()
        wall = time.perf_counter() - self.started
        pairs = zip(self.marks[1:], self.marks, strict=False)
        stages = {name: stamp.seconds_since(before) for (name, stamp), (_, before) in pairs}
        return {"wall": wall, "stages": stages, "step": step_seconds(self.steps)}


def step_seconds(times: list[float]) -> float | None:
    """Median seconds between the ends of steps."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return statistics.median(gaps) if gaps else None


def restrict_threads(threads: int) -> None:
    """Let this process use the first `threads` of its cores, whatever its libraries think."""
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_memory() -> int | None:
    """Largest resident set since the last reset, in bytes; None where the system does not tell."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def reset_peak_memory() -> None:
    """Let `peak_memory` begin anew, where the system can."""
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return
