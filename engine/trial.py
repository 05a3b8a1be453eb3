"""Tries engines of one component side by side on the device, to find the fastest that computes the same."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import relative_error
from latentrt.runtime.backends import Binding, open_backend
from latentrt.runtime.backends.cuda_graph import WARM_UPS, Recording
from latentrt.runtime.bundle.specs import ComponentSpec, Port, Precision
from latentrt.runtime.errors import LatentRTError

RUNS = 15

LARGEST_ERROR: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Largest relative error against the first engine's outputs; beyond it an engine does not compute the same."""

SMALLEST_WIN = 0.98
"""An engine counts as faster if its median time is at most this share of the other's; less may be chance."""


@dataclass(frozen=True, slots=True)
class Tried:
    """The result for one engine: median seconds per run at the spec's optimal sizes, or why it is ruled out.

    refusal: why it was not captured as a CUDA graph, where one was tried.
    """

    name: str
    seconds: float = 0.0
    failure: str = ""
    refusal: str = ""

    def __str__(self) -> str:
        measured = f"{1e3 * self.seconds:.2f} ms" if self.seconds else ""
        refusal = f"no CUDA graph ({self.refusal})" if self.refusal else ""
        return f"{self.name}: {', '.join(filter(None, (measured, refusal, self.failure)))}"


class Trial:
    """Runs engines of one component on the same random inputs and compares them with the first.

    An engine is ruled out if it does not load or run, if its outputs differ from the first one's by more than rounding,
    or if they differ from run to run: the same seed must draw the same picture.
    """

    def __init__(self, backend: str, device: str, spec: ComponentSpec, precision: Precision):
        self.tried: list[Tried] = []
        self._backend, self._device = backend, device
        self._spec, self._precision = spec, precision
        draw = np.random.default_rng(0)
        sizes = spec.sizes("opt")
        self._inputs = {port.name: random_values(port, port.shape(sizes), draw) for port in spec.inputs}
        self._reference: list[NDArray[Any]] | None = None
        self._best: Tried | None = None

    def run(self, name: str, file: Path) -> bool:
        """Try an engine. Returns whether it is the best so far."""
        try:
            found = self._measure(name, file)
        except LatentRTError as error:
            found = Tried(name, failure=f"does not run ({error})")
        return self._enter(found)

    def fail(self, name: str, error: Exception) -> None:
        """Record an engine that could not be built."""
        self._enter(Tried(name, failure=f"cannot be built ({error})"))

    def _enter(self, found: Tried) -> bool:
        self.tried.append(found)
        if found.failure or (self._best and found.seconds > SMALLEST_WIN * self._best.seconds):
            return False
        self._best = found
        return True

    def _measure(self, name: str, file: Path) -> Tried:
        backend = open_backend(self._backend, self._device)
        engine = None
        try:
            engine = backend.load(self._spec, file, optimised=True)
            binding = engine.bind(self._spec.sizes("opt"))
            for port, values in self._inputs.items():
                binding.buffers[port].write(values)
            run = backend.record(binding.run)  # as the loop runs it
            seconds = []
            for number in range(WARM_UPS + RUNS):
                before = backend.mark()
                run()
                after = backend.mark()
                after.wait()
                if number == WARM_UPS:
                    first = self._outputs(binding)
                seconds.append(after.seconds_since(before))
            failure = self._compare(first, self._outputs(binding))
            refusal = run.refusal if isinstance(run, Recording) else ""
            return Tried(name, statistics.median(seconds[WARM_UPS:]), failure, refusal)
        finally:
            if engine is not None:
                engine.close()
            backend.close()

    def _outputs(self, binding: Binding) -> list[NDArray[Any]]:
        return [binding.buffers[port.name].numpy() for port in self._spec.outputs]

    def _compare(self, first: list[NDArray[Any]], last: list[NDArray[Any]]) -> str:
        """Why the outputs of the first and last run cannot be trusted; empty if they can."""
        if any(one.tobytes() != other.tobytes() for one, other in zip(first, last, strict=True)):
            return "its results differ from run to run"
        if self._reference is None:
            self._reference = first
        error = max(finite_error(one, other) for one, other in zip(first, self._reference, strict=True))
        return (
            "" if error <= LARGEST_ERROR[self._precision] else f"computes something else (relative error {error:.1e})"
        )

    def __str__(self) -> str:
        """The note in the build's record."""
        others = "; ".join(str(one) for one in self.tried if one is not self._best)
        return f"kept, of {len(self.tried)} forms tried: {self._best}. {others}"


def random_values(port: Port, shape: tuple[int, ...], draw: np.random.Generator) -> NDArray[Any]:
    """Standard normal numbers, or small positive integers."""
    if port.dtype in ("int64", "uint8"):
        return draw.integers(0, 100, shape)
    return draw.standard_normal(shape).astype(np.float32)


def finite_error(values: NDArray[Any], reference: NDArray[Any]) -> float:
    """Relative error of the finite elements; infinite if other elements are finite in one array than in the other."""
    finite = np.isfinite(values)
    if not np.array_equal(finite, np.isfinite(reference)):
        return float("inf")
    return relative_error(np.where(finite, values, 0), np.where(finite, reference, 0))
