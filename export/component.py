"""The export of one component: from the checkpoint's network to an ONNX file that is compared with torch."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks import parity
from latentrt.export.choices import ParityDepth
from latentrt.export.modules import MODULES, component_vocabulary, wrap
from latentrt.export.numerics.fp16 import fit_to_fp16
from latentrt.export.numerics.islands import Islands, frame, to_fp16
from latentrt.export.numerics.unet_samples import text_sample, unet_sample
from latentrt.export.numerics.vae_samples import vae_samples
from latentrt.export.numerics.vae_scaling import fit_vae_to_fp16
from latentrt.export.numerics.widening import overflows, widened
from latentrt.export.sampler_graph import sampler_graph
from latentrt.export.trace import TORCH_DTYPES, count_parameters, save, trace
from latentrt.runtime.bundle.manifest import ComponentRecord, NumericsRecord, port_table
from latentrt.runtime.bundle.specs import DTYPES, ComponentSpec, Precision
from latentrt.runtime.errors import CheckpointError, ParityError

logger = logging.getLogger(__name__)

VAE = frozenset(component for component, (folder, _) in MODULES.items() if folder == "vae")
"""The components that are halves of a VAE."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A module in the dtype in which it is traced, the outputs that it must have, and what was measured for fp16."""

    module: torch.nn.Module
    cases: list[parity.Case]
    numerics: NumericsRecord | None


@dataclass(frozen=True, slots=True)
class ComponentExporter:
    """Exports the components of one checkpoint into the folder of one bundle.

    `precision` is the bundle's, and names the folder of the ONNX files; a component's own may differ. `samples`: a
    folder of further images over which the VAE is measured. `phase` is told, in words, what begins.
    """

    checkpoint: Checkpoint
    folder: Path
    precision: Precision
    depth: ParityDepth
    samples: Path | None = None
    phase: Callable[[str], None] = lambda words: None

    def export(
        self, spec: ComponentSpec, precision: Precision, fallback: ComponentSpec | None = None
    ) -> ComponentRecord:
        """Export one component.

        `fallback`: its spec with float32 ports, which is exported instead if the component does not hold in its own
        precision.

        Raises:
            CheckpointError: it does not trace to its ports.
            ParityError: its outputs differ from torch's by more than the tolerance.
        """
        try:
            return self._export(spec, precision)
        except (CheckpointError, ParityError) as error:
            if fallback is None:
                raise
            logger.warning("%s stays in fp32, slower and larger: %s", spec.name, error)
        return self._export(fallback, "fp32")

    def _export(self, spec: ComponentSpec, precision: Precision) -> ComponentRecord:
        started = time.perf_counter()
        file = self.folder / "onnx" / self.precision / f"{spec.name}.onnx"
        vocabulary = component_vocabulary(self.checkpoint, spec.name)
        prepared = None if spec.name == "sampler" else self._prepare(spec, precision)
        self.phase("tracing")
        graph = sampler_graph(spec) if prepared is None else trace(prepared.module, spec, vocabulary)
        self.phase("writing and checking")
        files = save(graph, spec, file)
        parameters, nodes = count_parameters(graph), _count_nodes(graph)
        del graph
        if prepared is not None:
            release(prepared.module)
        cases = prepared.cases if prepared else []
        self.phase("comparing with torch")
        figures = parity.compare(file, spec, cases, vocabulary, precision)
        seconds = time.perf_counter() - started
        logger.info("%s: %d nodes, %.1f M parameters, %.1f s", spec.name, nodes, parameters / 1e6, seconds)
        return ComponentRecord(
            precision=precision,
            files=tuple(path.relative_to(self.folder).as_posix() for path in files),
            inputs=port_table(spec.inputs),
            outputs=port_table(spec.outputs),
            parameters=parameters,
            nodes=nodes,
            parity=figures,
            numerics=prepared.numerics if prepared else None,
        )

    def _prepare(self, spec: ComponentSpec, precision: Precision) -> Prepared:
        """Load the network, compute the outputs to compare with, measure what fp16 needs, and cast it.

        A network whose outputs are compared is loaded in float32, which holds 10.3 GB for a while with SDXL's U-Net.
        """
        folder, _ = MODULES[spec.name]
        dtype = TORCH_DTYPES[DTYPES[precision]]
        measured = precision == "fp16"
        self.phase("loading weights")
        # Made before the U-Net's weights are in memory: its samples need the text encoders.
        samples = [self._sample(spec)] if measured and spec.name not in VAE else []
        network = self._network(folder, dtype, spec.name in VAE or self.depth != "off")
        module = wrap(spec.name, network, self.checkpoint.model)
        self.phase("computing with torch")
        cases = parity.reference_cases(module, spec, component_vocabulary(self.checkpoint, spec.name), self.depth)
        if not measured:
            return Prepared(module.to(dtype), cases, None)
        self.phase("measuring for fp16")
        with widened(network):
            numerics, islands = self._fit(spec, module, network, samples)
        to_fp16(module)
        frame(module, islands, [TORCH_DTYPES[port.dtype] for port in spec.outputs])
        return Prepared(module, cases, numerics)

    def _network(self, folder: str, dtype: torch.dtype, exact: bool) -> torch.nn.Module:
        """Load a network in `dtype`, or in float32 if its weights must be exact or overflow `dtype`."""
        if exact:
            return self.checkpoint.network(folder, torch.float32)
        network = self.checkpoint.network(folder, dtype)
        return self.checkpoint.network(folder, torch.float32) if overflows(network) else network

    def _sample(self, spec: ComponentSpec) -> dict[str, torch.Tensor]:
        """Make the inputs on which the U-Net or a text encoder is measured."""
        if spec.name == "unet":
            return unet_sample(self.checkpoint, spec)
        return text_sample(self.checkpoint, spec.name)

    def _fit(
        self, spec: ComponentSpec, module: torch.nn.Module, network: torch.nn.Module, samples: list[Any]
    ) -> tuple[NumericsRecord, Islands]:
        """Measure the network and fit it into fp16's range."""
        if spec.name in VAE:
            images = vae_samples(network, spec.name, self.checkpoint.model.native_size, self.samples)
            return fit_vae_to_fp16(network, spec.name, images)
        return fit_to_fp16(spec.name, network, lambda sample: module(**sample), samples)


def _count_nodes(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def release(module: torch.nn.Module) -> None:
    """Free the memory of a module's weights, whose tensors themselves torch.export's caches keep alive."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)
