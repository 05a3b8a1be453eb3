"""The inputs by which an engine takes LoRAs: two matrices for each layer, and how strongly each row uses them.

A layer with slots computes y + ((x · A) · s) · B (Hu et al. 2021, arXiv:2106.09685). A (in, R) and B (R, out) hold the
matrices of all loaded LoRAs side by side; s (rows, 1, R) is one strength per row and rank. A convolution has kernels
instead: A (R, in, height, width), B (out, R, 1, 1).
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from latentrt.runtime.bundle.base import Record
from latentrt.runtime.bundle.engine_key import EngineKey
from latentrt.runtime.bundle.specs import ComponentSpec, Port
from latentrt.runtime.bundle.unet_parts import component_of

STRENGTHS = "lora_strengths"
"""The input that holds the strengths, float32 (rows, 1, R); in a text encoder (texts, 1, R)."""

DOWN, UP = ".lora_A", ".lora_B"
"""What the name of a layer's input adds to the layer's name."""

LAYER_KEY = "latentrt.layer"
"""Key of the ONNX nodes' metadata under which an export keeps the name of the layer in the checkpoint."""

MAX_RANK = 1024
"""The largest sum of ranks that a build may have room for."""

LoraLayers = Literal["attention", "all"]
"""`attention`: the linear layers and 1×1 convolutions of transformer blocks, which nearly all LoRAs change. `all`:
every linear layer and convolution, as LoCon's files do."""


class LoraSlots(Record):
    """What a build's engines have room for: the sum of the ranks of all loaded LoRAs, in these layers."""

    rank: int = Field(ge=1, le=MAX_RANK)
    layers: LoraLayers = "attention"

    def __str__(self) -> str:
        return f"LoRA rank {self.rank}, {self.layers} layers"

    @property
    def suffix(self) -> str:
        """What the name of the build's folder adds."""
        return f"-lora{self.rank}" + ("" if self.layers == "attention" else f"-{self.layers}")

    @property
    def options(self) -> list[str]:
        """The options of `build-engine` that ask for them."""
        return [f"--lora-rank {self.rank}"] + ([] if self.layers == "attention" else [f"--lora-layers {self.layers}"])


def is_slot(port: str) -> bool:
    """Whether an input takes LoRAs."""
    return port == STRENGTHS or port.endswith((DOWN, UP))


def slot_layer(port: str) -> str:
    """The layer whose matrix an input holds."""
    return port.removesuffix(DOWN).removesuffix(UP)


def slot_ports(spec: ComponentSpec) -> tuple[Port, ...]:
    """The inputs of an engine that hold a matrix of LoRAs."""
    return tuple(port for port in spec.inputs if port.name.endswith((DOWN, UP)))


def has_slots(spec: ComponentSpec) -> bool:
    """Whether an engine takes LoRAs."""
    return any(is_slot(port.name) for port in spec.inputs)


def add_slots(spec: ComponentSpec, ports: tuple[Port, ...]) -> ComponentSpec:
    """A component's spec with these further inputs."""
    return ComponentSpec(spec.name, spec.inputs + ports, spec.outputs, spec.dims, spec.profiles)


def recorded_slots(specs: Mapping[str, ComponentSpec], keys: Mapping[str, EngineKey]) -> dict[str, ComponentSpec]:
    """Specs with the inputs for LoRAs that the keys of a build's engines record."""
    found: dict[str, dict[str, Port]] = {name: {} for name in specs}
    for engine, key in keys.items():
        ports = [Port.parse(name, text) for name, text in key.inputs.items() if is_slot(name)]
        found.get(component_of(engine), {}).update({port.name: port for port in ports})
    return {name: add_slots(spec, tuple(found[name].values())) if found[name] else spec for name, spec in specs.items()}
