"""A split U-Net's two engines, the prologue and the body, chained as one engine."""

from collections.abc import Mapping

from latentrt.runtime.backends.base import Binding, Buffer, Engine
from latentrt.runtime.bundle.specs import ComponentSpec


class ChainedEngine:
    """A prologue and a body, run one after the other as if they were one engine; implements `Engine`."""

    def __init__(self, spec: ComponentSpec, prologue: Engine, body: Engine):
        self.spec = spec
        self._prologue, self._body = prologue, body

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> "ChainedBinding":
        """Bind both engines for these sizes; ports that both have share a buffer."""
        return ChainedBinding(*bind_parts(self._prologue, self._body, sizes, shared))

    def close(self) -> None:
        """Close both engines."""
        self._prologue.close()
        self._body.close()


class ChainedBinding:
    """The bindings of a prologue and a body as one; implements `Binding`."""

    def __init__(self, prologue: Binding, body: Binding):
        self._prologue, self._body = prologue, body
        self.buffers = {**prologue.buffers, **body.buffers}

    def run(self) -> None:
        """Enqueue one inference of each."""
        self._prologue.run()
        self._body.run()


def bind_parts(
    prologue: Engine, body: Engine, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}
) -> tuple[Binding, Binding]:
    """Bind a prologue and a body; ports that both have share the prologue's buffer."""
    first = prologue.bind(sizes, _buffers_of(prologue, shared))
    return first, body.bind(sizes, _buffers_of(body, {**shared, **first.buffers}))


def _buffers_of(engine: Engine, buffers: Mapping[str, Buffer]) -> dict[str, Buffer]:
    """The buffers that belong to an engine's ports."""
    return {port.name: buffers[port.name] for port in engine.spec.ports if port.name in buffers}
