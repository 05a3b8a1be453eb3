"""`latentrt export`, and the export step of commands that accept a checkpoint."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentrt.cli.options import (
    ConfigOption,
    HeightOption,
    ImagesOption,
    LoraOption,
    ParityDepth,
    ParityOption,
    PrecisionName,
    PrecisionOption,
    PredictionOption,
    SamplesOption,
    SeedOption,
    TokenizerOption,
    TokensOption,
    VaeImagesOption,
    VaeOption,
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

if TYPE_CHECKING:
    from latentrt.export.checkpoint import Checkpoint

EXPORT_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "onnxscript", "onnxruntime")


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder in diffusers format, or one .safetensors file.", metavar="CHECKPOINT")
    ],
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
    config: ConfigOption = None,
    tokenizer: TokenizerOption = None,
    prediction_type: PredictionOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Trace a checkpoint's networks to ONNX, compare them with torch, and write a bundle."""
    configure_logging(verbose)
    ranges = {"width": width, "height": height, "images": images, "tokens": tokens, "vae_images": vae_images}
    opened = open_checkpoint(checkpoint, random_weights, variant, config, tokenizer, prediction_type, vae, lora)
    bundle = export_checkpoint(opened, output, precision, ranges, parity, vae_precision, samples)
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


def open_checkpoint(
    path: Path,
    random_weights: int | None = None,
    variant: str | None = None,
    config: Path | None = None,
    tokenizer: Path | None = None,
    prediction_type: str | None = None,
    vae: Path | None = None,
    lora: Sequence[str] | None = None,
) -> "Checkpoint":
    """A checkpoint as the command line names it."""
    check_export_installed()
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.sources.lora import LoraFile

    loras = [LoraFile.parse(text) for text in lora or ()]
    return Checkpoint.open(
        path,
        random_weights,
        variant,
        config=config,
        tokenizer=tokenizer,
        prediction_type=prediction_type,
        vae=vae,
        loras=loras,
    )


def export_checkpoint(
    checkpoint: "Checkpoint",
    output: Path,
    precision: str,
    ranges: dict[str, str | None],
    depth: str = "full",
    vae_precision: str = "auto",
    samples: Path | None = None,
) -> Bundle:
    """Export with a progress bar; `ranges` of None are the family's own."""
    from latentrt.export.exporter import export_bundle

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
