"""`manifest.json`, which the export writes once: the model, its components, their files and where they come from."""

from collections import defaultdict
from typing import Literal

from latentrt.runtime.bundle.base import FORMAT, FileRecord, Record
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.bundle.specs import ComponentSpec, Port, Precision


class ParityRecord(Record):
    """One comparison of a component's ONNX file, run by ONNX Runtime, with torch."""

    case: str
    sizes: dict[str, int]
    output: str
    max_abs: float
    relative: float
    """Root-mean-square error over the reference's root mean square."""


class NumericsRecord(Record):
    """How an fp16 component's values were made to fit fp16, and the resulting errors, measured on samples.

    A signal is named after its first module (`latentrt.export.numerics.vae_signals`).
    """

    samples: int
    ranges: dict[str, float]
    """Module -> its largest absolute output in float32, before scaling; only the largest of the network.

    `<attention>.logits` are the products of queries and keys."""
    scales: dict[str, int]
    """Signal -> exponent of the power of two that it was multiplied by; other signals are not scaled."""
    largest: float
    """Largest absolute value after scaling, outside the islands."""
    islands: tuple[str, ...]
    """Modules that run in float32, except for layers within them that fit fp16."""
    float32_layers: tuple[str, ...]
    """Convolutions, linear layers and attentions that run in float32; an engine's network may have as many."""
    folding_error: float
    """Relative change that scaling makes in float32; 0 for identical bits."""
    relative: float
    """Error of fp16: root mean square of its difference from float32, over that of the float32 outputs."""


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
    """Only for components whose values were measured for fp16."""


class LoraRecord(Record):
    """A LoRA that was added to the weights, multiplied by `weight`."""

    file: str
    sha256: str
    weight: float


class Provenance(Record):
    """The checkpoint and the versions that the bundle was made from."""

    checkpoint: str
    weights: str
    """`checkpoint`, or `random weights, seed N`."""
    weights_sha256: str
    """Changes with any weight of the checkpoint, its LoRAs and its VAE."""
    unet: str = ""
    """Class and origin of the U-Net, if it is not the checkpoint's own."""
    vae: str = ""
    """Class and origin of the VAE."""
    vae_sha256: str = ""
    """Hash of the VAE's tensors in float32: equal for the same VAE in another file or folder."""
    loras: tuple[LoraRecord, ...] = ()
    created: str
    versions: dict[str, str]


class Defaults(Record):
    """Settings of a request that does not name them."""

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
        """Ports and dims of every component in the bundle, for these limits or the bundle's own."""
        # A bundle may hold only some of a model's components.
        precisions = defaultdict(lambda: self.precision, {name: c.precision for name, c in self.components.items()})
        return component_specs(self.model, limits or self.limits, precisions, self.components)

    def content(self, component: str) -> str:
        """A string that changes with any byte of the component's files."""
        return " ".join(self.files[name].sha256 for name in self.components[component].files)


def port_table(ports: tuple[Port, ...]) -> dict[str, str]:
    """Ports as manifests and keys spell them: name -> `dtype[axes]`."""
    return {port.name: str(port) for port in ports}
