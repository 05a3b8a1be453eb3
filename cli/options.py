"""Options that several commands share; groups of them are dataclasses (`latentrt.cli.groups`)."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from latentrt.runtime.backends import BACKENDS

# typer reads annotations at run time, which is why these are not written X | None.
OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
OptionalText = Optional[str]  # noqa: UP045
OptionalPath = Optional[Path]  # noqa: UP045

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


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """How a checkpoint is read."""

    random_weights: Annotated[
        OptionalInt,
        typer.Option("--random-weights", metavar="SEED", help="Make weights up; the checkpoint may hold only configs."),
    ] = None
    variant: Annotated[
        OptionalText, typer.Option("--variant", help="Which weight files to read, as in model.VARIANT.safetensors.")
    ] = None
    config: Annotated[
        OptionalPath,
        typer.Option(
            "--config", help="For a single file: a folder with its configs, in diffusers format.", metavar="FOLDER"
        ),
    ] = None
    tokenizer: Annotated[
        OptionalPath,
        typer.Option("--tokenizer", help="For a single file: a folder with CLIP's vocabulary.", metavar="FOLDER"),
    ] = None
    prediction_type: Annotated[
        Optional[PredictionName],  # noqa: UP045
        typer.Option("--prediction-type", help="For a single file that does not say what its U-Net predicts."),
    ] = None
    vae: Annotated[
        OptionalPath,
        typer.Option("--vae", help="Another VAE: a folder or a .safetensors file, TAESD too.", metavar="PATH"),
    ] = None
    lora: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--lora", help="Add a LoRA to the weights, so strongly (1); repeatable.", metavar="FILE[:WEIGHT]"),
    ] = None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How the networks are exported."""

    precision: Annotated[PrecisionName, typer.Option("--precision", help="Arithmetic of the exported networks.")] = (
        PrecisionName.fp16
    )
    vae_precision: Annotated[
        VaePrecisionName,
        typer.Option("--vae-precision", help="The VAE's; auto: as --precision, and fp32 where fp16 does not hold it."),
    ] = VaePrecisionName.auto
    samples: Annotated[
        OptionalPath,
        typer.Option("--samples", help="Folder of images over which an fp16 VAE is measured, too.", metavar="FOLDER"),
    ] = None
    parity: Annotated[
        ParityDepth,
        typer.Option(
            "--parity", help="Comparison with torch: at min, opt, max and special sizes; at small sizes; none."
        ),
    ] = ParityDepth.full


def _range(flag: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar="MIN:OPT:MAX", help=f"{what} that the engines serve.")
    return option


@dataclass(frozen=True, slots=True)
class RangeOptions:
    """The requests that are to be served, each `min:opt:max`; None keeps a range."""

    width: Annotated[OptionalText, _range("--width", "Image widths in pixels")] = None
    height: Annotated[OptionalText, _range("--height", "Image heights in pixels")] = None
    images: Annotated[OptionalText, _range("--images", "Images per request")] = None
    tokens: Annotated[OptionalText, _range("--tokens", "Prompt lengths in tokens (77 per chunk)")] = None
    vae_images: Annotated[OptionalText, _range("--vae-images", "Images the VAE takes at once")] = None

    @property
    def by_name(self) -> dict[str, str | None]:
        """The ranges as `Limits.replace` takes them."""
        return asdict(self)


BundleArgument = Annotated[Path, typer.Argument(help="Folder of the bundle, or `demo`.", metavar="BUNDLE")]
OptionalBackend = Optional[BackendName]  # noqa: UP045
BackendOption = Annotated[OptionalBackend, typer.Option("--backend", help="Which engines to use.")]
BuildOption = Annotated[
    OptionalText, typer.Option("--build", help="Which build, by its folder's name under builds/.", metavar="NAME")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what goes on inside.")]
