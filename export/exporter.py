"""The export of a whole bundle: trace every component, compare it with torch, and write everything or nothing."""

import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.choices import ParityDepth, VaePrecision
from latentrt.export.component import VAE, ComponentExporter
from latentrt.export.modules import MODULES
from latentrt.export.numerics.vae_samples import folder_images
from latentrt.export.random_weights import tensor_shapes
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import MANIFEST, bundle_target, describe_file, replacing_folder, write_record
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.disk import check_space, disk_errors
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.manifest import ComponentRecord, Manifest, Provenance
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.errors import BundleError

logger = logging.getLogger(__name__)

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")

SMALLEST = 8
"""Pixels at which the user's samples are read once, to see whether they can be."""

Progress = Callable[[str, int, int], None]
"""Called with what begins (`unet: tracing`), the number of parts that are done, and their total number."""


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    *,
    precision: Precision = "fp16",
    limits: Limits | None = None,
    vae_precision: VaePrecision = "auto",
    samples: Path | None = None,
    depth: ParityDepth = "full",
    progress: Progress = lambda part, done, total: None,
) -> Bundle:
    """Export every component of a checkpoint into the bundle `target`, replacing one that is there.

    The bundle appears once everything in it is written and compared; an error or a kill leaves `target` as it was.
    `samples`: a folder of further images over which a VAE in fp16 is measured.

    Raises:
        BundleError: the bundle cannot be written at `target`, or its disk has too little room.
        CheckpointError: the checkpoint is incomplete, or a component does not trace to its ports.
        ParityError: a component differs from torch by more than `tolerance.TOLERANCE`.
        NumericsError: a network's values are not finite even in float32.
        RequestError: `samples` holds no image, or one that cannot be read.
    """
    model = checkpoint.model
    limits = limits or Limits.around(model.native_size)
    precisions = component_precisions(precision, vae_precision)
    specs = component_specs(model, limits, precisions)
    fallbacks = component_specs(model, limits, dict.fromkeys(MODULES, "fp32"))
    folder_images(samples, SMALLEST)
    check_space(bundle_target(target), least_bytes(checkpoint, precisions), "the export")
    with disk_errors(target, BundleError), replacing_folder(target) as folder:
        records: dict[str, ComponentRecord] = {}
        for done, (name, spec) in enumerate(specs.items()):
            phase = partial(_tell, progress, name, done, len(specs))
            exporter = ComponentExporter(checkpoint, folder, precision, depth, samples, phase)
            component_precision = precisions.get(name, precision)
            falls_back = name in VAE and component_precision == "fp16" and vae_precision == "auto"
            records[name] = exporter.export(spec, component_precision, fallbacks[name] if falls_back else None)
        progress("manifest", len(specs), len(specs))
        _write_tokenizers(checkpoint, folder)
        write_record(folder / MANIFEST, _manifest(checkpoint, folder, precision, limits, records))
    return Bundle.open(target)


def _tell(progress: Progress, name: str, done: int, total: int, phase: str) -> None:
    progress(f"{name}: {phase}", done, total)


def least_bytes(checkpoint: Checkpoint, precisions: Mapping[str, Precision]) -> int:
    """The least that a bundle's weights take: its text encoders may go without their last layers."""
    total = 0.0
    for folder in checkpoint.folders:
        shapes = tensor_shapes(checkpoint.network_class(folder), checkpoint.config(folder))
        precision = precisions["vae_decoder" if folder == "vae" else folder]
        share = 0.5 if folder.startswith("text_encoder") else 1.0
        total += share * sum(map(math.prod, shapes.values())) * (4 if precision == "fp32" else 2)
    return int(total)


def component_precisions(precision: Precision, vae_precision: VaePrecision) -> dict[str, Precision]:
    """Decide each component's precision: the bundle's, except that the VAE may have its own."""
    vae = precision if vae_precision == "auto" else vae_precision
    return {name: vae if name in VAE else precision for name in MODULES}


def _write_tokenizers(checkpoint: Checkpoint, folder: Path) -> None:
    for encoder in checkpoint.model.text_encoders:
        checkpoint.write_tokenizer(encoder.tokenizer, folder / encoder.tokenizer)


def _manifest(
    checkpoint: Checkpoint, folder: Path, precision: Precision, limits: Limits, records: Mapping[str, ComponentRecord]
) -> Manifest:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Manifest(
        latentrt=version("latentrt"),
        precision=precision,
        model=checkpoint.model,
        limits=limits,
        defaults=checkpoint.defaults,
        components=dict(records),
        provenance=Provenance(
            **checkpoint.provenance(),
            weights_sha256=checkpoint.weights_sha256(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={name: version(name) for name in TOOLS} | {"onnxruntime": onnxruntime.__version__},
        ),
        files={path.relative_to(folder).as_posix(): describe_file(path) for path in files},
    )
