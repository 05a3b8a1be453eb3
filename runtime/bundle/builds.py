"""`build.json`: the engines of one build, and the key of each."""

from typing import Any, Literal

from pydantic import Field

from latentrt.runtime.bundle.base import FORMAT, FileRecord, Record
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import Precision


class EngineKey(Record):
    """Everything that an engine depends on: an engine whose key equals the needed one is not built again."""

    component: str
    content: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    dims: dict[str, str]
    precision: Precision
    backend: str
    backend_version: str
    target: str
    latentrt: str
    passes: int = 0
    """Version of the graph passes that the graph went through, 0 for none; see `unet_parts.passes_of`."""

    def difference(self, wanted: "EngineKey") -> str | None:
        """The first field in which the engine differs, as `field X, needed Y`, or None."""
        for name in type(self).model_fields:
            found, needed = getattr(self, name), getattr(wanted, name)
            if found != needed:
                return f"{name} {_brief(found, needed)}, needed {_brief(needed, found)}"
        return None


def _brief(value: Any, other: Any) -> str:
    """A field's value, shortened; only the entries that differ if it is a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items() if other.get(name) != entry) or "none"
    return str(value) if len(str(value)) <= 40 else f"{str(value)[:16]}…"


class EngineRecord(Record):
    """One built engine."""

    key: EngineKey
    files: dict[str, FileRecord]
    """By path within the bundle; the first is the one to load."""
    seconds: float
    layers: dict[str, int] = Field(default_factory=dict)
    """`TYPE dtype` -> number of such layers in the network that the backend was given."""
    notes: tuple[str, ...] = ()


class BuildRecord(Record):
    """The whole of `build.json`: the engines of one bundle for one backend, precision and target."""

    format: Literal[1] = FORMAT
    backend: str
    precision: Precision
    target: str
    limits: Limits
    engines: dict[str, EngineRecord]

    @property
    def name(self) -> str:
        """Name of the build's folder."""
        return f"{self.backend}-{self.precision}-{self.target}"
