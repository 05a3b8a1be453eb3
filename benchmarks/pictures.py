"""Scenarios in which contenders draw pictures or run one component, in turns."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from latentrt.benchmarks.builds import build_row
from latentrt.benchmarks.contenders import CONTENDERS, Contender
from latentrt.benchmarks.context import PICTURES, Context
from latentrt.benchmarks.harness import Entrant, Round, Task, picture_task
from latentrt.benchmarks.models import benchmark_home
from latentrt.benchmarks.peers import peer_python
from latentrt.benchmarks.process import Worker
from latentrt.benchmarks.roofline import component_sizes, stage_work
from latentrt.benchmarks.scenarios import Point, Scenario
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import BenchmarkError

REFERENCE = "reference"
"""Name of the worker that draws the reference for every comparison: diffusers, eager, in float32."""


def run(scenario: Scenario, context: Context) -> None:
    """Prepare and load all contenders, then measure every point.

    Raises:
        BenchmarkError: nothing can be measured, for instance because the model cannot be exported.
    """
    contenders = list(context.entrants(scenario))
    with context.worker(scenario.name, "prepare", "workers.prepare:Prepare") as prepare:
        context.say(f"{scenario.name}: checkpoint, export, engines")
        made = prepare.call("checkpoint", model=scenario.model, threads=context.options.threads)
        files = {"checkpoint": made["path"], "exported": str(benchmark_home() / "optimum" / made["key"])}
        exported = context.bundle(prepare, scenario)
        bundle = Path(exported["path"])
        inputs = {one.name: _prepared(context, scenario, prepare, one, files, exported) for one in contenders}
        tasks = {point: _task(scenario, point, prepare, bundle, context) for point in scenario.points}
    peaks = context.peaks(scenario.device, scenario.precision)
    for point in scenario.points:
        for work in stage_work(bundle, scenario, point, peaks):
            context.write(work)
    references = _references(context, scenario, contenders, tasks, files)
    with ExitStack() as stack:
        entrants = [
            entrant
            for contender in contenders
            if (ready := inputs[contender.name]) is not None
            and (entrant := _load(context, scenario, stack, contender, ready)) is not None
        ]
        for point, task in tasks.items():
            context.say(f"{scenario.name}: {point}: {scenario.rounds} rounds of {len(entrants)} contenders")
            measurement = Round(scenario, point, task, context.options.out / PICTURES, context.write)
            for row in measurement.measure(entrants, references[point]):
                context.write(row)


def _prepared(
    context: Context,
    scenario: Scenario,
    prepare: Worker,
    contender: Contender,
    files: dict[str, str],
    bundle: dict[str, Any],
) -> dict[str, Any] | None:
    """Arguments of a contender's `load`; None, with the failure recorded, if its engines cannot be built."""
    common = _load_arguments(scenario, context) | dict(contender.options)
    if contender.is_peer:
        return common | files
    try:
        built = context.build(prepare, scenario, contender, bundle)
    except BenchmarkError as error:
        context.fail(scenario, contender.name, error, prepare.log.name)
        return None
    context.write(build_row(scenario, contender, built))
    return common | {"bundle": built["path"], "backend": contender.backend}


def _load_arguments(scenario: Scenario, context: Context) -> dict[str, Any]:
    """Arguments of `load` that are the same for all contenders of a scenario."""
    return {
        "device": scenario.device,
        "threads": context.options.threads,
        "precision": scenario.precision,
        "sampler": scenario.sampler,
        "component": scenario.component,
    }


def _load(
    context: Context, scenario: Scenario, stack: ExitStack, contender: Contender, inputs: dict[str, Any]
) -> Entrant | None:
    """A loaded contender; None, with the failure recorded, if it does not load."""
    context.say(f"{scenario.name}: loading {contender.label}")
    python = peer_python(contender, context.options.peer_pythons) if contender.own_environment else None
    worker = stack.enter_context(context.worker(scenario.name, contender.name, contender.worker, python))
    started = time.perf_counter()
    try:
        loaded = worker.call("load", **inputs)
    except BenchmarkError as error:
        context.fail(scenario, contender.name, error, worker.log.name)
        return None
    return Entrant(contender.name, worker, time.perf_counter() - started, loaded)


def _task(scenario: Scenario, point: Point, prepare: Worker, bundle: Path, context: Context) -> Task:
    if scenario.kind == "pictures":
        return picture_task(scenario, point)
    sizes = component_sizes(Bundle.open(bundle), point)
    file = context.options.out / PICTURES / f"{scenario.name}-inputs.npz"
    output = prepare.call(
        "component_inputs", bundle=str(bundle), component=scenario.component, sizes=sizes, file=str(file)
    )
    arguments = {"inputs": str(file), "sizes": sizes, "output": output}
    return Task("run_component", arguments, "result", ".npy")


def _references(
    context: Context,
    scenario: Scenario,
    contenders: list[Contender],
    tasks: dict[Point, Task],
    files: dict[str, str],
) -> dict[Point, Path]:
    """The file of each point's reference picture, which may not exist yet.

    If diffusers takes part in float32 on the CPU, its own picture is the reference. Otherwise a worker draws the
    reference before the measurement, and then ends.
    """
    folder = context.options.out / PICTURES
    diffusers = CONTENDERS["diffusers"]
    takes_part = diffusers in contenders and (scenario.precision, scenario.device) == ("fp32", "cpu")
    device = scenario.reference_device
    drawn_by = diffusers.name if takes_part else REFERENCE
    drawn = {point: Round(scenario, point, task, folder, context.write).file(drawn_by) for point, task in tasks.items()}
    for file in drawn.values():
        file.unlink(missing_ok=True)  # left by an earlier run
    if not takes_part:
        context.say(f"{scenario.name}: the reference, diffusers in fp32 on {device}")
        inputs = _load_arguments(scenario, context) | {"precision": "fp32", "device": device} | files
        with context.worker(scenario.name, REFERENCE, diffusers.worker) as worker:
            try:
                worker.call("load", **inputs)
                for point, task in tasks.items():
                    task.run(worker, drawn[point])
            except BenchmarkError as error:
                context.fail(scenario, REFERENCE, error, worker.log.name)
    return drawn
