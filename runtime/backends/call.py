"""One engine for one set of sizes, from arrays to arrays; and several buffers on their way to the host."""

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from latentrt.runtime.backends.base import Backend, Buffer, Engine


class EngineCall:
    """An engine bound to sizes, with all its inputs in one block, but those that are `shared`; its run is recorded."""

    def __init__(self, backend: Backend, engine: Engine, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}):
        self._inputs = backend.block([port for port in engine.spec.inputs if port.name not in shared], sizes)
        binding = engine.bind(sizes, {**self._inputs.buffers, **shared})
        self._outputs = {port.name: binding.buffers[port.name] for port in engine.spec.outputs}
        self._run = backend.record(binding.run)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Enqueue a run on these values by input port."""
        self._inputs.write(inputs)
        self._run()

    def fetch(self) -> Callable[[], dict[str, NDArray[Any]]]:
        """Enqueue copies of all outputs; calling what this returns, once, waits for them. See `Buffer.fetch`."""
        return fetch_all(self._outputs)


def fetch_all(buffers: Mapping[str, Buffer]) -> Callable[[], dict[str, NDArray[Any]]]:
    """Enqueue copies of several buffers to the host. Calling what this returns, once, waits for all and gives them."""
    taken = {name: buffer.fetch() for name, buffer in buffers.items()}
    # The last one first: when its copy is done, so are the others, and one wait will do.
    return lambda: {name: take() for name, take in reversed(taken.items())}
