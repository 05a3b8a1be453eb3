"""`latentrt verify`: a bundle's numbers against the checkpoint it should come from."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from latentrt.cli.export import check_export_installed
from latentrt.cli.home import bundle_path
from latentrt.cli.options import BackendName, BundleArgument, SeedOption, VariantOption, VerboseOption
from latentrt.cli.output import FAILED, configure_logging, console, finish
from latentrt.runtime.backends import open_backend
from latentrt.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.verification import Figure


def verify(
    bundle: BundleArgument,
    reference: Annotated[Path, typer.Option("--reference", help="The checkpoint, in diffusers format.")],
    backend: Annotated[Optional[BackendName], typer.Option("--backend", help="Whose build to verify.")] = None,  # noqa: UP045
    random_weights: SeedOption = None,
    variant: VariantOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Compare a bundle, or a build in it, with its checkpoint run by torch in fp32; exit 1 outside tolerance."""
    configure_logging(verbose)
    check_export_installed()
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.verification import verify_facts

    checkpoint = Checkpoint.open(reference, random_weights, variant)
    with Pipeline.load(bundle_path(bundle), backend) as pipeline:
        differences = verify_facts(pipeline, checkpoint)
        figures = [] if differences else list(_figures(pipeline, checkpoint))
    for difference in differences:
        console().print(f"[bold red]differs[/] {difference}", markup=True)
    console().print(_table(figures))
    passed = not differences and all(figure.passed for figure in figures)
    finish(passed=passed, differences=differences, figures=[asdict(figure) for figure in figures])
    if not passed:
        raise typer.Exit(FAILED)


def _figures(pipeline: Pipeline, checkpoint: "Checkpoint") -> Iterator["Figure"]:
    from latentrt.export.verification import verify_components, verify_picture

    backend = open_backend(pipeline.selection.backend, pipeline.selection.device)
    yield from verify_components(pipeline, checkpoint, backend)
    backend.close()
    yield verify_picture(pipeline, checkpoint)


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
