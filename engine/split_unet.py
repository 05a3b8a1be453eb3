"""The ONNX file of each engine to build: a file of the bundle, or a part of its U-Net, which is split on demand."""

import logging
import shutil
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from latentrt.engine import graph as graphs
from latentrt.engine.passes import apply, passes_for
from latentrt.engine.passes.hoist import Hoisted, hoist
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import DTYPES, ComponentSpec, Port
from latentrt.runtime.bundle.unet_parts import BODY, LOOP_INPUTS, PARTS, PROLOGUE, WHOLE
from latentrt.runtime.errors import BuildError

logger = logging.getLogger(__name__)


class GraphFiles:
    """Finds or writes the ONNX files of engines. As a context manager it removes the files it wrote."""

    def __init__(self, bundle: Bundle, folder: Path, target: str):
        """`folder` is where the U-Net's parts go; it is created when they are."""
        self.bundle, self.folder, self.target = bundle, folder, target
        self.split: Hoisted | None = None

    def __enter__(self) -> "GraphFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.split = None  # its tensors keep the data file open
        shutil.rmtree(self.folder, ignore_errors=True)

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
            )
            for name, model in ((PROLOGUE, split.prologue), (BODY, split.body))
        }

    def file(self, engine: str) -> Path:
        """The ONNX file to build an engine from."""
        if engine not in PARTS:
            return self.bundle.onnx(engine)
        self._split()
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
        record = self.bundle.manifest.components[WHOLE if engine in PARTS else engine]
        declared = len(record.numerics.float32_layers) if record.numerics else 0
        if engine not in PARTS or not declared:
            return declared
        layers = graphs.heavy_nodes(graphs.read_graph(self.file(PROLOGUE)))
        first = sum(layer.dtype != DTYPES[record.precision] for layer in layers)
        return first if engine == PROLOGUE else declared - first

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
            self.split = split_file(self.bundle.onnx(WHOLE), self.folder, self.target)
        return self.split


def split_file(file: Path, folder: Path, target: str) -> Hoisted:
    """Split a U-Net's file into `unet_prologue.onnx` and `unet_body.onnx`, after the passes for the target.

    Weights in a data file are not read.

    Raises:
        BuildError: the file cannot be read, or nothing can be moved out of the loop.
    """
    try:
        model = ir.load(file)
    except Exception as error:  # protobuf's and onnx_ir's exceptions have no other base class
        raise BuildError(f"{WHOLE}: {file} cannot be read: {error}") from error
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
