"""Runs scenarios one after the other and writes their results line by line."""

import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from latentrt.benchmarks import builds, environment, host_work, pictures
from latentrt.benchmarks.context import PICTURES, Context, Options
from latentrt.benchmarks.results import RESULTS, Finished, Record, Results, read
from latentrt.benchmarks.scenarios import Scenario
from latentrt.runtime.backends.cuda import device_count
from latentrt.runtime.errors import BenchmarkError, LatentRTError

RUNNERS: Mapping[str, Callable[[Scenario, Context], None]] = {
    "pictures": pictures.run,
    "component": pictures.run,
    "build": builds.run,
    "host": host_work.run,
}


def run_suite(scenarios: Iterable[Scenario], options: Options, command: str, say: Callable[[str], None]) -> Results:
    """Run scenarios, write the results to the folder `options.out` in place of earlier ones, and read them back.

    Raises:
        BenchmarkError: a scenario needs a GPU and there is none.
    """
    scenarios = [_with_rounds(scenario, options.rounds) for scenario in scenarios]
    check_gpu(scenarios)
    (options.out / PICTURES).mkdir(parents=True, exist_ok=True)
    file = options.out / RESULTS
    with file.open("w", encoding="utf-8") as stream:

        def write(record: Record) -> None:
            stream.write(record.line() + "\n")
            stream.flush()

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
        )
    )


def scenario_command(scenario: Scenario, options: Options) -> str:
    """The command that runs one scenario again."""
    peers = ",".join(options.peers) or "none"
    words = ["latentrt", "bench", "--scenario", scenario.name, "--peers", peers, "--threads", str(options.threads)]
    words += ["--rounds", str(scenario.rounds)]
    words += ["--model", scenario.model] if Path(scenario.model).is_absolute() else []
    return shlex.join([*words, *(["--rehearse"] if options.rehearse else [])])


def check_gpu(scenarios: Iterable[Scenario]) -> None:
    """Raise `BenchmarkError` if a scenario needs a GPU and there is none."""
    needing = [scenario.name for scenario in scenarios if scenario.device == "cuda"]
    if needing and device_count() == 0:
        raise BenchmarkError(
            f"scenarios {', '.join(needing)}: they need an NVIDIA GPU with 24 GB or more, a driver for CUDA 13, a "
            "torch built for CUDA and latentrt[cuda]; this process sees no GPU. Try them in small on this CPU: "
            "latentrt bench --gpu --rehearse"
        )


def _with_rounds(scenario: Scenario, rounds: int | None) -> Scenario:
    return scenario if rounds is None else replace(scenario, rounds=rounds)
