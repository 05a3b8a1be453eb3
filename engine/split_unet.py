"""The ONNX file of each engine to build: a file of the bundle, one with slots for LoRAs, or a part of the U-Net."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from latentrt.engine import graph as graphs
from latentrt.engine.passes import apply, passes_for
from latentrt.engine.passes.hoist import Hoisted, hoist
from latentrt.engine.passes.lora_slots import add_lora_slots
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.lora_slots import STRENGTHS, LoraSlots, add_slots, is_slot
from latentrt.runtime.bundle.specs import DTYPES, ComponentSpec, Port
from latentrt.runtime.bundle.unet_parts import BODY, LOOP_INPUTS, PARTS, PROLOGUE, WHOLE, component_of
from latentrt.runtime.errors import BuildError

logger = logging.getLogger(__name__)

SLOT_ROWS = {WHOLE: "rows", "text_encoder": "texts", "text_encoder_2": "texts"}
"""Components that take LoRAs, and the dim of their batch's rows."""


class GraphFiles:
    """Finds or writes the ONNX files of engines. As a context manager it removes the files it wrote."""

    def __init__(self, bundle: Bundle, folder: Path, target: str, lora: LoraSlots | None = None):
        """`folder` is where rewritten graphs go; it is created when they are. `lora`: the slots that they get."""
        self.bundle, self.folder, self.target, self.lora = bundle, folder, target, lora
        self.split: Hoisted | None = None
        self._slots: dict[str, tuple[Port, ...]] = {}

    def __enter__(self) -> "GraphFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.split = None  # its tensors keep the data file open
        shutil.rmtree(self.folder, ignore_errors=True)

    def with_slots(self, specs: Mapping[str, ComponentSpec], hoist: bool) -> dict[str, ComponentSpec]:
        """Specs with the inputs for LoRAs, if there are to be any; those of a U-Net to be split come with its parts.

        Raises:
            BuildError: the export has not recorded the names of the layers.
        """
        if self.lora is None:
            return dict(specs)
        for name, rows in SLOT_ROWS.items():
            if name in specs and not (name == WHOLE and hoist):
                self._slots[name] = write_with_slots(self.bundle.onnx(name), self.folder, self.lora, rows)
        return {name: add_slots(spec, self._slots.get(name, ())) for name, spec in specs.items()}

    def parts(self, whole: ComponentSpec) -> dict[str, ComponentSpec]:
        """Split the U-Net and describe its parts.

        Raises:
            BuildError: nothing could be moved out of the loop.
        """
        split = self._split()
        ports = {port.name: port for port in whole.ports}
        return {
            name: ComponentSpec(
                name,
                tuple(ports.get(str(value.name)) or part_port(value) for value in model.graph.inputs),
                tuple(ports.get(str(value.name)) or part_port(value) for value in model.graph.outputs),
                whole.dims,
                whole.profiles,
            )
            for name, model in ((PROLOGUE, split.prologue), (BODY, split.body))
        }

    def file(self, engine: str) -> Path:
        """The ONNX file to build an engine from."""
        if engine in PARTS:
            self._split()
        elif engine not in self._slots:
            return self.bundle.onnx(engine)
        return self.folder / f"{engine}.onnx"

    def size(self, engine: str) -> int:
        """Approximate bytes of the weights and the graph."""
        if engine not in PARTS:
            manifest = self.bundle.manifest
            return sum(manifest.files[file].size for file in manifest.components[engine].files)
        split = self._split()
        model = split.prologue if engine == PROLOGUE else split.body
        tensors = (value.const_value for value in model.graph.initializers.values())
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def float32_layers(self, engine: str) -> int:
        """How many of the layers that the export declared to be float32 are in this engine."""
        record = self.bundle.manifest.components[component_of(engine)]
        declared = len(record.numerics.float32_layers) if record.numerics else 0
        if not declared:
            return 0
        # A bypass multiplies by each of its matrices once.
        declared += sum(port.dtype == "float32" for port in self._matrices(component_of(engine)))
        if engine not in PARTS:
            return declared
        layers = graphs.heavy_nodes(graphs.read_graph(self.file(PROLOGUE)))
        first = sum(layer.dtype != DTYPES[record.precision] for layer in layers)
        return first if engine == PROLOGUE else declared - first

    def _matrices(self, component: str) -> list[Port]:
        """The inputs for the matrices of LoRAs that a component has, whole or in its parts."""
        ports = self._slots.get(component, ())
        if self.split is not None and component == WHOLE:
            inputs = (*self.split.prologue.graph.inputs, *self.split.body.graph.inputs)
            ports = tuple(part_port(value) for value in inputs if is_slot(str(value.name)))
        return [port for port in ports if port.name != STRENGTHS]

    def notes(self, engine: str) -> tuple[str, ...]:
        """A note for the build's record: how much work a prologue takes out of the loop."""
        if engine != PROLOGUE:
            return ()
        split = self._split()
        return (
            f"once per request instead of every step: {split.nodes} nodes, {split.parameters / 1e6:.2f} M parameters; "
            f"{len(split.interface)} tensors go to {BODY}",
        )

    def _split(self) -> Hoisted:
        if self.split is None:
            self.split = split_file(self.bundle.onnx(WHOLE), self.folder, self.target, self.lora)
        return self.split


