"""`latentrt generate`: draw one request, and write picture files."""

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from latentrt.cli.destination import STDOUT, Destination, field_values
from latentrt.cli.groups import option_groups
from latentrt.cli.job import Job
from latentrt.cli.loras import GivenLoras
from latentrt.cli.options import (
    BackendOption,
    BuildOption,
    BundleArgument,
    OptionalInt,
    OptionalPath,
    OptionalText,
    VerboseOption,
)
from latentrt.cli.output import configure_logging, console, finish, progress_bar
from latentrt.cli.repeat import open_picture, repeated
from latentrt.cli.request_options import GivenSettings, SecondPassOptions, given_options
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.metadata import PICTURES
from latentrt.runtime.request.kinds import one_or_more


@option_groups
def generate(
    bundle: BundleArgument,
    prompt: Annotated[
        OptionalText, typer.Argument(help="What to draw; on a terminal it is asked for.", metavar="PROMPT")
    ] = None,
    output: Annotated[
        OptionalText,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="PNG, JPEG, WebP or AVIF to write, by its suffix; several pictures get -1, -2, ... Or a folder/, a "
            "name with {n}, {seed}, {sampler}, {steps}, {width} or {height}, or - for stdout. Default: out.png, or "
            "out-{n}.png.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace files that exist.")] = False,
    quality: Annotated[
        OptionalInt,
        typer.Option("--quality", min=1, max=100, help="Of a JPEG, WebP or AVIF; 95, or 90 for AVIF, if not given."),
    ] = None,
    prompts_file: Annotated[
        OptionalPath,
        typer.Option(
            "--prompts-file", help="Prompts, one per line, drawn as one batch; - reads them from stdin.", metavar="FILE"
        ),
    ] = None,
    from_png: Annotated[
        OptionalPath,
        typer.Option(
            "--from-png", help="Repeat the request in this picture; other options override it.", metavar="FILE"
        ),
    ] = None,
    *,
    settings: GivenSettings,
    second_pass: SecondPassOptions,
    lora: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it
        typer.Option(
            "--lora",
            metavar="FILE:STRENGTH",
            help="LoRA to draw with; needs a build with room for it (build-engine --lora-rank). Repeatable.",
        ),
    ] = None,
    backend: BackendOption = None,
    device: Annotated[OptionalText, typer.Option("--device", help="cpu or cuda:<index>.")] = None,
    build: BuildOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Draw a prompt, several at once, or the request in a picture of latentrt or the AUTOMATIC1111 web interface."""
    configure_logging(verbose)
    destination = Destination(output, force=force, quality=quality)
    job = Job(_prompts(prompt, prompts_file), given_options(settings, second_pass))
    asks = from_png is None and not job.prompts and _on_terminal()
    if from_png is None and not asks:
        job.check()
    inputs = [Path(file) for name in PICTURES.keys() & job.options.keys() for file in one_or_more(job.options[name])]
    inputs += [] if from_png is None else [from_png]
    destination.check(job.count, inputs)
    loras = GivenLoras.parse(lora or ())
    opened = Bundle.open(bundle)
    options = dict(job.options)
    for name in PICTURES.keys() & options.keys():
        options[name] = _open_pictures(options[name])
    job = Job(_ask() if asks else job.prompts, options)
    if from_png is not None:
        job = job.over(repeated(from_png, opened, options.keys()))
    if given := loras.setting(job.options.get("loras")):
        job = Job(job.prompts, {**job.options, "loras": given})
    job.check()
    destination.check(job.count, inputs)

    def load(chosen: Bundle) -> Pipeline:
        return (
            loras.load(chosen, backend, device, build) if chosen is opened else Pipeline.load(chosen, backend, device)
        )

    with progress_bar("steps") as update:
        result = job.draw(opened, load, lambda done, total: update("drawing", done, total))
    seconds = {stage: round(value, 4) for stage, value in result.timings.items()}
    seeds = result.request.seeds
    files = destination.write(result.images, field_values(result.request), result.metadata, inputs)
    finish(
        sys.stderr if destination.is_stdout else sys.stdout,
        files=files,
        seed=seeds[0] if len(seeds) == 1 else seeds,
        seconds=seconds,
    )


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask() -> tuple[str, ...]:
    """The prompt that the user types; none at the end of the input."""
    try:
        return (console().input("What to draw: ", markup=False),)
    except EOFError:
        return ()


def _prompts(prompt: str | None, file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line; empty if there are none."""
    if file is None:
        return () if prompt is None else (prompt,)
    if prompt is not None:
        raise typer.BadParameter(f"PROMPT and --prompts-file {file}: both given; the prompts come from one of them")
    try:
        data = sys.stdin.buffer.read() if str(file) == STDOUT else file.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(f"--prompts-file {file}: not readable as text ({error})") from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise RequestError(f"--prompts-file {file}: no line holds a prompt")
    return prompts


def _open_pictures(files: str | list[str]) -> Any:
    pictures = [open_picture(Path(file)) for file in ([files] if isinstance(files, str) else files)]
    return pictures[0] if len(pictures) == 1 else pictures
