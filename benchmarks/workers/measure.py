"""Clocks and memory of the process that is measured."""

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
"""Written to clear_refs, it resets the peak resident set size to the current one (Linux, proc(5))."""


class Stamp(Protocol):
    """A moment on some clock."""

    def seconds_since(self, earlier: Any) -> float:
        """Seconds from `earlier` to this moment."""


class HostStamp:
    """A moment on the host's clock."""

    def __init__(self) -> None:
        self.time = time.perf_counter()

    def seconds_since(self, earlier: "HostStamp") -> float:
        """Seconds from `earlier` to this moment."""
        return self.time - earlier.time


class TorchStamp:
    """A moment on a CUDA stream, recorded without blocking the host."""

    def __init__(self) -> None:
        import torch

        self.event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def seconds_since(self, earlier: "TorchStamp") -> float:
        """Seconds on the device from `earlier` to this moment; both events must have happened."""
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class Clock:
    """Records the end of each stage of a request, and the host's time at the end of each step."""

    def __init__(self, stamp: Callable[[], Stamp], synchronize: Callable[[], None]):
        self.stamp = stamp
        self.synchronize = synchronize
        self.marks: list[tuple[str, Stamp]] = []
        self.steps: list[float] = []
        self.started = 0.0

    def start(self) -> None:
        """Note that a request begins."""
        self.synchronize()
        self.steps.clear()
        self.marks[:] = [("", self.stamp())]
        self.started = time.perf_counter()

    def mark(self, stage: str) -> None:
        """Note that a stage ends; when called again for the same stage, its end moves."""
        if self.marks[-1][0] == stage:
            self.marks.pop()
        self.marks.append((stage, self.stamp()))

    def step(self) -> None:
        """Note that a step of the loop ends for the host."""
        self.steps.append(time.perf_counter())
        self.mark("denoise")

    def stop(self, last: str) -> dict[str, Any]:
        """End the request with the stage `last`. Returns seconds: wall time, stages, median host time per step."""
        self.mark(last)
        self.synchronize()
        wall = time.perf_counter() - self.started
        pairs = zip(self.marks[1:], self.marks, strict=False)
        stages = {name: stamp.seconds_since(before) for (name, stamp), (_, before) in pairs}
        return {"wall": wall, "stages": stages, "step": step_seconds(self.steps)}


def step_seconds(times: list[float]) -> float | None:
    """Median seconds from the end of one step to that of the next."""
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return statistics.median(gaps) if gaps else None


def restrict_threads(threads: int) -> None:
    """Restrict this process to the first `threads` of its cores, whatever its libraries would use; 0: all of them."""
    if threads and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_memory() -> int | None:
    """Largest resident set since the last reset, in bytes; None if the system does not report it."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def reset_peak_memory() -> None:
    """Let `peak_memory` start anew, if the system supports that."""
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return


class Memory:
    """Memory of this process and of its GPU; create it before anything is loaded.

    `free_bytes` returns the GPU's free bytes, or None where they cannot be known.
    """

    def __init__(self, free_bytes: Callable[[], int | None] = lambda: None):
        self.free_bytes = free_bytes
        self.free_before = free_bytes()

    def used(self) -> dict[str, int | None]:
        """`memory`: peak bytes of the process; `memory_device`: bytes taken from the GPU since the beginning."""
        free = self.free_bytes()
        device = None if free is None or self.free_before is None else self.free_before - free
        return {"memory": peak_memory(), "memory_device": device}
