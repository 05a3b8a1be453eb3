"""The first tensor in which two exports of one component differ, in the order of computation."""

import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import MODULES, component_vocabulary, reference_module
from latentrt.export.numerics.emulation import emulated
from latentrt.export.numerics.vae_scaling import fold
from latentrt.export.numerics.vae_signals import vae_signals
from latentrt.export.session import feed, open_session
from latentrt.export.tolerance import relative_error
from latentrt.export.trace import save, trace
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import ComponentSpec

Tensors = dict[str, NDArray[Any]]

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

CASTS = frozenset({"Cast", "CastLike"})
"""Their outputs are not compared: precisions differ in the number of casts, and so in what their names mean."""


@dataclass(frozen=True, slots=True)
class Departure:
    """The first tensor out of tolerance: its `relative_error`, and how many tensors agree before it.

    `operator` is the ONNX operator that computes it.
    """

    component: str
    tensor: str
    operator: str
    relative: float
    compared: int


def first_departure(
    file: Path,
    spec: ComponentSpec,
    checkpoint: Checkpoint,
    inputs: Mapping[str, NDArray[Any]],
    tolerance: float,
    scales: Mapping[str, int] = {},
) -> Departure | None:
    """Trace the checkpoint's component anew in fp32 and find the first tensor of `file` that differs from it.

    Returns None if every tensor that both graphs have is within tolerance. Tensors are matched by name and shape: both
    graphs are traces of the same code, so their names agree. `scales`: signal -> exponent of the power of two that the
    export folded into a VAE; folded into the reference too, it makes the tensors in between comparable.
    """
    with tempfile.TemporaryDirectory(prefix="latentrt-layers-") as folder:
        reference, float32_spec = _trace_reference(checkpoint, spec.name, Path(folder) / "reference.onnx", scales)
        reference_tensors = run_with_all_tensors(reference, float32_spec, inputs)
        operators = {value.name: node.op_type for node in ir.load(file).graph for value in node.outputs}
        with emulated(file) if spec.uses("bfloat16") else nullcontext(file) as runnable:
            tensors = run_with_all_tensors(runnable, spec, inputs)
    compared = 0
    for name, values in tensors.items():
        wanted = reference_tensors.get(name)
        if wanted is None or values.shape != wanted.shape or not np.isfinite(wanted).all():
            continue
        if operators.get(name) in CASTS:
            continue
        relative = relative_error(values, wanted)
        if not relative <= tolerance:
            return Departure(spec.name, str(name), operators.get(name, "input"), relative, compared)
        compared += 1
    return None


def _trace_reference(
    checkpoint: Checkpoint, component: str, file: Path, scales: Mapping[str, int]
) -> tuple[Path, ComponentSpec]:
    """Trace the component in fp32; returns the ONNX file and its spec."""
    model = checkpoint.model
    spec = component_specs(model, Limits.around(model.native_size), dict.fromkeys(MODULES, "fp32"))[component]
    module = reference_module(checkpoint, component)
    if scales:
        fold(vae_signals(module.network, component), scales)
    return save(trace(module, spec, component_vocabulary(checkpoint, component)), spec, file)[0], spec


def run_with_all_tensors(file: Path, spec: ComponentSpec, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
    """Run a graph and keep every floating tensor that it computes: name -> values, in the order of computation."""
    model = ir.load(file)
    graph = model.graph
    declared = set(graph.outputs)
    graph.outputs.extend(
        value for node in graph for value in node.outputs if value.dtype in FLOATS and value not in declared
    )
    with tempfile.TemporaryDirectory(prefix="latentrt-layers-") as folder:
        opened = Path(folder) / file.name
        ir.save(model, opened, external_data=f"{file.name}.data")
        session = open_session(opened, optimise=False)  # fusions would remove the very tensors to compare
        names = [value.name for value in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, feed(spec, inputs)), strict=True))
    order = [value.name for node in graph for value in node.outputs if value.name in outputs]
    return {name: outputs[name] for name in order if name is not None}
