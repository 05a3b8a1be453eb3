"""`latentrt generate`: one request, PNG files out."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from latentrt.cli.home import bundle_path
from latentrt.cli.options import SAMPLER_NAMES, BackendName, BundleArgument, VerboseOption
from latentrt.cli.output import configure_logging, finish, progress_bar
from latentrt.runtime.pipeline import Pipeline, Result

# typer reads these annotations at run time, which is why they are not written X | None.
OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
OptionalText = Optional[str]  # noqa: UP045


def generate(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Argument(help="What to draw.", metavar="PROMPT")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write; several get -1, -2, ...")] = Path(
        "out.png"
    ),
    negative: Annotated[OptionalText, typer.Option("--negative", help="What to keep away from.")] = None,
    prompt_2: Annotated[
        OptionalText, typer.Option("--prompt-2", help="For the second text encoder; default: the same prompt.")
    ] = None,
    negative_2: Annotated[
        OptionalText, typer.Option("--negative-2", help="For the second text encoder; default: as --negative.")
    ] = None,
    clip_skip: Annotated[
        int, typer.Option("--clip-skip", help="Layers of the text encoders that the prompt skips.")
    ] = 0,
    steps: Annotated[OptionalInt, typer.Option("--steps", help="Evaluations of the U-Net.")] = None,
    guidance: Annotated[OptionalFloat, typer.Option("--guidance", help="Guidance scale; 1 turns guidance off.")] = None,
    seed: Annotated[OptionalInt, typer.Option("--seed", help="Same seed, same picture; default: a fresh one.")] = None,
    width: Annotated[OptionalInt, typer.Option("--width", help="Pixels, a multiple of 8.")] = None,
    height: Annotated[OptionalInt, typer.Option("--height", help="Pixels, a multiple of 8.")] = None,
    images: Annotated[int, typer.Option("--images", help="Pictures to draw.")] = 1,
    aesthetic_score: Annotated[
        OptionalFloat, typer.Option("--aesthetic-score", help="SDXL's refiner: beauty asked for; default 6.")
    ] = None,
    negative_aesthetic_score: Annotated[
        OptionalFloat, typer.Option("--negative-aesthetic-score", help="Beauty to keep away from; default 2.5.")
    ] = None,
    sampler: Annotated[OptionalText, typer.Option("--sampler", help=f"One of {SAMPLER_NAMES}.")] = None,
    backend: Annotated[Optional[BackendName], typer.Option("--backend", help="Which engines to use.")] = None,  # noqa: UP045
    device: Annotated[OptionalText, typer.Option("--device", help="cpu or cuda:<index>.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Draw one prompt."""
    configure_logging(verbose)
    with Pipeline.load(bundle_path(bundle), backend, device) as pipeline, progress_bar("steps") as update:
        result = pipeline.generate(
            prompt,
            negative=negative,
            prompt_2=prompt_2,
            negative_2=negative_2,
            clip_skip=clip_skip,
            steps=steps,
            guidance=guidance,
            seed=seed,
            width=width,
            height=height,
            images=images,
            aesthetic_score=aesthetic_score,
            negative_aesthetic_score=negative_aesthetic_score,
            sampler=sampler,
            progress=lambda done, total: update("drawing", done, total),
        )
    files = save_images(result, output)
    seconds = {stage: round(value, 4) for stage, value in result.timings.items()}
    finish(files=files, seed=result.request.seeds[0], seconds=seconds)


def save_images(result: Result, output: Path) -> list[Path]:
    """Write `output`, or for several pictures `output` with -1, -2, ... before the suffix."""
    output.parent.mkdir(parents=True, exist_ok=True)
    several = len(result.images) > 1
    files = [
        output.with_stem(f"{output.stem}-{number}") if several else output
        for number in range(1, len(result.images) + 1)
    ]
    for file, image in zip(files, result.images, strict=True):
        image.save(file, format="PNG")
    return files
