"""Prologue and body of a split U-Net, chained as one engine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from latentrt.runtime.bundle.specs import ComponentSpec

if TYPE_CHECKING:
    from latentrt.runtime.backends import Binding, Buffer, Engine


class ChainedEngine:
    """Prologue and body run one after the other, as if they were one engine; see `latentrt.runtime.backends.Engine`."""

    def __init__(self, spec: ComponentSpec, prologue: "Engine", body: "Engine"):
        self.spec = spec
        self._prologue, self._body = prologue, body

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, "Buffer"] = {}) -> "ChainedBinding":
        """Buffers of both for these sizes; what crosses between them is shared."""
        return ChainedBinding(*bind_parts(self._prologue, self._body, sizes, shared))

    def close(self) -> None:
        """Close both."""
        self._prologue.close()
        self._body.close()


class ChainedBinding:
    """The bindings of a prologue and a body as one; see `latentrt.runtime.backends.Binding`."""

    def __init__(self, prologue: "Binding", body: "Binding"):
        self._prologue, self._body = prologue, body
        self.buffers = {**prologue.buffers, **body.buffers}

    def run(self) -> None:
        """Enqueue one inference of each."""
        self._prologue.run()
        self._body.run()


def bind_parts(
    prologue: "Engine", body: "Engine", sizes: Mapping[str, int], shared: Mapping[str, "Buffer"] = {}
) -> tuple["Binding", "Binding"]:
    """Bind a prologue, and a body to the buffers of all ports that both have."""
    first = prologue.bind(sizes, _of(prologue, shared))
    return first, body.bind(sizes, _of(body, {**shared, **first.buffers}))


def _of(engine: "Engine", buffers: Mapping[str, "Buffer"]) -> dict[str, "Buffer"]:
    """The buffers that belong to ports of an engine."""
    return {port.name: buffers[port.name] for port in engine.spec.ports if port.name in buffers}
