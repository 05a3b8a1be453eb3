"""The tiny checkpoint of a family and its fp32 bundle, side by side in one folder."""

from pathlib import Path

from checkpoints import write_checkpoint

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.exporter import export_bundle


def make_family(folder: Path, name: str) -> tuple[Path, Path]:
    """Checkpoint and bundle; made where the folder does not hold them yet."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    if not bundle.exists():
        write_checkpoint(checkpoint, name)
        export_bundle(Checkpoint.open(checkpoint), bundle, precision="fp32", depth="quick")
    return checkpoint, bundle
