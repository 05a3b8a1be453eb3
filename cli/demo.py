"""`latentrt demo`: export, build and draw with the checkpoint that ships."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from latentrt.cli.build import build_with_progress
from latentrt.cli.destination import STDOUT, Destination
from latentrt.cli.export import export_checkpoint, open_checkpoint
from latentrt.cli.options import (
    CheckpointOptions,
    ExportOptions,
    OptionalText,
    RangeOptions,
    VerboseOption,
)
from latentrt.cli.output import configure_logging, console, finish, progress_bar
from latentrt.demo import CHECKPOINT, PROMPTS
from latentrt.demo.sheet import contact_sheet
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.bundle import demo_folder, is_bundle
from latentrt.runtime.pipeline import Pipeline

RANGES = RangeOptions(width="48:96:160", height="48:96:160")
"""Sizes that the checkpoint was trained on, and smaller ones."""

NETWORKS = ExportOptions(precision="fp32", parity="quick")
"""fp32, since CPUs have no fast fp16 arithmetic."""


def demo(
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Draw this instead of a few prompts of our own.", metavar="PROMPT"),
    ] = None,
    output: Annotated[
        OptionalText,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Picture to write. Default: latentrt-demo.png, or latentrt-demo-{n}.png.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a file that exists.")] = False,
    steps: Annotated[int, typer.Option("--steps", help="Evaluations of the U-Net.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise; the same seed gives the same pictures.")] = 7,
    verbose: VerboseOption = False,
) -> None:
    """Export the checkpoint that ships, build its engines for this CPU, and draw a contact sheet."""
    configure_logging(verbose)
    destination = Destination(output, "latentrt-demo.png", force)
    destination.check()
    seconds: dict[str, float] = {}
    with _timed(seconds, "export"):
        bundle = demo_bundle()
    with _timed(seconds, "build"):
        build_with_progress(bundle, "onnxruntime")
    with _timed(seconds, "load"):
        pipeline = Pipeline.load(bundle, "onnxruntime", "cpu")
    prompts = [prompt] if prompt else list(PROMPTS)
    with pipeline, progress_bar("pictures") as update, _timed(seconds, "draw"):
        pictures = []
        for done, text in enumerate(prompts):
            update(text, done, len(prompts))
            pictures += pipeline.generate(text, steps=steps, seed=seed).images
    sheet = contact_sheet(pictures, prompts)
    sizes = {"width": sheet.width, "height": sheet.height}
    values = {"seed": seed, "steps": steps, "sampler": bundle.manifest.defaults.sampler, **sizes}
    (file,) = destination.write([sheet], [values]) or [Path(STDOUT)]
    _report(seconds, file)
    finish(
        sys.stderr if destination.is_stdout else sys.stdout,
        image=file.absolute(),
        bundle=bundle.path,
        seconds={name: round(value, 2) for name, value in seconds.items()},
    )


def demo_bundle() -> Bundle:
    """The demo's bundle in latentrt's cache, exported if it is missing or was made from something else."""
    checkpoint = open_checkpoint(CHECKPOINT, CheckpointOptions())
    path = demo_folder()
    if is_bundle(path):
        kept = Bundle.open(path)
        wanted = checkpoint.weights_sha256()
        if kept.manifest.provenance.weights_sha256 == wanted and kept.manifest.latentrt == version("latentrt"):
            return kept
    return export_checkpoint(checkpoint, path, NETWORKS, RANGES)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _report(seconds: dict[str, float], output: Path) -> None:
    table = Table("stage", "seconds", title="latentrt demo", title_justify="left")
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.1f}")
    screen = console()
    screen.print(table)
    screen.print(f"The picture is at {output.absolute()}", markup=False)
