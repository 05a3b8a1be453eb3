"""Runs scenarios one after the other and writes their results line by line."""

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from latentrt.benchmarks import builds, environment, host_work, pictures
from latentrt.benchmarks.context import PICTURES, Context, Options
from latentrt.benchmarks.results import RESULTS, Finished, Record, Results, read
from latentrt.benchmarks.scenarios import Scenario
from latentrt.runtime.backends.cuda import describe_device
from latentrt.runtime.errors import BackendError, BenchmarkError, LatentRTError, told_as

RUNNERS: Mapping[str, Callable[[Scenario, Context], None]] = {
    "pictures": pictures.run,
    "component": pictures.run,
    "build": builds.run,
    "host": host_work.run,
}


def run_suite(scenarios: Iterable[Scenario], options: Options, command: str, say: Callable[[str], None]) -> Results:
    """Run scenarios, write the results to the folder `options.out` in place of earlier ones, and read them back.

    Raises:
        BenchmarkError: a scenario needs a GPU and there is none, or the folder cannot be written.
    """
    scenarios = [_with_rounds(scenario, options.rounds) for scenario in scenarios]
    check_gpu(scenarios, options.peers)
    file = options.out / RESULTS
    with told_as(BenchmarkError, file, "written"):
        (options.out / PICTURES).mkdir(parents=True, exist_ok=True)
        opened = file.open("w", encoding="utf-8", buffering=1)
    with opened as stream:

        def write(record: Record) -> None:
            with told_as(BenchmarkError, file, "written"):
                stream.write(record.line() + "\n")

        write(environment.describe(command, options.threads))
        context = Context(options, write, say)
        for scenario in scenarios:
            _run(scenario, context)
    return read(options.out)


def _run(scenario: Scenario, context: Context) -> None:
    """Run one scenario; an error in it is recorded and does not stop the next one."""
    started = time.perf_counter()
    try:
        RUNNERS[scenario.kind](scenario, context)
    except LatentRTError as error:
        context.fail(scenario, "", error)
    context.write(
        Finished(
            scenario=scenario.name,
            question=scenario.question,
            model=scenario.model,
            precision=scenario.precision,
            device=scenario.device,
            kind=scenario.kind,
            axis=scenario.axis,
            sampler=scenario.sampler,
            seconds=time.perf_counter() - started,
            command=scenario_command(scenario, context.options),
            reference=scenario.reference_device,
        )
    )


def scenario_command(scenario: Scenario, options: Options) -> str:
    """The command that runs one scenario again."""
    peers = ",".join(options.peers) or "none"
    words = ["latentrt", "bench", "--scenario", scenario.name, "--peers", peers, "--threads", str(options.threads)]
    words += ["--rounds", str(scenario.rounds)]
    words += ["--model", scenario.model] if Path(scenario.model).is_absolute() else []
    return shlex.join([*words, *(["--rehearse"] if options.rehearse else [])])


def check_gpu(scenarios: Iterable[Scenario], peers: Sequence[str] = ()) -> None:
    """Raise `BenchmarkError` if a scenario needs a GPU, and there is none or torch would have to use it and cannot.

    It has to if it draws the reference there, or one of these peers takes part.
    """
    needing = [scenario for scenario in scenarios if scenario.device == "cuda"]
    with_torch = any(one.reference_device == "cuda" or set(peers) & set(one.contenders) for one in needing)
    if needing and (fault := gpu_fault(with_torch)):
        names = ", ".join(one.name for one in needing)
        raise BenchmarkError(
            f"scenarios {names}: they need an NVIDIA GPU, for full-size SDXL with 24 GB or more, a driver for CUDA 13, "
            f"a torch built for CUDA and latentrt[cuda]. {fault}. latentrt doctor shows what works. To try them in "
            "small on this CPU: latentrt bench --gpu --rehearse"
        )


def gpu_fault(with_torch: bool) -> str:
    """Why nothing can be measured on the first GPU, with the remedy; empty if it can."""
    try:
        describe_device(0)
    except BackendError as error:
        return str(error)
    if with_torch and (torch := import_module("torch")).version.cuda is None:
        return (
            f"torch {torch.__version__}, which draws the reference, was built without CUDA. Install one that was built "
            "for it, from https://pytorch.org"
        )
    return ""


def _with_rounds(scenario: Scenario, rounds: int | None) -> Scenario:
    return scenario if rounds is None else replace(scenario, rounds=rounds)
