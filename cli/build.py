"""`build-engine`: build a bundle's engines for one backend, exporting a checkpoint first if one is given."""

from os.path import realpath
from pathlib import Path
from typing import Annotated, Optional

import typer

from latentrt.cli.export import export_checkpoint, open_checkpoint
from latentrt.cli.groups import option_groups
from latentrt.cli.options import (
    BackendName,
    BuilderOptions,
    CheckpointOptions,
    ExportOptions,
    RangeOptions,
    ServingOptions,
    VerboseOption,
)
from latentrt.cli.output import configure_logging, finish, progress_bar
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import bundle_target
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.build_record import BuildRecord
from latentrt.runtime.bundle.bundle import bundle_folder, is_bundle
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import MAX_RANK, LoraLayers, LoraSlots
from latentrt.runtime.errors import RequestError

NATIVE_SIZE = 1024
"""Stands for a checkpoint's, to find out before the export whether the sizes that are asked for make sense."""


@option_groups
def build_engine(
    source: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint to export first.", metavar="SOURCE")],
    backend: Annotated[BackendName, typer.Option("--backend", help="Library that will run the engines.")],
    output: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--output", "-o", help="Bundle to write if SOURCE is a checkpoint.", metavar="BUNDLE"),
    ] = None,
    *,
    ranges: RangeOptions,
    serving: ServingOptions,
    target: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--target", help="Machines to build for (docs/engine.md). Default: this one; for RTX sm80+."),
    ] = None,
    builder: BuilderOptions,
    force: Annotated[bool, typer.Option("--force", help="Rebuild engines that are up to date, too.")] = False,
    hoist: Annotated[
        bool, typer.Option("--hoist/--no-hoist", help="Split off the part of the U-Net that runs once per request.")
    ] = True,
    lora_rank: Annotated[
        int,
        typer.Option(
            "--lora-rank",
            help="Room for LoRAs that are switched per request: the sum of the ranks of all that are loaded at once.",
            metavar="RANK",
        ),
    ] = 0,
    lora_layers: Annotated[
        LoraLayers, typer.Option("--lora-layers", help="Layers that get this room: those of attention, or all.")
    ] = "attention",
    networks: ExportOptions,
    checkpoint: CheckpointOptions,
    verbose: VerboseOption = False,
) -> None:
    """Build the engines of a bundle for one backend, keeping those that are up to date."""
    configure_logging(verbose)
    lora, options = read_slots(lora_rank, lora_layers), builder.chosen
    if is_bundle(bundle_folder(source)):
        bundle = Bundle.open(source)
        if output is not None and realpath(output) != realpath(bundle.path):
            raise RequestError(f"--output {output}: {source} is a bundle already, and its engines go into it")
        if checkpoint.unet is not None or checkpoint.vae is not None or checkpoint.lora:
            raise RequestError(
                f"{source} is a bundle already: its U-Net, VAE and LoRAs were chosen by the export. Name the "
                "checkpoint instead, and the new bundle with -o BUNDLE"
            )
    elif output is None:
        raise RequestError(
            f"{source} is not a bundle; to export a checkpoint first, name the new bundle with -o BUNDLE"
        )
    else:
        from latentrt.engine.build import check_backend

        bundle_target(output)
        check_backend(backend, target, options)
        serving.change(Limits.around(NATIVE_SIZE), ranges)
        bundle = export_checkpoint(open_checkpoint(source, checkpoint), output, networks, ranges)
    limits = serving.change(bundle.manifest.limits, ranges)
    record = build_with_progress(bundle, backend, limits, target, options, force=force, hoist=hoist, lora=lora)
    finish(
        bundle=bundle.path,
        build=record.name,
        engines={
            name: {"bytes": sum(file.size for file in engine.files.values()), "seconds": round(engine.seconds, 2)}
            for name, engine in record.engines.items()
        },
    )


def build_with_progress(
    bundle: Bundle,
    backend: str,
    limits: Limits | None = None,
    target: str | None = None,
    options: BuildOptions | None = None,
    *,
    force: bool = False,
    hoist: bool = True,
    lora: LoraSlots | None = None,
) -> BuildRecord:
    """Build engines behind a progress bar that estimates the time left."""
    from latentrt.engine.base import BuildProgress
    from latentrt.engine.build import build_engines

    with progress_bar("engines") as update:

        def show(event: BuildProgress) -> None:
            left = f", about {event.seconds_left:.0f} s left" if event.seconds_left else ""
            update(f"{event.component}: {event.phase}{left}", event.number - 1, event.count)

        return build_engines(
            bundle, backend, limits, target=target, options=options, progress=show, force=force, hoist=hoist, lora=lora
        )


def read_slots(rank: int, layers: LoraLayers) -> LoraSlots | None:
    """The room for LoRAs that the options ask for; none for rank 0.

    Raises:
        RequestError: a rank that no build has room for.
    """
    if not 0 <= rank <= MAX_RANK:
        raise RequestError(f"--lora-rank {rank}: must be from 1 to {MAX_RANK}, or 0 for no room")
    return LoraSlots(rank=rank, layers=layers) if rank else None
