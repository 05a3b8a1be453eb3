"""latentrt as a contender: the pipeline of a bundle, or one of its engines."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from latentrt.benchmarks.workers.measure import Memory, peak_memory, reset_peak_memory, restrict_threads, step_seconds
from latentrt.runtime import Pipeline
from latentrt.runtime.backends import Binding, Engine
from latentrt.runtime.backends.registry import load_module
from latentrt.runtime.build_selection import select
from latentrt.runtime.bundle import Bundle


class Latentrt:
    """Draws pictures with `Pipeline.generate`, or runs one component."""

    def __init__(self) -> None:
        self.pipeline: Pipeline | None = None
        self.engine: Engine | None = None
        self.bound: dict[tuple[tuple[str, int], ...], tuple[Binding, Callable[[], None]]] = {}
        self.backend: Any = None
        self.memory = Memory()

    def load(
        self, *, bundle: str, backend: str, device: str, threads: int, component: str = "", **_others: Any
    ) -> dict[str, Any]:
        """Load the whole pipeline, or one component."""
        restrict_threads(threads)
        self.memory = Memory(lambda: device_free(device))
        place = "cpu" if device == "cpu" else "cuda:0"
        if component:
            opened = Bundle.open(bundle)
            selection = select(opened, backend, place)
            self.backend = selection.open()
            self.engine = selection.load_component(self.backend, opened.manifest.specs(selection.limits)[component])
        else:
            self.pipeline = Pipeline.load(bundle, backend, place)
            self.backend = self.pipeline.backend
        versions = {"latentrt": version("latentrt"), backend: str(load_module(backend).__version__)}
        return {"versions": versions, "memory": peak_memory(), "notes": []}

    def begin(self) -> None:
        """Note that the warm-up is over."""
        reset_peak_memory()

    def sample(self, *, request: dict[str, Any], picture: str | None = None) -> dict[str, Any]:
        """Time one request; its first picture is saved to `picture`."""
        if self.pipeline is None:
            raise RuntimeError("sample before load")
        times: list[float] = []
        self.pipeline.forget_prompts()  # the peers encode them for every request
        self.backend.synchronize()
        started = time.perf_counter()
        result = self.pipeline.generate(**request, progress=lambda done, total: times.append(time.perf_counter()))
        wall = time.perf_counter() - started
        if picture:
            result.images[0].save(picture)
        answer = {"wall": wall, "stages": dict(result.timings), "step": step_seconds(times)}
        return answer | self.memory.used() | {"captured": self.pipeline.is_captured}

    def run_component(
        self, *, inputs: str, sizes: dict[str, int], output: str, result: str | None = None
    ) -> dict[str, Any]:
        """Time one run of the component on the arrays of an `.npz` file; the port `output` is saved to `result`."""
        if self.engine is None:
            raise RuntimeError("run_component before load")
        key = tuple(sorted(sizes.items()))
        if key not in self.bound:
            binding = self.engine.bind(sizes)
            self.bound[key] = (binding, self.backend.record(binding.run))
        binding, run = self.bound[key]
        with np.load(inputs, allow_pickle=False) as arrays:
            for port in self.engine.spec.inputs:
                binding.buffers[port.name].write(arrays[port.name])
        self.backend.synchronize()
        started = time.perf_counter()
        before = self.backend.mark()
        run()
        after = self.backend.mark()
        after.wait()
        wall = time.perf_counter() - started
        if result:
            np.save(result, binding.buffers[output].numpy())
        return {"wall": wall, "stages": {"component": after.seconds_since(before)}, "step": None} | self.memory.used()


def device_free(device: str) -> int | None:
    """Free bytes of the GPU, whatever process uses the others; None on the CPU."""
    if device == "cpu":
        return None
    from latentrt.runtime.backends.cuda import call

    return int(call("cudaMemGetInfo")[0])
