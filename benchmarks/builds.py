"""Scenarios that build engines, for ranges of sizes and for one size: build time, size, memory."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from latentrt.benchmarks.contenders import Contender
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
        context.write(replace(build_row(scenario, contender, built), seconds=built["seconds"], memory=built["memory"]))


def build_row(scenario: Scenario, contender: Contender, built: Mapping[str, Any]) -> BuildRow:
    """What `Context.build` returned, as a record; its seconds are those that each engine took whenever it was built."""
    components = {name: (seconds, size) for name, (seconds, size) in built["components"].items()}
    return BuildRow(
        scenario=scenario.name,
        contender=contender.name,
        limits=built["limits"],
        seconds=sum(seconds for seconds, _ in components.values()),
        bytes=sum(size for _, size in components.values()),
        memory=None,
        components=components,
        layers=built["layers"],
    )
