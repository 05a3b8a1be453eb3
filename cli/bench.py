"""`latentrt bench`: latentrt and its peers side by side, and a report."""

import shlex
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

from latentrt.cli.ending import FAILED
from latentrt.cli.export import check_export_installed
from latentrt.cli.groups import option_groups
from latentrt.cli.options import OptionalInt, OptionalPath, OptionalText, VerboseOption
from latentrt.cli.output import configure_logging, console, finish
from latentrt.runtime.errors import BackendError

if TYPE_CHECKING:
    from latentrt.benchmarks.results import Results
    from latentrt.benchmarks.scenarios import Scenario

OUT = Path("latentrt-bench")


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """Which scenarios run."""

    quick: Annotated[
        bool, typer.Option("--quick", help="Small scenarios, under five minutes on two cores; of --gpu the first two.")
    ] = False
    gpu: Annotated[bool, typer.Option("--gpu", help="The full-size models on an NVIDIA GPU.")] = False
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="With --gpu: small versions of its scenarios, on the CPU.")
    ] = False
    scenario: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--scenario", metavar="NAME", help="Only this scenario; repeatable."),
    ] = None
    model: Annotated[
        OptionalPath,
        typer.Option("--model", metavar="CHECKPOINT", help="Your own checkpoint, in place of the scenarios'."),
    ] = None
    list_only: Annotated[bool, typer.Option("--list", help="List the scenarios and exit.")] = False

    @property
    def is_chosen(self) -> bool:
        """Whether the options name scenarios or a suite."""
        return bool(self.scenario or self.quick or self.gpu)

    def scenarios(self) -> "tuple[Scenario, ...]":
        """The scenarios that the options ask for; named ones may come from any suite."""
        from latentrt.benchmarks.scenarios import SUITES, named, rehearsed

        if self.rehearse and not (self.gpu or self.scenario):
            raise typer.BadParameter("--rehearse is for --gpu, or for scenarios named with --scenario")
        suite = "-".join(word for word, asked in (("gpu", self.gpu), ("quick", self.quick)) if asked) or "cpu"
        found = named(self.scenario or (), SUITES[suite])
        found = tuple(rehearsed(scenario) for scenario in found) if self.rehearse else found
        own = self.model and str(self.model.absolute())
        return tuple(replace(one, model=own) for one in found) if own else found


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """Who takes part besides latentrt."""

    peers: Annotated[
        OptionalText,
        typer.Option(
            "--peers",
            metavar="NAMES",
            help="Peers, separated by commas, or all, or none. Default: diffusers, eager and compiled.",
        ),
    ] = None
    peer_python: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--peer-python", metavar="NAME=PATH", help="The python of a peer's own environment."),
    ] = None
    install_peers: Annotated[
        bool, typer.Option("--install-peers", help="First create the environments of peers that need their own.")
    ] = False


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What is written where."""

    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for results and report.", metavar="FOLDER")] = OUT
    report: Annotated[
        OptionalPath,
        typer.Option(
            "--report", metavar="FOLDER", help="Run nothing; rewrite the report of an earlier run in this folder."
        ),
    ] = None
    readme: Annotated[
        OptionalPath,
        typer.Option("--readme", metavar="FILE", help="Put the run's table between the markers in this file."),
    ] = None


@option_groups
def bench(
    suite: SuiteOptions,
    peers: PeerOptions,
    files: ReportOptions,
    *,
    rounds: Annotated[
        OptionalInt,
        typer.Option("--rounds", min=1, help="Timed samples per contender, in place of the scenario's number."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Cores that each contender may use; 0: all.")] = 0,
    verbose: VerboseOption = False,
) -> None:
    """Measure latentrt and its peers in one run, taking turns, and write a report."""
    configure_logging(verbose)
    check_installed()
    from latentrt.benchmarks.results import read

    scenarios = suite.scenarios()
    if suite.list_only:
        list_scenarios(scenarios if suite.is_chosen else None)
    elif files.report is not None:
        conclude(read(files.report), files.report, files.readme)
    else:
        conclude(run(scenarios, suite, peers, files.output, rounds, threads), files.output, files.readme)


def run(
    scenarios: "tuple[Scenario, ...]",
    suite: SuiteOptions,
    peers: PeerOptions,
    output: Path,
    rounds: int | None,
    threads: int,
) -> "Results":
    """Run the scenarios with these peers."""
    from latentrt.benchmarks.contenders import chosen_peers
    from latentrt.benchmarks.context import Options
    from latentrt.benchmarks.peers import install_optimum, parse_pythons
    from latentrt.benchmarks.suite import run_suite
    from latentrt.runtime.backends.onnxruntime import usable_cores

    options = Options(
        out=output,
        threads=threads or usable_cores(),
        peers=chosen_peers(peers.peers),
        peer_pythons=parse_pythons(peers.peer_python or ()),
        rounds=rounds,
        rehearse=suite.rehearse,
    )
    if peers.install_peers:
        say(f"installing optimum-onnx: {install_optimum()}")
    return run_suite(scenarios, options, shlex.join(["latentrt", *sys.argv[1:]]), say)


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
    from latentrt.benchmarks.report.issue import BLOCK, issue_block
    from latentrt.benchmarks.report.markdown import headline_table, replace_between_markers
    from latentrt.benchmarks.report.page import write_report
    from latentrt.benchmarks.results import Failure, Finished

    page = write_report(results, folder)
    text = headline_table(results)
    if readme is not None:
        replace_between_markers(readme, text)
    block = issue_block(results)
    if not block:
        console().print(escape(text))
    failures = results.of(Failure)
    for failure in failures:
        say(f"FAILED {failure.scenario} {failure.contender}: {failure.message}")
    if block:
        (folder / BLOCK).write_text(block + "\n", encoding="utf-8")
        say(f"\nTo be pasted into an issue (also in {folder / BLOCK}):\n\n{block}\n")
    finish(
        report=page.absolute(),
        results=folder.absolute(),
        scenarios=[finished.scenario for finished in results.of(Finished)],
        failed=sorted({failure.scenario for failure in failures}),
        median_seconds=median_seconds(results),
        issue=(folder / BLOCK).resolve() if block else None,
    )
    if failures:
        raise typer.Exit(FAILED)


def median_seconds(results: "Results") -> dict[str, dict[str, float]]:
    """Median seconds of each contender, by scenario and point."""
    from latentrt.benchmarks.results import Row
    from latentrt.benchmarks.summary import summarise

    medians: dict[str, dict[str, float]] = {}
    for row in results.of(Row):
        point = medians.setdefault(f"{row.scenario}: {row.point}", {})
        point[row.contender] = round(summarise([sample.wall for sample in row.samples]).median, 4)
    return medians
