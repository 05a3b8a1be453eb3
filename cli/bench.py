"""`latentrt bench`: latentrt and its peers side by side, and a report."""

import shlex
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

from latentrt.cli.ending import FAILED
from latentrt.cli.export import check_export_installed
from latentrt.cli.options import VerboseOption
from latentrt.cli.output import configure_logging, console, finish
from latentrt.runtime.errors import BackendError

if TYPE_CHECKING:
    from latentrt.benchmarks.results import Results
    from latentrt.benchmarks.scenarios import Scenario

OUT = Path("latentrt-bench")


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small scenarios, under five minutes on two cores.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="The full-size models on an NVIDIA GPU.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="With --gpu: small versions of its scenarios, on the CPU.")
    ] = False,
    scenario: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--scenario", metavar="NAME", help="Only this scenario; repeatable."),
    ] = None,
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--model", metavar="CHECKPOINT", help="Your own checkpoint, in place of the scenarios'."),
    ] = None,
    peers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--peers", metavar="NAMES", help="Peers, separated by commas, or all, or none. Default: diffusers."
        ),
    ] = None,
    peer_python: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--peer-python", metavar="NAME=PATH", help="The python of a peer's own environment."),
    ] = None,
    install_peers: Annotated[
        bool, typer.Option("--install-peers", help="First create the environments of peers that need their own.")
    ] = False,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for results and report.", metavar="FOLDER")] = OUT,
    rounds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--rounds", min=1, help="Timed samples per contender, in place of the scenario's number."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Cores that each contender may use; 0: all.")] = 0,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--report", metavar="FOLDER", help="Run nothing; rewrite the report of an earlier run in this folder."
        ),
    ] = None,
    readme: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--readme", metavar="FILE", help="Put the run's table between the markers in this file."),
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="List the scenarios and exit.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure latentrt and its peers in one run, taking turns, and write a report."""
    configure_logging(verbose)
    check_installed()
    from latentrt.benchmarks.contenders import chosen_peers
    from latentrt.benchmarks.context import Options
    from latentrt.benchmarks.peers import install_optimum, parse_pythons
    from latentrt.benchmarks.results import read
    from latentrt.benchmarks.suite import run_suite
    from latentrt.runtime.backends.onnxruntime import usable_cores

    scenarios = chosen_scenarios(scenario or (), quick, gpu, rehearse)
    if model is not None:
        scenarios = tuple(replace(one, model=str(model.absolute())) for one in scenarios)
    if list_only:
        list_scenarios(scenarios if scenario or quick or gpu else None)
        return
    if report is not None:
        conclude(read(report), report, readme)
        return
    options = Options(
        out=output,
        threads=threads or usable_cores(),
        peers=chosen_peers(peers),
        peer_pythons=parse_pythons(peer_python or ()),
        rounds=rounds,
        rehearse=rehearse,
    )
    if install_peers:
        say(f"installing optimum-onnx: {install_optimum()}")
    results = run_suite(scenarios, options, shlex.join(["latentrt", *sys.argv[1:]]), say)
    conclude(results, output, readme)


def say(text: str) -> None:
    """Print progress to stderr."""
    console().print(text, markup=False)


def check_installed() -> None:
    """Raise `BackendError` if the bench extra is not installed."""
    check_export_installed()
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise BackendError(
            f"the report needs matplotlib, which is not installed ({error}). "
            "Install it with: pip install 'latentrt[bench]'"
        ) from error


def chosen_scenarios(names: list[str] | tuple[()], quick: bool, gpu: bool, rehearse: bool) -> "tuple[Scenario, ...]":
    """The scenarios that the options ask for; named ones may come from any suite."""
    from latentrt.benchmarks.scenarios import SUITES, named, rehearsed

    if quick and gpu:
        raise typer.BadParameter("--quick and --gpu name two suites; give one of them")
    if rehearse and not (gpu or names):
        raise typer.BadParameter("--rehearse is for --gpu, or for scenarios named with --scenario")
    found = named(names, SUITES["quick" if quick else "gpu" if gpu else "cpu"])
    return tuple(rehearsed(scenario) for scenario in found) if rehearse else found


def list_scenarios(scenarios: "tuple[Scenario, ...] | None") -> None:
    """Print these scenarios, or those of all suites, as a table and as JSON."""
    from latentrt.benchmarks.scenarios import SUITES

    chosen = {"chosen": scenarios} if scenarios is not None else SUITES
    table = Table("suite", "scenario", "model", "points", "contenders", "rounds")
    for suite, members in chosen.items():
        for one in members:
            points = f"{one.points[0]}" + (f" … {one.points[-1]}" if len(one.points) > 1 else "")
            table.add_row(suite, one.name, one.model, points, ", ".join(one.contenders), str(one.rounds))
    console().print(table)
    finish(scenarios={suite: [one.name for one in members] for suite, members in chosen.items()})


def conclude(results: "Results", folder: Path, readme: Path | None) -> None:
    """Write the report, show the table, and exit 1 if a scenario failed."""
    from latentrt.benchmarks.report.markdown import headline_table, replace_between_markers
    from latentrt.benchmarks.report.page import write_report
    from latentrt.benchmarks.results import Failure, Finished, Row
    from latentrt.benchmarks.summary import summarise

    page = write_report(results, folder)
    text = headline_table(results)
    if readme is not None:
        replace_between_markers(readme, text)
    console().print(escape(text))
    failures = results.of(Failure)
    for failure in failures:
        say(f"FAILED {failure.scenario} {failure.contender}: {failure.message}")
    medians: dict[str, dict[str, float]] = {}
    for row in results.of(Row):
        point = medians.setdefault(f"{row.scenario}: {row.point}", {})
        point[row.contender] = round(summarise([sample.wall for sample in row.samples]).median, 4)
    finish(
        report=page.absolute(),
        results=folder.absolute(),
        scenarios=[finished.scenario for finished in results.of(Finished)],
        failed=sorted({failure.scenario for failure in failures}),
        median_seconds=medians,
    )
    if failures:
        raise typer.Exit(FAILED)
