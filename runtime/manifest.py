"""What a bundle says of itself: `manifest.json`, written once by the export, and one `build.json` per build."""

from collections import defaultdict
from typing import Any, Final, Literal

from pydantic import Field

from latentrt.runtime.components import component_specs
from latentrt.runtime.model import Limits, Model, Record
from latentrt.runtime.specs import ComponentSpec, Port, Precision

FORMAT: Final = 1
"""Version of the bundle's layout. A reader refuses newer ones."""


class FileRecord(Record):
    """One file of the bundle."""

    size: int
    sha256: str


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

    A signal is named after the module that begins it (`latentrt.export.vae_signals`).
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


class EngineKey(Record):
    """Everything that makes an engine what it is. Two equal keys: the same engine, and nothing is built."""

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
    """Version of the graph passes that it went through, 0 for none (`latentrt.runtime.parts`)."""

    def difference(self, wanted: "EngineKey") -> str | None:
        """The first field in which the engine differs, as `field X, needed Y`, or None."""
        for name in type(self).model_fields:
            found, needed = getattr(self, name), getattr(wanted, name)
            if found != needed:
                return f"{name} {_brief(found, needed)}, needed {_brief(needed, found)}"
        return None


def _brief(value: Any, other: Any) -> str:
    """A field's value, and of a table only the entries that differ."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items() if other.get(name) != entry) or "none"
    return str(value) if len(str(value)) <= 40 else f"{str(value)[:16]}…"


class EngineRecord(Record):
    """One built engine."""

    key: EngineKey
    files: dict[str, FileRecord]
    """Paths within the bundle: the file to load first."""
    seconds: float
    layers: dict[str, int] = Field(default_factory=dict)
    """Layers of the network that the backend took in, counted as `TYPE dtype`."""
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
