"""The key of an engine: everything that makes it what it is, so that a stale one says what differs."""

from typing import Any

from latentrt.runtime.bundle.base import Record
from latentrt.runtime.bundle.specs import Precision


class EngineKey(Record):
    """Everything that an engine depends on: an engine whose key equals the needed one is not built again."""

    component: str
    content: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    dims: dict[str, str]
    profiles: tuple[dict[str, str], ...] = ()
    """See `ComponentSpec.profile_table`."""
    precision: Precision
    backend: str
    backend_version: str
    target: str
    latentrt: str
    options: str = ""
    """What the builder was told beside all this; see `KnownBackend.build_options`."""
    passes: int = 0
    """Version of the graph passes that the graph went through, 0 for none; see `unet_parts.passes_of`."""
    lora: str = ""
    """The room for LoRAs, `str(LoraSlots)`; empty for none."""

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
    if isinstance(value, tuple):
        return " or ".join(", ".join(map(" ".join, entry.items())) for entry in value) or "none"
    if value == "":
        return "none"
    return str(value) if len(str(value)) <= 40 else f"{str(value)[:16]}…"
