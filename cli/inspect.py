"""`latentrt inspect`: what is in a bundle."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from latentrt.cli.home import bundle_path
from latentrt.cli.options import BundleArgument
from latentrt.cli.output import console, finish
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.atomic_files import check_sizes, describe_file
from latentrt.runtime.bundle.build_record import BuildRecord
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.manifest import Manifest
from latentrt.runtime.errors import BundleError


def inspect(
    bundle: BundleArgument,
    check: Annotated[bool, typer.Option("--check", help="Also compare every file with its SHA-256.")] = False,
) -> None:
    """Show a bundle's components, dims, precisions, parity, builds, sizes and provenance."""
    opened = Bundle.open(bundle_path(bundle))
    if check:
        check_hashes(opened)
    builds = opened.builds()
    screen = console()
    for table in (facts_table(opened), component_table(opened.manifest), dims_table(opened.manifest)):
        screen.print(table)
    if any(part.numerics for part in opened.manifest.components.values()):
        screen.print(numerics_table(opened.manifest))
    for build in builds.values():
        screen.print(build_table(build))
    finish(manifest=opened.manifest.model_dump(), builds={name: build.model_dump() for name, build in builds.items()})


def check_hashes(bundle: Bundle) -> None:
    """Raise `BundleError` for the first file that is missing or whose content is not what the manifests say."""
    records = dict(bundle.manifest.files)
    for build in bundle.builds().values():
        for engine in build.engines.values():
            check_sizes(bundle.path, engine.files, f"Rebuild with: {bundle.build_command(build.backend, build.limits)}")
            records |= engine.files
    for name, record in records.items():
        if describe_file(bundle.path / name) != record:
            raise BundleError(
                f"{bundle.path / name}: its SHA-256 is not the manifest's; the file was changed or damaged"
            )


def facts_table(bundle: Bundle) -> Table:
    """One row per fact about the whole bundle."""
    manifest = bundle.manifest
    model, made = manifest.model, manifest.provenance
    table = Table(title=str(bundle.path), title_justify="left", show_header=False)
    for name, value in (
        ("family", f"{model.family}{' inpainting' * model.is_inpainting}, native size {model.native_size} pixels"),
        ("precision", manifest.precision),
        ("serves", ", ".join(f"{name} {getattr(manifest.limits, name)}" for name in Limits.STEP)),
        (
            "defaults",
            f"{manifest.defaults.sampler}, {manifest.defaults.steps} steps, guidance {manifest.defaults.guidance}",
        ),
        ("size", f"{sum(file.size for file in manifest.files.values()) / 1e6:,.1f} MB in {len(manifest.files)} files"),
        ("made from", f"{made.checkpoint} ({made.weights}), weights {made.weights_sha256[:12]}"),
        ("VAE", made.vae),
        ("LoRAs", ", ".join(f"{lora.file} × {lora.weight:g}" for lora in made.loras) or "none"),
        ("made by", f"latentrt {manifest.latentrt} on {made.created}, torch {made.versions.get('torch')}"),
    ):
        table.add_row(name, value)
    return table


def component_table(manifest: Manifest) -> Table:
    """One row per component: what it is, what it takes and gives, how well it agrees with torch."""
    table = Table(title="components", title_justify="left")
    for column in ("component", "precision", "nodes", "parameters", "inputs", "outputs", "parity"):
        table.add_column(column, justify="right" if column in ("nodes", "parameters") else "left")
    for name, part in manifest.components.items():
        worst = max((found.relative for found in part.parity), default=None)
        table.add_row(
            name,
            part.precision,
            f"{part.nodes:,}",
            f"{part.parameters / 1e6:,.2f} M",
            escape("\n".join(f"{port} {text}" for port, text in part.inputs.items())),
            escape("\n".join(f"{port} {text}" for port, text in part.outputs.items())),
            "not compared" if worst is None else f"{worst:.1e} in {len({found.case for found in part.parity})} cases",
        )
    return table


def numerics_table(manifest: Manifest) -> Table:
    """One row per component that was measured for fp16: how large its values are, and what made them fit."""
    table = Table(title="fp16 range", title_justify="left")
    for column in (
        "component",
        "largest",
        "scaled",
        "signals scaled by",
        "islands",
        "float32 layers",
        "fp16 error",
    ):
        table.add_column(column, justify="right" if column in ("largest", "scaled") else "left")
    for name, part in manifest.components.items():
        if part.numerics is None:
            continue
        found = part.numerics
        table.add_row(
            name,
            f"{max(found.ranges.values(), default=0.0):,.4g}",
            f"{found.largest:,.4g}",
            "\n".join(f"{signal} 2^{exponent}" for signal, exponent in found.scales.items()) or "none",
            "\n".join(found.islands) or "none",
            "\n".join(found.float32_layers) or "none",
            f"{found.relative:.1e} over {found.samples} samples",
        )
    return table


def dims_table(manifest: Manifest) -> Table:
    """One row per dim of the bundle's own limits."""
    table = Table(title="dims", title_justify="left")
    for column in ("dim", "min", "opt", "max"):
        table.add_column(column, justify="right" if column != "dim" else "left")
    dims = {dim.name: dim for spec in manifest.specs().values() for dim in spec.dims.values()}
    for dim in dims.values():
        table.add_row(dim.name, str(dim.min), str(dim.opt), str(dim.max))
    return table


def build_table(build: BuildRecord) -> Table:
    """One row per engine of a build."""
    served = ", ".join(f"{name} {getattr(build.limits, name)}" for name in Limits.STEP)
    table = Table(title=f"build {build.name}: {served}", title_justify="left")
    for column in ("engine", "precision", "MB", "seconds", "layers", "notes"):
        table.add_column(column, justify="right" if column in ("MB", "seconds") else "left")
    for name, engine in build.engines.items():
        table.add_row(
            name,
            engine.key.precision,
            f"{sum(file.size for file in engine.files.values()) / 1e6:,.1f}",
            f"{engine.seconds:.1f}",
            ", ".join(f"{count} {kind}" for kind, count in engine.layers.items()),
            "\n".join(engine.notes),
        )
    return table
