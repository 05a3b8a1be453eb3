"""`latentrt inspect`: show the contents of a bundle."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

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
    check: Annotated[bool, typer.Option("--check", help="Also check the SHA-256 of every file.")] = False,
) -> None:
    """Show a bundle's components, dims, precisions, parity, builds, sizes and provenance."""
    opened = Bundle.open(bundle)
    if check:
        check_hashes(opened)
    builds = opened.builds()
    screen = console()
    for table in (facts_table(opened), component_table(opened.manifest), dims_table(opened.manifest)):
        screen.print(table)
    if any(part.numerics for part in opened.manifest.components.values()):
        screen.print(numerics_table(opened.manifest))
    kernels = {name: opened.kernels(build) for name, build in builds.items()}
    for name, build in builds.items():
        screen.print(build_table(build, kernels[name]))
    finish(
        manifest=opened.manifest.model_dump(),
        builds={name: build.model_dump() for name, build in builds.items()},
        kernels=kernels,
    )


def check_hashes(bundle: Bundle) -> None:
    """Raise `BundleError` for the first file that is missing, or whose content differs from the manifests."""
    records = dict(bundle.manifest.files)
    for build in bundle.builds().values():
        for engine in build.engines.values():
            check_sizes(bundle.path, engine.files, f"Rebuild with: {bundle.rebuild_command(build)}")
            records |= engine.files
    for name, record in records.items():
        if describe_file(bundle.path / name) != record:
            raise BundleError(
                f"{bundle.path / name}: its SHA-256 is not the manifest's; the file was changed or damaged"
            )


def _table(title: str, columns: Sequence[str], numbers: Collection[str]) -> Table:
    """An empty table; the columns in `numbers` are aligned right."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    return table


def _served(limits: Limits) -> str:
    return ", ".join(
        f"{option.removeprefix('--').replace('-', '_')} {' '.join(values)}"
        for option, values in limits.options().items()
    )


def facts_table(bundle: Bundle) -> Table:
    """One row per fact about the whole bundle."""
    manifest = bundle.manifest
    model, made = manifest.model, manifest.provenance
    table = Table(title=str(bundle.path), title_justify="left", show_header=False)
    for name, value in (
        ("family", f"{model.family}{' inpainting' * model.is_inpainting}, native size {model.native_size} pixels"),
        ("precision", manifest.precision),
        ("serves", _served(manifest.limits)),
        (
            "defaults",
            f"{manifest.defaults.sampler}, {manifest.defaults.steps} steps, guidance {manifest.defaults.guidance}",
        ),
        ("size", f"{sum(file.size for file in manifest.files.values()) / 1e6:,.1f} MB in {len(manifest.files)} files"),
        ("made from", f"{made.checkpoint} ({made.weights}), weights {made.weights_sha256[:12]}"),
        ("U-Net", made.unet or "of the checkpoint"),
        ("VAE", made.vae),
        ("LoRAs", ", ".join(f"{lora.file} × {lora.weight:g}" for lora in made.loras) or "none"),
        ("made by", f"latentrt {manifest.latentrt} on {made.created}, torch {made.versions.get('torch')}"),
    ):
        table.add_row(name, value)
    return table


def component_table(manifest: Manifest) -> Table:
    """One row per component: precision, size, ports, and how well it agrees with torch."""
    columns = ("component", "precision", "nodes", "parameters", "inputs", "outputs", "parity")
    table = _table("components", columns, numbers=("nodes", "parameters"))
    for name, part in manifest.components.items():
        worst = max((case.relative for case in part.parity), default=None)
        table.add_row(
            name,
            part.precision,
            f"{part.nodes:,}",
            f"{part.parameters / 1e6:,.2f} M",
            escape("\n".join(f"{port} {text}" for port, text in part.inputs.items())),
            escape("\n".join(f"{port} {text}" for port, text in part.outputs.items())),
            "not compared" if worst is None else f"{worst:.1e} in {len({record.case for record in part.parity})} cases",
        )
    return table


def numerics_table(manifest: Manifest) -> Table:
    """One row per component that was measured for fp16: how large its values are, and how they were made to fit."""
    columns = ("component", "largest", "scaled", "signals scaled by", "islands", "float32 layers", "fp16 error")
    table = _table("fp16 range", columns, numbers=("largest", "scaled"))
    for name, part in manifest.components.items():
        if (numerics := part.numerics) is None:
            continue
        table.add_row(
            name,
            f"{max(numerics.ranges.values(), default=0.0):,.4g}",
            f"{numerics.largest:,.4g}",
            "\n".join(f"{signal} 2^{exponent}" for signal, exponent in numerics.scales.items()) or "none",
            "\n".join(numerics.islands) or "none",
            "\n".join(numerics.float32_layers) or "none",
            f"{numerics.relative:.1e} over {numerics.samples} samples",
        )
    return table


def dims_table(manifest: Manifest) -> Table:
    """One row per dim of the bundle's own limits."""
    table = _table("dims", ("dim", "min", "opt", "max"), numbers=("min", "opt", "max"))
    dims = {dim.name: dim for spec in manifest.specs().values() for dim in spec.dims.values()}
    for dim in dims.values():
        table.add_row(dim.name, str(dim.min), str(dim.opt), str(dim.max))
    return table


def _profile(ranges: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {bounds}" for name, bounds in ranges.items())


def build_table(build: BuildRecord, kernels: Mapping[str, int]) -> Table:
    """One row per engine of a build; `kernels`: the bytes of those compiled on GPUs, by file."""
    columns = ("engine", "precision", "MB", "seconds", "profiles", "options", "layers", "notes")
    table = _table(f"build {build.name}: {_served(build.limits)}", columns, numbers=("MB", "seconds"))
    if kernels:
        table.caption = "\n".join(f"kernels: {name}, {size / 1e6:,.1f} MB" for name, size in kernels.items())
        table.caption_justify = "left"
    for name, engine in build.engines.items():
        table.add_row(
            name,
            engine.key.precision,
            f"{sum(file.size for file in engine.files.values()) / 1e6:,.1f}",
            f"{engine.seconds:.1f}",
            "\n".join(map(_profile, engine.key.profiles)) or "one",
            engine.key.options or "none",
            ", ".join(f"{count} {kind}" for kind, count in engine.layers.items()),
            "\n".join(engine.notes),
        )
    return table
