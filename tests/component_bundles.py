"""Bundles with some components of a checkpoint only, compared with torch at small sizes."""

from pathlib import Path

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.component import ComponentExporter
from latentrt.export.exporter import component_precisions
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.files import MANIFEST, describe_file, write_record
from latentrt.runtime.bundle.folder import Bundle
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.manifest import Defaults, Manifest, Provenance
from latentrt.runtime.bundle.specs import Precision


def component_bundle(
    target: Path, checkpoint: Checkpoint, names: tuple[str, ...], precision: Precision = "fp16"
) -> Bundle:
    """Export these components into the bundle `target`."""
    specs = component_specs(checkpoint.model, Limits.around(128), component_precisions(precision, "auto"), names)
    exporter = ComponentExporter(checkpoint, target, precision, "quick")
    records = {name: exporter.export(specs[name], precision) for name in names}
    manifest = Manifest(
        latentrt="0",
        precision=precision,
        model=checkpoint.model,
        limits=Limits.around(128),
        defaults=Defaults(sampler="euler", steps=4, guidance=1.0),
        components=records,
        provenance=Provenance(checkpoint="none", weights="random", weights_sha256="0" * 64, created="", versions={}),
        files={file: describe_file(target / file) for record in records.values() for file in record.files},
    )
    write_record(target / MANIFEST, manifest)
    return Bundle.open(target)
