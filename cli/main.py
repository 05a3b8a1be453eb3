"""The entry points: `latentrt COMMAND` and `build-engine`.

Imports are inside functions, so that Ctrl-C during them ends as it does later.
"""

from typing import TYPE_CHECKING, Annotated

from latentrt.cli.ending import run_command

if TYPE_CHECKING:
    import typer


def application() -> "typer.Typer":
    """The `latentrt` command with its subcommands."""
    import typer

    from latentrt.cli.bench import bench
    from latentrt.cli.build import build_engine as build_engine_command
    from latentrt.cli.demo import demo
    from latentrt.cli.doctor import doctor
    from latentrt.cli.export import export
    from latentrt.cli.generate import generate
    from latentrt.cli.inspect import inspect
    from latentrt.cli.serve import serve
    from latentrt.cli.verify import verify

    app = typer.Typer(
        help="Run Stable Diffusion XL, 1.5 and 2 as TensorRT or ONNX Runtime engines, without torch.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )

    @app.callback()
    def with_version(
        _version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for name, command in (
        ("export", export),
        ("build-engine", build_engine_command),
        ("generate", generate),
        ("serve", serve),
        ("inspect", inspect),
        ("verify", verify),
        ("doctor", doctor),
        ("bench", bench),
        ("demo", demo),
    ):
        app.command(name)(command)
    return app


def _show_version(wanted: bool) -> None:
    from importlib.metadata import version

    import typer

    if wanted:
        typer.echo(f"latentrt {version('latentrt')}")
        raise typer.Exit


def _build_engine_application() -> "typer.Typer":
    import typer

    from latentrt.cli.build import build_engine as build_engine_command

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(build_engine_command)
    return app


def main() -> None:
    """Run `latentrt`."""
    run_command(lambda: application()())


def build_engine() -> None:
    """Run `build-engine`, short for `latentrt build-engine`."""
    run_command(lambda: _build_engine_application()())
