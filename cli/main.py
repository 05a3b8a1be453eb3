"""The entry points: `latentrt COMMAND` and `build-engine`."""

from importlib.metadata import version
from typing import Annotated

import typer

from latentrt.cli.bench import bench
from latentrt.cli.build import build_engine as build_engine_command
from latentrt.cli.demo import demo
from latentrt.cli.doctor import doctor
from latentrt.cli.export import export
from latentrt.cli.generate import generate
from latentrt.cli.inspect import inspect
from latentrt.cli.output import run_command
from latentrt.cli.verify import verify


def application() -> typer.Typer:
    """The `latentrt` command with its subcommands."""
    app = typer.Typer(
        help="Run Stable Diffusion XL, 1.5 and 2 as TensorRT or ONNX Runtime engines, without torch.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_with_version)
    for name, command in (
        ("export", export),
        ("build-engine", build_engine_command),
        ("generate", generate),
        ("inspect", inspect),
        ("verify", verify),
        ("doctor", doctor),
        ("bench", bench),
        ("demo", demo),
    ):
        app.command(name)(command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"latentrt {version('latentrt')}")
        raise typer.Exit


def _with_version(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run `latentrt`."""
    run_command(application())


def build_engine() -> None:
    """Run `build-engine`, short for `latentrt build-engine`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(build_engine_command)
    run_command(app)
