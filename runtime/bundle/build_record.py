"""`build.json`: the engines of one build, and the key of each."""

from typing import Literal

from pydantic import Field

from latentrt.runtime.bundle.base import FORMAT, FileRecord, Record
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.engine_key import EngineKey
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import LoraSlots
from latentrt.runtime.bundle.specs import Precision


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
    named_target: bool = False
    """Whether the user named the target, so that a command to rebuild it must do so, too."""
    limits: Limits
    options: BuildOptions = BuildOptions()
    engines: dict[str, EngineRecord]
    lora: LoraSlots | None = None
    """The room for LoRAs in the U-Net and the text encoders."""

    @property
    def name(self) -> str:
        """Name of the build's folder."""
        return f"{self.backend}-{self.precision}-{self.target}{self.lora.suffix if self.lora else ''}"
