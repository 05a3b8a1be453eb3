"""The trace of a torch module: a checked ONNX file with exactly the ports of a spec."""

import ast
import gc
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import onnx
import onnx_ir as ir
import torch

from latentrt.export.lowering import lower
from latentrt.export.sample_inputs import sample_inputs
from latentrt.export.simplify import simplify
from latentrt.runtime.bundle.lora_slots import LAYER_KEY
from latentrt.runtime.bundle.specs import ONNX_NAMES, TOKENS_PER_CHUNK, ComponentSpec, DType, Port
from latentrt.runtime.errors import CheckpointError

logger = logging.getLogger(__name__)

OPSET = 23
"""The first opset with Attention; GroupNormalization has been there since 21."""

EXTERNAL_BYTES = 2**31 - 2**24
"""Above this, weights go to a data file: protobuf messages end at 2 GiB."""

EXAMPLE_SIZES = {
    "vae_images": 2,
    "rows": 2,
    "texts": 2,
    "tokens": 2 * TOKENS_PER_CHUNK,
    "latent_height": 17,
    "latent_width": 27,
}
"""Sizes of the traced example. None is 1, so that torch.export specialises nothing. With odd latents the U-Net takes
the path on which upsampling meets the skip connection's size, which then serves even sizes too."""

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators that linear layers and convolutions become; a product of two computed tensors has no constant weights."""

NETWORK = "network."
"""Beginning of the paths within a checkpoint's network, which the modules of `modules` hold under this name."""

TORCH_DTYPES = {name: getattr(torch, name) for name in get_args(DType)}


def trace(module: torch.nn.Module, spec: ComponentSpec, vocabulary: int) -> ir.Model:
    """Trace a module, already in the dtype of the spec, with every axis of the spec dynamic.

    `vocabulary`: number of token ids, for sample inputs. The non-strict tracer runs the Python code as it is; the
    strict one clones every weight. `Dim.DYNAMIC` makes it an error if the model's code fixes an axis to one size.

    Raises:
        CheckpointError: the exporter returned no program.
    """
    with torch.no_grad(), _quiet(), _uncollected():
        program = _translate(module, spec, vocabulary)
        if program is None:
            raise CheckpointError(f"{spec.name}: torch.onnx.export returned nothing")
        simplify(program.model)
    return program.model


def _translate(module: torch.nn.Module, spec: ComponentSpec, vocabulary: int) -> torch.onnx.ONNXProgram | None:
    """Translate a module operator by operator; if one is left that ONNX has not, let torch decompose it."""
    exported = _export(module, spec, vocabulary)
    if lower(exported):
        try:
            return _onnx_program(exported, spec)
        except torch.onnx.OnnxExporterError as error:
            logger.debug("%s: decomposed after all: %s", spec.name, error)
            exported = _export(module, spec, vocabulary)
    return _onnx_program(exported, spec)


def _export(module: torch.nn.Module, spec: ComponentSpec, vocabulary: int) -> torch.export.ExportedProgram:
    inputs = sample_inputs(spec, EXAMPLE_SIZES, vocabulary)
    example = {port.name: inputs[port.name].to(TORCH_DTYPES[port.dtype]) for port in spec.inputs}
    dynamic = {
        port.name: {index: torch.export.Dim.DYNAMIC for index, axis in enumerate(port.axes) if axis.dim}
        for port in spec.inputs
    }
    return torch.export.export(module, (), example, dynamic_shapes=dynamic, strict=False)


def _onnx_program(exported: torch.export.ExportedProgram, spec: ComponentSpec) -> torch.onnx.ONNXProgram | None:
    return torch.onnx.export(
        exported,
        dynamo=True,
        input_names=[port.name for port in spec.inputs],
        output_names=[port.name for port in spec.outputs],
        opset_version=OPSET,
        verbose=False,
        optimize=False,
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause Python's garbage collector, which would walk the growing graph again and again and find nothing to free."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about its own internals (a missing torchvision, deprecated helpers)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.utils._sympy", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def declare_ports(model: ir.Model, spec: ComponentSpec) -> None:
    """Check that the graph's inputs and outputs are the spec's ports, then name their axes as the spec does.

    Raises:
        CheckpointError: names, dtypes or fixed lengths differ.
    """
    for kind, values, ports in (
        ("input", model.graph.inputs, spec.inputs),
        ("output", model.graph.outputs, spec.outputs),
    ):
        names = [value.name for value in values]
        if names != [port.name for port in ports]:
            raise CheckpointError(
                f"{spec.name}: the graph's {kind}s are {names}, the spec has {[p.name for p in ports]}"
            )
        for value, port in zip(values, ports, strict=True):
            _check_port(spec, value, port)
            value.shape = ir.Shape([axis.offset if not axis.dim else str(axis) for axis in port.axes])


def _check_port(spec: ComponentSpec, value: ir.Value, port: Port) -> None:
    dtype = ONNX_NAMES.get(value.dtype, value.dtype.name.lower()) if value.dtype else "untyped"
    shape = value.shape or ir.Shape([])
    fixed = [axis.offset if not axis.dim else None for axis in port.axes]
    fixed_in_graph = [size if isinstance(size, int) else None for size in shape]
    if dtype != port.dtype or fixed_in_graph != fixed:
        raise CheckpointError(f"{spec.name}: {port.name} is {dtype}{list(shape)} in the graph, the spec has {port}")


def save(model: ir.Model, spec: ComponentSpec, file: Path) -> list[Path]:
    """Write and check one ONNX file; returns its path and, where the weights exceed 2 GiB, that of their data file.

    Raises:
        CheckpointError: the ports are not the spec's, or the full checker refuses the graph.
    """
    declare_ports(model, spec)
    model.graph.name = spec.name
    for node in model.graph.all_nodes():
        layer = _layer(node)
        node.metadata_props.clear()  # torch stores a Python stack trace per node
        if layer:
            node.metadata_props[LAYER_KEY] = layer
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    data = f"{file.name}.data" if weights > EXTERNAL_BYTES else None
    ir.save(model, file, external_data=data)
    check(file)
    return [file, file.with_name(data)] if data else [file]


def _layer(node: ir.Node) -> str:
    """The checkpoint's name of the linear layer or convolution that a node computes; empty for any other node.

    torch records the path of the module whose code made a node; the exporter renames weights that it transposes.
    """
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if node.op_type not in LAYERS or scopes is None:
        return ""
    *_, module, _ = ast.literal_eval(scopes)
    return str(module).removeprefix(NETWORK) if str(module).startswith(NETWORK) else ""


def check(file: Path) -> None:
    """ONNX's full checker with strict shape inference: a mixed-dtype operator is an error here, not in TensorRT."""
    try:
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckpointError(f"{file.name}: the exported graph is not valid ONNX: {error}") from error


def count_parameters(model: ir.Model) -> int:
    """Count the elements of all weights; a constant of fewer than 16 elements counts as arithmetic."""
    sizes: Mapping[str, int] = {
        name: value.const_value.size
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    return sum(size for size in sizes.values() if size >= 16)
