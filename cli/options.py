"""Options that several commands share, some as groups (`latentrt.cli.groups`)."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from latentrt.export.choices import ParityDepth, VaePrecision
from latentrt.runtime.backends import BACKENDS
from latentrt.runtime.bundle.build_options import BuildOptions, Tiling
from latentrt.runtime.bundle.limits import Guidance, Limits
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.samplers.config import PredictionType

# typer reads annotations at run time, which is why these are not written X | None.
OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
OptionalText = Optional[str]  # noqa: UP045
OptionalPath = Optional[Path]  # noqa: UP045

# mypy cannot see members that come from a table.
BackendName = StrEnum("BackendName", {name: name for name in sorted(BACKENDS)})  # type: ignore[misc]


def flag(name: str) -> str:
    """An option as the command line writes it."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """Options for reading a checkpoint."""

    random_weights: Annotated[
        OptionalInt,
        typer.Option(
            "--random-weights", metavar="SEED", help="Use random weights; the checkpoint may hold configs alone."
        ),
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
        Optional[PredictionType],  # noqa: UP045
        typer.Option("--prediction-type", help="For a single file or a --unet that does not say what it predicts."),
    ] = None
    unet: Annotated[
        OptionalPath,
        typer.Option(
            "--unet",
            help="Another U-Net: a folder or a .safetensors file, as Lightning, DMD2 and Hyper are published.",
            metavar="PATH",
        ),
    ] = None
    vae: Annotated[
        OptionalPath,
        typer.Option("--vae", help="Another VAE: a folder or a .safetensors file; may be a TAESD.", metavar="PATH"),
    ] = None
    lora: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--lora", help="LoRA to add to the weights, and its weight (1); repeatable.", metavar="FILE[:WEIGHT]"
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options for exporting the networks."""

    precision: Annotated[Precision, typer.Option("--precision", help="Arithmetic of the exported networks.")] = "fp16"
    vae_precision: Annotated[
        VaePrecision,
        typer.Option(
            "--vae-precision", help="Arithmetic of the VAE. auto: as --precision, but fp32 if fp16 cannot hold it."
        ),
    ] = "auto"
    samples: Annotated[
        OptionalPath,
        typer.Option("--samples", help="Folder of further images on which to measure an fp16 VAE.", metavar="FOLDER"),
    ] = None
    parity: Annotated[
        ParityDepth,
        typer.Option(
            "--parity", help="Compare with torch at min, opt, max and special sizes; at small sizes; or not at all."
        ),
    ] = "full"


def _range(flag: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar="MIN:OPT:MAX", help=f"{what} that the engines serve.")
    return option


@dataclass(frozen=True, slots=True)
class RangeOptions:
    """Ranges of requests to serve, each `min:opt:max`; None leaves a range as it is."""

    width: Annotated[OptionalText, _range("--width", "Image widths in pixels")] = None
    height: Annotated[OptionalText, _range("--height", "Image heights in pixels")] = None
    images: Annotated[OptionalText, _range("--images", "Images per request")] = None
    tokens: Annotated[OptionalText, _range("--tokens", "Prompt lengths in tokens (77 per chunk)")] = None
    vae_images: Annotated[OptionalText, _range("--vae-images", "Images the VAE takes at once")] = None

    @property
    def by_name(self) -> dict[str, str | None]:
        """The ranges as `Limits.replace` takes them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """What engines serve besides ranges; None leaves it as it is."""

    profile: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--profile",
            metavar="WIDTHxHEIGHT",
            help="Optimise for this size, in place of ranges of width and height; repeatable.",
        ),
    ] = None
    guidance: Annotated[
        Optional[Guidance],  # noqa: UP045
        typer.Option("--guidance", help="Which requests to serve: with guidance, without it, or any."),
    ] = None

    def change(self, limits: Limits, ranges: RangeOptions) -> Limits:
        """These limits, with what the options ask for.

        Raises:
            RequestError: a range or a profile that makes no sense, or profiles beside a width or height.
        """
        return limits.replace(profiles=self.profile or None, guidance=self.guidance, **ranges.by_name)


@dataclass(frozen=True, slots=True)
class BuilderOptions:
    """How hard TensorRT searches for fast kernels; None stands for the default of each engine (docs/engine.md)."""

    optimization_level: Annotated[
        OptionalInt, typer.Option("--optimization-level", help="TensorRT: 0 to 5; higher levels search longer.")
    ] = None
    timing_iterations: Annotated[
        OptionalInt, typer.Option("--timing-iterations", help="TensorRT: how often each kernel is timed.")
    ] = None
    tiling: Annotated[
        Optional[Tiling],  # noqa: UP045
        typer.Option("--tiling", help="TensorRT: search for kernels that share the L2 cache."),
    ] = None
    aux_streams: Annotated[
        OptionalInt, typer.Option("--aux-streams", help="TensorRT: further streams an engine may use.")
    ] = None

    @property
    def chosen(self) -> BuildOptions:
        """The options as a build records them.

        Raises:
            RequestError: a number is out of its range.
        """
        return BuildOptions(**asdict(self))


BundleArgument = Annotated[Path, typer.Argument(help="Folder of the bundle, or `demo`.", metavar="BUNDLE")]
OptionalBackend = Optional[BackendName]  # noqa: UP045
BackendOption = Annotated[OptionalBackend, typer.Option("--backend", help="Library that runs the engines.")]
BuildOption = Annotated[
    OptionalText, typer.Option("--build", help="Name of a build's folder under builds/.", metavar="NAME")
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log details.")]
