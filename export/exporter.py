"""From a checkpoint to a bundle: trace every component, compare it with torch, write everything or nothing."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from latentrt.export import parity
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules import MODULES
from latentrt.export.sampler_graph import sampler_graph
from latentrt.export.trace import TORCH_DTYPES, count_parameters, save, trace
from latentrt.export.vae_samples import vae_samples
from latentrt.export.vae_scaling import fit_to_fp16
from latentrt.runtime.bundle import MANIFEST, Bundle, describe_file, replacing_folder, write_record
from latentrt.runtime.components import DTYPES, component_specs
from latentrt.runtime.errors import CheckpointError, ParityError
from latentrt.runtime.manifest import ComponentRecord, Defaults, Manifest, NumericsRecord, Provenance, port_table
from latentrt.runtime.model import Limits
from latentrt.runtime.samplers import sampler_for
from latentrt.runtime.specs import ComponentSpec, Precision

logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")

VAE = frozenset({"vae_decoder", "vae_encoder"})

VaePrecision = Literal["auto", "fp16", "fp32"]
"""`auto`: the bundle's, and fp32 for a half of the VAE that fp16 does not hold even scaled and with islands."""

DEFAULT_STEPS = 30
DEFAULT_GUIDANCE = 5.0

Progress = Callable[[str, int, int], None]
"""Called with (what begins now, how many parts are done, how many there are)."""


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    *,
    precision: Precision = "fp16",
    limits: Limits | None = None,
    vae_precision: VaePrecision = "auto",
    samples: Path | None = None,
    depth: parity.Depth = "full",
    progress: Progress = lambda part, done, total: None,
) -> Bundle:
    """Export every component of a checkpoint into the bundle `target`, replacing one that is there.

    The bundle appears when everything in it is written and compared; an error or a kill leaves `target` as it was.
    `samples`: a folder of images over which the VAE is measured too, if it is to run in fp16.

    Raises:
        CheckpointError: the checkpoint is incomplete, or a component does not trace to its ports.
        ParityError: a component differs from torch by more than `parity.TOLERANCE`.
        NumericsError: the VAE is not finite even in float32.
    """
    model = checkpoint.model
    limits = limits or Limits.around(model.native_size)
    precisions = component_precisions(precision, vae_precision)
    specs = component_specs(model, limits, precisions)
    fallbacks = component_specs(model, limits, dict.fromkeys(MODULES, "fp32"))
    with replacing_folder(target) as folder:
        records: dict[str, ComponentRecord] = {}
        for done, (name, spec) in enumerate(specs.items()):
            progress(name, done, len(specs))
            own = precisions.get(name, precision)
            falls_back = name in VAE and own == "fp16" and vae_precision == "auto"
            fallback = fallbacks[name] if falls_back else None
            records[name] = export_or_fall_back(checkpoint, spec, own, folder, precision, depth, samples, fallback)
        progress("manifest", len(specs), len(specs))
        _copy_tokenizers(checkpoint, folder)
        write_record(folder / MANIFEST, _manifest(checkpoint, folder, precision, limits, records))
    return Bundle.open(target)


def component_precisions(precision: Precision, vae_precision: VaePrecision) -> dict[str, Precision]:
    """Each component's precision: the bundle's, but the VAE's own where it is named."""
    vae = precision if vae_precision == "auto" else vae_precision
    return {name: vae if name in VAE else precision for name in MODULES}


def export_or_fall_back(
    checkpoint: Checkpoint,
    spec: ComponentSpec,
    precision: Precision,
    folder: Path,
    bundle_precision: Precision,
    depth: parity.Depth,
    samples: Path | None,
    fallback: ComponentSpec | None,
) -> ComponentRecord:
    """Export one component, with float32's ports `fallback`, if given, where its own precision does not hold it."""
    try:
        return export_component(checkpoint, spec, precision, folder, bundle_precision, depth, samples)
    except (CheckpointError, ParityError) as error:
        if fallback is None:
            raise
        logger.warning("%s stays in fp32, slower and larger: %s", spec.name, error)
    return export_component(checkpoint, fallback, "fp32", folder, bundle_precision, depth)


