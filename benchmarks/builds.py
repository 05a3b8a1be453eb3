"""Scenarios that build engines, for ranges of sizes and for one size: build time, size, memory."""

from latentrt.benchmarks.context import Context
from latentrt.benchmarks.results import BuildRow
from latentrt.benchmarks.scenarios import Scenario
from latentrt.runtime.errors import BenchmarkError

PREPARE = "workers.prepare:Prepare"


def run(scenario: Scenario, context: Context) -> None:
    """Build the engines of every contender anew, each in its own process, so that memory is measured separately."""
    contenders = list(context.entrants(scenario, building=True))
    with context.worker(scenario.name, "export", PREPARE) as worker:
        context.say(f"{scenario.name}: export")
        bundle = context.bundle(worker, scenario)
    for contender in contenders:
        context.say(f"{scenario.name}: building {contender.label}")
        with context.worker(scenario.name, contender.name, PREPARE) as worker:
            try:
                built = context.build(worker, scenario, contender, bundle, force=True)
            except BenchmarkError as error:
                context.fail(scenario, contender.name, error, worker.log.name)
                continue
        components = {name: (seconds, size) for name, (seconds, size) in built["components"].items()}
        total = sum(size for _, size in components.values())
        context.write(
            BuildRow(
                scenario=scenario.name,
                contender=contender.name,
                limits=built["limits"],
                seconds=built["seconds"],
                bytes=total,
                memory=built["memory"],
                components=components,
                layers=built["layers"],
            )
        )
