"""`latentrt export`, and the export step of commands that accept a checkpoint."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from latentrt.cli.options import (
    HeightOption,
    ImagesOption,
    ParityDepth,
    ParityOption,
    PrecisionName,
    PrecisionOption,
    SamplesOption,
    SeedOption,
    TokensOption,
    VaeImagesOption,
    VaePrecisionName,
    VaePrecisionOption,
    VariantOption,
    VerboseOption,
    WidthOption,
)
from latentrt.cli.output import configure_logging, finish, progress_bar
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import BackendError
from latentrt.runtime.model import Limits

EXPORT_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "onnxscript", "onnxruntime")


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder in diffusers format.", metavar="CHECKPOINT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.", metavar="BUNDLE")],
    precision: PrecisionOption = PrecisionName.fp16,
    width: WidthOption = None,
    height: HeightOption = None,
    images: ImagesOption = None,
    tokens: TokensOption = None,
    vae_images: VaeImagesOption = None,
    vae_precision: VaePrecisionOption = VaePrecisionName.auto,
    samples: SamplesOption = None,
    parity: ParityOption = ParityDepth.full,
    random_weights: SeedOption = None,
    variant: VariantOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Trace a checkpoint's networks to ONNX, compare them with torch, and write a bundle."""
    configure_logging(verbose)
    ranges = {"width": width, "height": height, "images": images, "tokens": tokens, "vae_images": vae_images}
    bundle = export_checkpoint(
        checkpoint, output, precision, ranges, parity, random_weights, variant, vae_precision, samples
    )
    parts = bundle.manifest.components
    finish(
        bundle=bundle.path,
        precision=precision,
        bytes=sum(file.size for file in bundle.manifest.files.values()),
        parity={name: max((found.relative for found in part.parity), default=None) for name, part in parts.items()},
    )


def check_export_installed() -> None:
    """Raise `BackendError` where the libraries of the export extra are not there."""
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


def export_checkpoint(
    source: Path,
    output: Path,
    precision: str,
    ranges: dict[str, str | None],
    depth: str = "full",
    random_weights: int | None = None,
    variant: str | None = None,
    vae_precision: str = "auto",
    samples: Path | None = None,
) -> Bundle:
    """Export with a progress bar; `ranges` of None are the family's own."""
    check_export_installed()
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.exporter import export_bundle

    checkpoint = Checkpoint.open(source, random_weights, variant)
    limits = Limits.around(checkpoint.model.native_size).replace(**ranges)
    with progress_bar("components") as update:
        return export_bundle(
            checkpoint,
            output,
            precision=precision,  # type: ignore[arg-type]
            limits=limits,
            vae_precision=vae_precision,  # type: ignore[arg-type]
            samples=samples,
            depth=depth,  # type: ignore[arg-type]
            progress=lambda part, done, total: update(f"exporting {part}", done, total),
        )
