"""What a bundle says of itself: `manifest.json`, written once by the export, and one `build.json` per build."""

from collections import defaultdict
from typing import Literal

from latentrt.runtime.bundle.base import FORMAT, FileRecord, Record
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import ComponentSpec, Port, Precision


class ParityRecord(Record):
    """One comparison of a component's ONNX file with torch, in ONNX Runtime."""

    case: str
    sizes: dict[str, int]
    output: str
    max_abs: float
    relative: float
    """Root-mean-square error over the reference's root mean square."""


class NumericsRecord(Record):
    """How an fp16 component's values were made to fit, and what came of it, over samples.

    A signal is named after the module that begins it (`latentrt.export.numerics.vae_signals`).
    """

    samples: int
    ranges: dict[str, float]
    """Largest absolute output of modules in float32, before anything was scaled: the largest ones of the network.

    `<attention>.logits`: the products of queries and keys."""
    scales: dict[str, int]
    """Signal: the exponent of the power of two that it was multiplied by. Others keep their scale."""
    largest: float
    """Largest absolute value after scaling, outside the islands."""
    islands: tuple[str, ...]
    """Modules that run in float32, but for layers in them that fit."""
    float32_layers: tuple[str, ...]
    """Convolutions, linear layers and attentions that run in float32: as many may do so in an engine's network."""
    folding_error: float
    """What scaling changed in float32, relative; 0 for identical bits."""
    relative: float
    """fp16 against float32: root mean square of the difference over that of float32's outputs."""


class ComponentRecord(Record):
    """One exported component. Ports are written as `float16[rows, 4, latent_height, latent_width]`."""

    precision: Precision
    files: tuple[str, ...]
    """Paths within the bundle: the ONNX file first, then its data file if it has one."""
    inputs: dict[str, str]
    outputs: dict[str, str]
    parameters: int
    nodes: int
    parity: tuple[ParityRecord, ...] = ()
    numerics: NumericsRecord | None = None
    """Of components whose values were measured, and made to fit, for fp16."""


class LoraRecord(Record):
    """A LoRA that was added to the weights, so strongly."""

    file: str
    sha256: str
    weight: float


class Provenance(Record):
    """Where the bundle comes from."""

    checkpoint: str
    weights: str
    """`checkpoint`, or `random weights, seed N`."""
    weights_sha256: str
    """Changes with any weight of the checkpoint, its LoRAs and its VAE."""
    vae: str = ""
    """Class of the VAE, and whose it is."""
    vae_sha256: str = ""
    """Of the VAE's tensors in float32: equal for the same VAE in another file or folder."""
    loras: tuple[LoraRecord, ...] = ()
    created: str
    versions: dict[str, str]


class Defaults(Record):
    """What a request gets that does not say."""

    sampler: str
    steps: int
    guidance: float


class Manifest(Record):
    """The whole of `manifest.json`."""

    format: Literal[1] = FORMAT
    latentrt: str
    precision: Precision
    model: Model
    limits: Limits
    defaults: Defaults
    components: dict[str, ComponentRecord]
    provenance: Provenance
    files: dict[str, FileRecord]

    def specs(self, limits: Limits | None = None) -> dict[str, ComponentSpec]:
        """Every component's ports and dims, for these limits or the bundle's own."""
        # A bundle may hold only some of a model's components.
        precisions = defaultdict(lambda: self.precision, {name: c.precision for name, c in self.components.items()})
        return component_specs(self.model, limits or self.limits, precisions, self.components)

    def content(self, component: str) -> str:
        """One string that changes with any byte of the component's files."""
        return " ".join(self.files[name].sha256 for name in self.components[component].files)


def port_table(ports: tuple[Port, ...]) -> dict[str, str]:
    """Ports as the manifest writes them."""
    return {port.name: str(port) for port in ports}
