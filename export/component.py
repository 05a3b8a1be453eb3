"""One component: from the checkpoint's network to an ONNX file that is compared with torch."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks import parity
from latentrt.export.modules import MODULES, wrap
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

VAE = frozenset({"vae_decoder", "vae_encoder"})


@dataclass(frozen=True, slots=True)
class Prepared:
    """A module in the precision it is traced in, what it must compute, and what was measured for it."""

    module: torch.nn.Module
    cases: list[parity.Case]
    numerics: NumericsRecord | None


@dataclass(frozen=True, slots=True)
class ComponentExporter:
    """Exports the components of one checkpoint into one bundle's folder.

    `precision` is the bundle's, and names the folder of the ONNX files; a component's own may differ. `samples`: a
    folder of images over which the VAE is measured too.
    """

    checkpoint: Checkpoint
    folder: Path
    precision: Precision
    depth: parity.Depth
    samples: Path | None = None

    def export(
        self, spec: ComponentSpec, precision: Precision, fallback: ComponentSpec | None = None
    ) -> ComponentRecord:
        """Export one component; with the float32 ports `fallback`, if given, where its own precision does not hold it.

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
        prepared = None if spec.name == "sampler" else self._prepare(spec, precision)
        graph = sampler_graph(spec) if prepared is None else trace(prepared.module, spec, self._vocabulary(spec))
        files = save(graph, spec, file)
        parameters, nodes = count_parameters(graph), _count_nodes(graph)
        del graph
        if prepared is not None:
            release(prepared.module)
        cases = prepared.cases if prepared else []
        figures = parity.compare(file, spec, cases, self._vocabulary(spec), precision)
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

    def _vocabulary(self, spec: ComponentSpec) -> int:
        """How many token ids the component's network knows, or 0."""
        return self.checkpoint.vocabulary(MODULES[spec.name][0]) if spec.name in MODULES else 0

    def _prepare(self, spec: ComponentSpec, precision: Precision) -> Prepared:
        """Load the network in float32 where its outputs are compared, take them, measure what fp16 needs, then cast it.

        So a compared fp16 export holds the float32 weights for a while: 10.3 GB for SDXL's U-Net.
        """
        source, _ = MODULES[spec.name]
        dtype = TORCH_DTYPES[DTYPES[precision]]
        measured = precision == "fp16"
        # Before the U-Net's weights are in memory: its samples need the text encoders.
        samples = [self._sample(spec)] if measured and spec.name not in VAE else []
        network = self._network(source, dtype, spec.name in VAE or self.depth != "off")
        module = wrap(spec.name, network, self.checkpoint.model)
        cases = parity.reference_cases(module, spec, self._vocabulary(spec), self.depth)
        if not measured:
            return Prepared(module.to(dtype), cases, None)
        with widened(network):
            numerics, islands = self._fit(spec, module, network, samples)
        to_fp16(module)
        frame(module, islands, [TORCH_DTYPES[port.dtype] for port in spec.outputs])
        return Prepared(module, cases, numerics)

    def _network(self, source: str, dtype: torch.dtype, exact: bool) -> torch.nn.Module:
        """A network with its weights in float32 where they must be exact, or where fp16 does not hold them."""
        if exact:
            return self.checkpoint.network(source, torch.float32)
        network = self.checkpoint.network(source, dtype)
        return self.checkpoint.network(source, torch.float32) if overflows(network) else network

    def _sample(self, spec: ComponentSpec) -> dict[str, torch.Tensor]:
        """What the U-Net or a text encoder is measured on."""
        if spec.name == "unet":
            return unet_sample(self.checkpoint, spec)
        return text_sample(self.checkpoint, spec.name)

    def _fit(
        self, spec: ComponentSpec, module: torch.nn.Module, network: torch.nn.Module, samples: list[Any]
    ) -> tuple[NumericsRecord, Islands]:
        """Measure the network and make it fit into fp16."""
        if spec.name in VAE:
            images = vae_samples(network, spec.name, self.checkpoint.model.native_size, self.samples)
            return fit_vae_to_fp16(network, spec.name, images)
        return fit_to_fp16(spec.name, network, lambda sample: module(**sample), samples)


def _count_nodes(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def release(module: torch.nn.Module) -> None:
    """Free a module's weights for good: torch.export's caches keep the tensors themselves alive."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)
