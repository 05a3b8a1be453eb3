"""`latentrt export`, and the export step of other commands that accept a checkpoint."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrt.cli.groups import option_groups
from latentrt.cli.options import CheckpointOptions, ExportOptions, RangeOptions, VerboseOption
from latentrt.cli.output import configure_logging, finish, progress_bar
from latentrt.runtime.backends.registry import ONNX_BACKEND, load_module
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import bundle_target
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.errors import BackendError

if TYPE_CHECKING:
    from latentrt.export.checkpoint import Checkpoint

EXPORT_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "onnxscript")


@option_groups
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder in diffusers format, or a single .safetensors file.", metavar="CHECKPOINT")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle to write.", metavar="BUNDLE")],
    networks: ExportOptions,
    ranges: RangeOptions,
    source: CheckpointOptions,
    verbose: VerboseOption = False,
) -> None:
    """Trace a checkpoint's networks to ONNX, compare them with torch, and write a bundle."""
    configure_logging(verbose)
    bundle_target(output)
    bundle = export_checkpoint(open_checkpoint(checkpoint, source), output, networks, ranges)
    parts = bundle.manifest.components
    finish(
        bundle=bundle.path,
        precision=networks.precision,
        bytes=sum(file.size for file in bundle.manifest.files.values()),
        parity={name: max((found.relative for found in part.parity), default=None) for name, part in parts.items()},
    )


def check_export_installed() -> None:
    """Raise `BackendError` if the libraries of the export extra are not installed."""
    try:
        for name in EXPORT_LIBRARIES:
            if find_spec(name) is None:
                raise ImportError(f"No module named {name!r}")
        import_module("latentrt.export.checkpoint")
    except ImportError as error:
        raise BackendError(
            f"exporting needs torch and diffusers, which are not installed ({error}). "
            "Install them with: pip install 'latentrt[export]'"
        ) from error
    try:
        load_module(ONNX_BACKEND)
    except BackendError as error:
        raise BackendError(
            "exporting compares with torch in ONNX Runtime, which is not installed. Install it with: "
            "pip install 'latentrt[cpu]', or 'latentrt[cuda]' where pictures are drawn on an NVIDIA GPU"
        ) from error


def open_checkpoint(path: Path, options: CheckpointOptions) -> "Checkpoint":
    """Open the checkpoint that the command line names."""
    check_export_installed()
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.runtime.lora.files import LoraFile

    loras = [LoraFile.parse(text) for text in options.lora or ()]
    return Checkpoint.open(
        path,
        options.random_weights,
        options.variant,
        config=options.config,
        tokenizer=options.tokenizer,
        prediction_type=options.prediction_type,
        unet=options.unet,
        vae=options.vae,
        loras=loras,
    )


def export_checkpoint(checkpoint: "Checkpoint", output: Path, networks: ExportOptions, ranges: RangeOptions) -> Bundle:
    """Export behind a progress bar; a range of None is the model family's own."""
    from latentrt.export.exporter import export_bundle

    limits = Limits.around(checkpoint.model.native_size).replace(**ranges.by_name)
    with progress_bar("components") as update:
        return export_bundle(
            checkpoint,
            output,
            precision=networks.precision,
            limits=limits,
            vae_precision=networks.vae_precision,
            samples=networks.samples,
            depth=networks.parity,
            progress=lambda part, done, total: update(f"exporting {part}", done, total),
        )