def export_component(
    checkpoint: Checkpoint,
    spec: ComponentSpec,
    precision: Precision,
    folder: Path,
    bundle_precision: Precision,
    depth: parity.Depth,
    samples: Path | None = None,
) -> ComponentRecord:
    """Trace one component, write its ONNX file under `folder` and compare it with torch."""
    started = time.perf_counter()
    module: torch.nn.Module | None = None
    file = folder / "onnx" / bundle_precision / f"{spec.name}.onnx"
    cases: list[parity.Case] = []
    numerics: NumericsRecord | None = None
    vocabulary = 0
    if spec.name == "sampler":
        graph = sampler_graph(spec)
    else:
        vocabulary = checkpoint.config(MODULES[spec.name][0]).get("vocab_size", 0)
        module, cases, numerics = _prepare(checkpoint, spec, precision, depth, vocabulary, samples)
        graph = trace(module, spec, vocabulary)
    files = save(graph, spec, file)
    parameters, nodes = count_parameters(graph), sum(1 for _ in graph.graph.all_nodes())
    del graph
    if module is not None:
        release(module)
    figures = parity.compare(file, spec, cases, vocabulary, precision)
    logger.info(
        "%s: %d nodes, %.1f M parameters, %.1f s", spec.name, nodes, parameters / 1e6, time.perf_counter() - started
    )
    return ComponentRecord(
        precision=precision,
        files=tuple(path.relative_to(folder).as_posix() for path in files),
        inputs=port_table(spec.inputs),
        outputs=port_table(spec.outputs),
        parameters=parameters,
        nodes=nodes,
        parity=figures,
        numerics=numerics,
    )


def _prepare(
    checkpoint: Checkpoint,
    spec: ComponentSpec,
    precision: Precision,
    depth: parity.Depth,
    vocabulary: int,
    samples: Path | None,
) -> tuple[torch.nn.Module, list[parity.Case], NumericsRecord | None]:
    """The module to trace, in its precision, and what it must compute: the outputs of the float32 network as it was."""
    source, wrapper = MODULES[spec.name]
    dtype = TORCH_DTYPES[DTYPES[precision]]
    measured = spec.name in VAE and precision == "fp16"
    network = checkpoint.network(source, torch.float32 if measured or depth != "off" else dtype)
    module = wrapper(network).eval()
    cases = parity.reference_cases(module, spec, vocabulary, depth)
    numerics = None
    if measured:
        inputs = vae_samples(network, spec.name, checkpoint.model.native_size, samples)
        numerics = fit_to_fp16(network, spec.name, inputs)
    return module.to(dtype), cases, numerics


def release(module: torch.nn.Module) -> None:
    """Free a module's weights for good: torch.export's caches keep the tensors themselves alive."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def _copy_tokenizers(checkpoint: Checkpoint, folder: Path) -> None:
    for encoder in checkpoint.model.text_encoders:
        (folder / encoder.tokenizer).mkdir()
        for name in TOKENIZER_FILES:
            file = checkpoint.path / encoder.tokenizer / name
            if file.is_file():
                shutil.copyfile(file, folder / encoder.tokenizer / name)


def _manifest(
    checkpoint: Checkpoint, folder: Path, precision: Precision, limits: Limits, records: Mapping[str, ComponentRecord]
) -> Manifest:
    random = checkpoint.random_seed
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Manifest(
        latentrt=version("latentrt"),
        precision=precision,
        model=checkpoint.model,
        limits=limits,
        defaults=Defaults(
            sampler=sampler_for(checkpoint.model.scheduler), steps=DEFAULT_STEPS, guidance=DEFAULT_GUIDANCE
        ),
        components=dict(records),
        provenance=Provenance(
            checkpoint=checkpoint.path.name,
            weights="checkpoint" if random is None else f"random weights, seed {random}",
            weights_sha256=checkpoint.weights_sha256(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={name: version(name) for name in TOOLS},
        ),
        files={path.relative_to(folder).as_posix(): describe_file(path) for path in files},
    )
