"""Where two exports of one component part ways: every named tensor of both, compared in the order of computation."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import MODULES, wrap
from latentrt.export.parity import relative_error
from latentrt.export.trace import save, trace
from latentrt.runtime.components import component_specs
from latentrt.runtime.model import Limits
from latentrt.runtime.specs import ComponentSpec

Tensors = dict[str, NDArray[Any]]

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True, slots=True)
class Departure:
    """The first tensor out of tolerance. `relative`: root mean square of the difference over the reference's.

    `compared` tensors come before it and agree.
    """

    component: str
    tensor: str
    operator: str
    relative: float
    compared: int


def first_departure(
    file: Path, spec: ComponentSpec, checkpoint: Checkpoint, inputs: Mapping[str, NDArray[Any]], tolerance: float
) -> Departure | None:
    """Trace the checkpoint's component anew in fp32 and find the first tensor of `file` that differs from it.

    Tensors are matched by name and shape: both graphs are traces of the same code, so their names agree. None where
    every tensor that both have is within tolerance.
    """
    with tempfile.TemporaryDirectory(prefix="latentrt-layers-") as folder:
        reference = _trace_reference(checkpoint, spec.name, Path(folder) / "reference.onnx")
        wanted = run_with_all_tensors(reference, inputs)
        operators = {value.name: node.op_type for node in ir.load(file).graph for value in node.outputs}
        found = run_with_all_tensors(file, inputs)
    compared = 0
    for name, ours in found.items():
        theirs = wanted.get(name)
        if theirs is None or ours.shape != theirs.shape or not np.isfinite(theirs).all():
            continue
        relative = relative_error(ours, theirs)
        if not relative <= tolerance:
            return Departure(spec.name, str(name), operators.get(name, "input"), relative, compared)
        compared += 1
    return None


def _trace_reference(checkpoint: Checkpoint, component: str, file: Path) -> Path:
    model = checkpoint.model
    spec = component_specs(model, Limits.around(model.native_size), dict.fromkeys(MODULES, "fp32"))[component]
    source, _ = MODULES[component]
    vocabulary = checkpoint.vocabulary(source)
    module = wrap(component, checkpoint.network(source, torch.float32), model)
    return save(trace(module, spec, vocabulary), spec, file)[0]


def run_with_all_tensors(file: Path, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Every floating tensor that the graph computes, in order: name -> values."""
    model = ir.load(file)
    graph = model.graph
    declared = set(graph.outputs)
    graph.outputs.extend(
        value for node in graph for value in node.outputs if value.dtype in FLOATS and value not in declared
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Fusions would remove the very tensors that are asked for.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory(prefix="latentrt-layers-") as folder:
        opened = Path(folder) / file.name
        ir.save(model, opened, external_data=f"{file.name}.data")
        session = onnxruntime.InferenceSession(opened, options, providers=["CPUExecutionProvider"])
        types = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
        feed = {
            value.name: inputs[value.name].astype(types.get(value.type, inputs[value.name].dtype))
            for value in session.get_inputs()
        }
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, feed), strict=True))
    order = [value.name for node in graph for value in node.outputs if value.name in outputs]
    return {name: outputs[name] for name in order if name is not None}
