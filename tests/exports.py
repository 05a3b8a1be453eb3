"""Bundles that really were exported, which takes seconds; where processes share a run, one of them makes each."""

from collections.abc import Callable, Iterable
from pathlib import Path

from checkpoints import write_checkpoint
from filelock import FileLock, Timeout

from latentrt.demo import CHECKPOINT
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.choices import ParityDepth
from latentrt.export.component import ComponentExporter
from latentrt.export.exporter import component_precisions, export_bundle
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import MANIFEST, describe_file, write_record
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.manifest import Defaults, Manifest, Provenance
from latentrt.runtime.bundle.specs import Precision


def made_once(folder: Path, make: Callable[[Path], object], wait: bool = True) -> Path:
    """Give the folder, made by the first process that asks for it; the others wait until it is whole.

    `make` may leave half a folder when it fails: the next process that asks begins anew, in another one. Without
    `wait`, a folder that another process is making is left to it, and is not whole yet.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return folder
    try:
        if not folder.exists():
            attempts = len(list(folder.parent.glob(f"{folder.name}.attempt-*")))
            attempt = folder.with_name(f"{folder.name}.attempt-{attempts}")
            make(attempt)
            attempt.rename(folder)
    finally:
        lock.release()
    return folder


def shared_checkpoint(shared: Path, family: str) -> Path:
    """The tiny checkpoint of a family, or with `demo` the one that ships."""
    if family == "demo":
        return CHECKPOINT
    return made_once(shared / family / "checkpoint", lambda target: write_checkpoint(target, family))


def shared_bundle(shared: Path, family: str, precision: Precision = "fp32", wait: bool = True) -> Path:
    """The bundle of such a checkpoint; SDXL's is compared with torch at every case."""
    checkpoint = shared_checkpoint(shared, family)
    depth: ParityDepth = "full" if family == "sdxl" else "quick"
    return made_once(
        shared / family / precision,
        lambda target: export_bundle(Checkpoint.open(checkpoint), target, precision=precision, depth=depth),
        wait,
    )


def export_in_turns(shared: Path, wanted: Iterable[tuple[str, Precision]]) -> None:
    """Make these shared bundles, leaving out those that other processes make at the same time."""
    for family, precision in wanted:
        shared_bundle(shared, family, precision, wait=False)


def export_components(
    target: Path, checkpoint: Checkpoint, names: tuple[str, ...], precision: Precision = "fp16"
) -> Bundle:
    """Export these components alone into the bundle `target`, compared with torch at small sizes."""
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
