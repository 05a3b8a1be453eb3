"""`latentrt verify`: compare a bundle with the checkpoint it was made from."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from latentrt.cli.ending import FAILED
from latentrt.cli.export import open_checkpoint
from latentrt.cli.groups import option_groups
from latentrt.cli.options import BackendOption, BuildOption, BundleArgument, CheckpointOptions, VerboseOption
from latentrt.cli.output import configure_logging, console, finish
from latentrt.runtime.backends import open_backend
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.checks.bundle_verification import Figure
    from latentrt.export.checks.layers import Departure


@option_groups
def verify(
    bundle: BundleArgument,
    reference: Annotated[
        Path, typer.Option("--reference", help="The checkpoint; give the options it was exported with, too.")
    ],
    checkpoint: CheckpointOptions,
    backend: BackendOption = None,
    build: BuildOption = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="For each component out of tolerance, name the first tensor that differs.")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare a bundle, or a build in it, with its checkpoint run by torch in fp32; exit 1 if out of tolerance."""
    configure_logging(verbose)
    opened = Bundle.open(bundle)
    compared = open_checkpoint(reference, checkpoint)
    from latentrt.export.checks.bundle_verification import verify_facts

    with Pipeline.load(opened, backend, build=build) as pipeline:
        differences = verify_facts(pipeline, compared)
        figures = [] if differences else list(_figures(pipeline, compared))
    for difference in differences:
        console().print(f"[bold red]differs[/] {difference}", markup=True)
    console().print(_table(figures))
    departures = list(_departures(pipeline.bundle, compared, figures)) if layers else []
    for departure in departures:
        console().print(
            f"{departure.component}: {departure.compared} tensors agree, then {departure.tensor} "
            f"({departure.operator}) differs by {departure.relative:.1e}"
        )
    passed = not differences and all(figure.passed for figure in figures)
    finish(
        passed=passed,
        differences=differences,
        figures=[asdict(figure) for figure in figures],
        departures=[asdict(departure) for departure in departures],
    )
    if not passed:
        raise typer.Exit(FAILED)


def _figures(pipeline: Pipeline, checkpoint: "Checkpoint") -> Iterator["Figure"]:
    from latentrt.export.checks.bundle_verification import verify_components, verify_picture

    backend = open_backend(pipeline.selection.backend, pipeline.selection.device)
    yield from verify_components(pipeline, checkpoint, backend)
    backend.close()
    if checkpoint.model.is_inpainting:
        console().print("no picture is compared: the model is for inpainting, and text to image is what verify draws")
        return
    yield verify_picture(pipeline, checkpoint)


def _departures(bundle: Bundle, checkpoint: "Checkpoint", figures: list["Figure"]) -> Iterator["Departure"]:
    """For every component out of tolerance, the first tensor in its ONNX file that differs."""
    from latentrt.export.checks.layers import first_departure
    from latentrt.export.modules import MODULES
    from latentrt.export.sample_inputs import sample_inputs
    from latentrt.export.tolerance import TOLERANCE

    for name in dict.fromkeys(figure.component for figure in figures if not figure.passed):
        if name not in MODULES:
            continue
        spec = bundle.manifest.specs()[name]
        vocabulary = checkpoint.vocabulary(MODULES[name][0])
        inputs = {port: values.numpy() for port, values in sample_inputs(spec, spec.sizes("min"), vocabulary).items()}
        part = bundle.manifest.components[name]
        scales = part.numerics.scales if part.numerics else {}
        departure = first_departure(bundle.onnx(name), spec, checkpoint, inputs, TOLERANCE[part.precision], scales)
        if departure is not None:
            yield departure


def _table(figures: list["Figure"]) -> Table:
    table = Table("component", "case", "output", "largest", "relative", "cosine", "PSNR", "allowed", "")
    for figure in figures:
        table.add_row(
            figure.component,
            figure.case,
            figure.output,
            f"{figure.max_abs:.1e}",
            f"{figure.relative:.1e}",
            f"{figure.cosine:.7f}",
            "" if figure.psnr is None else f"{figure.psnr:.1f} dB",
            figure.allowed,
            "[green]ok[/]" if figure.passed else "[bold red]out of tolerance[/]",
        )
    return table