def load(file: Path) -> ir.Model:
    """Load a component's graph; weights in a data file are not read.

    Raises:
        BuildError: the file cannot be read.
    """
    try:
        return ir.load(file)
    except Exception as error:  # protobuf's and onnx_ir's exceptions have no other base class
        raise BuildError(f"{file.stem}: {file} cannot be read: {error}") from error


def give_slots(model: ir.Model, file: Path, lora: LoraSlots, rows: str) -> tuple[ir.Value, ...]:
    """Give a graph the inputs for LoRAs, and return them.

    Raises:
        BuildError: the export has not recorded the names of the layers.
    """
    inputs = add_lora_slots(model, lora, rows)
    if not inputs:
        raise BuildError(
            f"{file.stem}: {file} does not say which layers its nodes are; it was exported before latentrt recorded "
            "that. Export the checkpoint again"
        )
    logger.info("%s: %d inputs for LoRAs of rank %d", file.stem, len(inputs), lora.rank)
    return inputs


def write_with_slots(file: Path, folder: Path, lora: LoraSlots, rows: str) -> tuple[Port, ...]:
    """Write a component's graph with slots for LoRAs to `folder`, its weights linked. Returns the new inputs."""
    model = load(file)
    ports = tuple(map(part_port, give_slots(model, file, lora, rows)))
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, folder / file.name)
    graphs.link_data(model, file.parent, folder)
    return ports


def split_file(file: Path, folder: Path, target: str, lora: LoraSlots | None = None) -> Hoisted:
    """Split a U-Net's file into `unet_prologue.onnx` and `unet_body.onnx`, after the passes for the target.

    Weights in a data file are not read. `lora`: the slots that the layers get before all else.

    Raises:
        BuildError: the file cannot be read, or nothing can be moved out of the loop.
    """
    model = load(file)
    if lora is not None:
        give_slots(model, file, lora, SLOT_ROWS[WHOLE])
    apply(passes_for(target), model, WHOLE)
    split = hoist(model, LOOP_INPUTS)
    if split is None:
        others = [str(value.name) for value in model.graph.inputs if value.name not in LOOP_INPUTS]
        raise BuildError(
            f"{WHOLE}: nothing could be moved out of the loop, although {', '.join(others)} does not change in it. "
            "Build it whole with --no-hoist"
        )
    logger.info(
        "%s: hoist moves %d nodes and %.2f M parameters out of the loop, %d tensors cross",
        WHOLE,
        split.nodes,
        split.parameters / 1e6,
        len(split.interface),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in ((PROLOGUE, split.prologue), (BODY, split.body)):
        ir.save(part, folder / f"{name}.onnx")
    graphs.link_data(model, file.parent, folder)
    return split


def part_port(value: ir.Value) -> Port:
    """The port of a tensor that crosses from prologue to body."""
    dtype = graphs.dtype_name(value.dtype) if value.dtype else "untyped"
    return Port.parse(str(value.name), f"{dtype}[{', '.join(map(str, value.shape or ()))}]")
