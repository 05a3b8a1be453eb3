"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from latentrt.runtime.backends import BACKENDS
from latentrt.runtime.samplers import SAMPLERS

# mypy cannot see members that come from a table.
BackendName = StrEnum("BackendName", {name: name for name in sorted(BACKENDS)})  # type: ignore[misc]


class PrecisionName(StrEnum):
    """Precisions a bundle can be exported in."""

    fp16 = "fp16"
    fp32 = "fp32"
    bf16 = "bf16"


class VaePrecisionName(StrEnum):
    """Precisions of the VAE, if not the other networks'."""

    auto = "auto"
    fp16 = "fp16"
    fp32 = "fp32"
    bf16 = "bf16"


class ParityDepth(StrEnum):
    """How thoroughly an export is compared with torch."""

    full = "full"
    quick = "quick"
    off = "off"


class PredictionName(StrEnum):
    """What a U-Net can predict."""

    epsilon = "epsilon"
    v_prediction = "v_prediction"
    sample = "sample"


PrecisionOption = Annotated[PrecisionName, typer.Option("--precision", help="Arithmetic of the exported networks.")]
VaePrecisionOption = Annotated[
    VaePrecisionName,
    typer.Option("--vae-precision", help="The VAE's; auto: as --precision, and fp32 where fp16 does not hold it."),
]
SamplesOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--samples", help="Folder of images over which an fp16 VAE is measured, too.", metavar="FOLDER"),
]
ParityOption = Annotated[
    ParityDepth,
    typer.Option("--parity", help="Comparison with torch: at min, opt, max and special sizes; at small sizes; none."),
]
SeedOption = Annotated[
    Optional[int],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--random-weights", metavar="SEED", help="Make weights up; the checkpoint may hold only configs."),
]
VariantOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--variant", help="Which weight files to read, as in model.VARIANT.safetensors."),
]

ConfigOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--config", help="For a single file: a folder with its configs, in diffusers format.", metavar="FOLDER"
    ),
]
TokenizerOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--tokenizer", help="For a single file: a folder with CLIP's vocabulary.", metavar="FOLDER"),
]
PredictionOption = Annotated[
    Optional[PredictionName],  # noqa: UP045
    typer.Option("--prediction-type", help="For a single file that does not say what its U-Net predicts."),
]
VaeOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--vae", help="Another VAE: a folder or a .safetensors file, TAESD too.", metavar="PATH"),
]
LoraOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--lora", help="Add a LoRA to the weights, so strongly (1); repeatable.", metavar="FILE[:WEIGHT]"),
]


def _range(flag: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar="MIN:OPT:MAX", help=f"{what} that the engines serve.")
    return option


WidthOption = Annotated[Optional[str], _range("--width", "Image widths in pixels")]  # noqa: UP045
HeightOption = Annotated[Optional[str], _range("--height", "Image heights in pixels")]  # noqa: UP045
ImagesOption = Annotated[Optional[str], _range("--images", "Images per request")]  # noqa: UP045
TokensOption = Annotated[Optional[str], _range("--tokens", "Prompt lengths in tokens (77 per chunk)")]  # noqa: UP045
VaeImagesOption = Annotated[Optional[str], _range("--vae-images", "Images the VAE takes at once")]  # noqa: UP045

BundleArgument = Annotated[Path, typer.Argument(help="Folder of the bundle, or `demo`.", metavar="BUNDLE")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what goes on inside.")]

SAMPLER_NAMES = ", ".join(sorted(SAMPLERS))
