"""Reads the fake device's log: what was enqueued, recorded and replayed, part by part. sources/device.h has the format.

A program names the parts with `bindings.mark`; what comes before the first mark is the part "start".
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FLOAT32, TF32 = "0", "3"
"""`CUDA_R_32F`, and the cuBLAS math mode in which its products are computed with ten bits of mantissa."""

HOST_WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize")
HOST_FUNCTION = "cudaLaunchHostFunc"
COPIES = ("cudaMemcpy", "cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaMemcpyFromSymbol")
WAITING_COPIES = ("cudaMemcpy", "cudaMemcpyFromSymbol")
"""Copies that return once they are done, so the host waits for the device."""
ALLOCATIONS = ("cudaMalloc", "cudaMallocFromPoolAsync")
FREES = ("cudaFree", "cudaFreeAsync")


@dataclass
class Work:
    """What a device is told to do. Each is a count: of kernels by mangled name, of cuDNN's and cuBLAS's calls by name,
    of copies by (from, to), where a place is "device", "pinned" or "pageable".
    """

    kernels: Counter[str] = field(default_factory=Counter)
    gemms: int = 0
    tf32_gemms: int = 0
    library_calls: Counter[str] = field(default_factory=Counter)
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)
    host_functions: int = 0

    @property
    def operations(self) -> int:
        """Kernels, products and cuDNN's operations: whatever costs the device a launch, but for copies."""
        return self.kernels.total() + self.gemms + self.library_calls.total()

    @property
    def host_copies(self) -> int:
        """Copies that begin or end in the host's memory."""
        return sum(count for places, count in self.copies.items() if places != ("device", "device"))

    @property
    def pageable_copies(self) -> int:
        """Copies of memory that is not page-locked: the host takes part in them, and a graph cannot hold them."""
        return sum(count for places, count in self.copies.items() if "pageable" in places)

    def add(self, call: str, details: dict[str, str]) -> None:
        """Count one call."""
        if call == "kernel":
            self.kernels[details["name"]] += 1
        elif call == "gemm":
            self.gemms += 1
            self.tf32_gemms += (details.get("type"), details.get("math")) == (FLOAT32, TF32)
        elif call in ("dnn", "blas"):
            self.library_calls[details["call"]] += 1
        elif call in COPIES:
            self.copies[details["from"], details["to"]] += 1
        elif call == HOST_FUNCTION:
            self.host_functions += 1

    def merge(self, other: "Work") -> None:
        """Count everything in `other` as well."""
        self.kernels.update(other.kernels)
        self.gemms += other.gemms
        self.tf32_gemms += other.tf32_gemms
        self.library_calls.update(other.library_calls)
        self.copies.update(other.copies)
        self.host_functions += other.host_functions


@dataclass
class Part:
    """What happened between two marks.

    enqueued: work that the host enqueued call by call. captured: work that a capture recorded, which runs when its
    graph is launched. replayed: work of the graphs launched. waits: calls in which the host waits, by name. illegal:
    calls that CUDA refuses because a capture is open, in their order. device_bytes: allocated when the part ends.
    """

    name: str
    enqueued: Work = field(default_factory=Work)
    captured: Work = field(default_factory=Work)
    replayed: Work = field(default_factory=Work)
    waits: Counter[str] = field(default_factory=Counter)
    graph_launches: int = 0
    captures: int = 0
    allocations: int = 0
    pinned_allocations: int = 0
    frees: int = 0
    device_bytes: int = 0
    illegal: list[str] = field(default_factory=list)

    @property
    def executed(self) -> Work:
        """All that the device did: enqueued and replayed."""
        total = Work()
        total.merge(self.enqueued)
        total.merge(self.replayed)
        return total

    def summary(self) -> str:
        """The figures in one line."""
        copies = ", ".join(f"{a} to {b} {count}" for (a, b), count in sorted(self.executed.copies.items()))
        return (
            f"{self.name}: {self.graph_launches} graph launches, {self.executed.operations} operations "
            f"({self.executed.gemms} GEMMs, {self.executed.library_calls.total()} library calls), of which "
            f"{self.enqueued.operations} enqueued one by one; {self.waits.total()} host waits; copies: "
            f"{copies or 'none'}; {self.allocations} allocations; {len(self.illegal)} illegal"
        )


def read_trace(log: Path) -> list[Part]:
    """The parts of a log, in their order."""
    reader = _Reader()
    for thread, state, call, details in _lines(log):
        del thread
        reader.read(state, call, details)
    return reader.parts


def _lines(log: Path) -> Iterator[tuple[str, str, str, str]]:
    for line in log.read_text().splitlines():
        thread, state, _stream, call, details = line.split("\t")
        yield thread, state, call, details


class _Reader:
    """Goes through the log; knows the graphs made so far."""

    def __init__(self) -> None:
        self.parts = [Part("start")]
        self._captures: dict[str, Work] = {}
        self._graphs: dict[str, Work] = {}
        self._executables: dict[str, Work] = {}

    def read(self, state: str, call: str, text: str) -> None:
        part = self.parts[-1]
        if call == "mark":
            self.parts.append(Part(text, device_bytes=part.device_bytes))
            return
        details = dict(pair.split("=", 1) for pair in text.split())
        if state == "illegal":
            part.illegal.append(call)
        elif state == "-":
            part.enqueued.add(call, details)
            self._host(part, call, details)
        else:
            part.captured.add(call, details)
            self._captures[state].add(call, details)
            self._memory(part, call, details)
            if call == "cudaGraphLaunch":  # a graph launched into a capture becomes a part of it
                self._captures[state].merge(self._executables[details["executable"]])

    def _host(self, part: Part, call: str, details: dict[str, str]) -> None:
        if call in HOST_WAITS or call in WAITING_COPIES:
            part.waits[call] += 1
        elif call == "cudaStreamBeginCapture":
            part.captures += 1
            self._captures[details["capture"]] = Work()
        elif call == "cudaStreamEndCapture":
            self._graphs[details["graph"]] = self._captures[details["capture"]]
        elif call == "cudaGraphInstantiate":
            self._executables[details["executable"]] = self._graphs[details["graph"]]
        elif call == "cudaGraphLaunch":
            part.graph_launches += 1
            part.replayed.merge(self._executables[details["executable"]])
        else:
            self._memory(part, call, details)

    def _memory(self, part: Part, call: str, details: dict[str, str]) -> None:
        if call in ALLOCATIONS:
            part.allocations += 1
            part.device_bytes += int(details["bytes"])
        elif call in FREES:
            part.frees += 1
            part.device_bytes -= int(details["bytes"])
        elif call == "cudaMallocHost":
            part.pinned_allocations += 1
