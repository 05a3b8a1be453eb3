"""A server's scheduling under load: continuous batches against a first-come-first-served queue.

    python -m latentrt.benchmarks.serving BUNDLE [--sizes 64,96] [--steps 4,50] [--load 0.8] [--rounds 3]

Requests of two step counts and two sizes arrive as a Poisson process at a share (`--load`) of what the engine alone can
draw one by one. Both contenders get the same requests at the same times, in turns, in one process; only order and batch
differ. Then, what a change of the batch costs. The last line of stdout is one JSON object.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from latentrt.runtime import Drawing, Pipeline
from latentrt.serve.engine import BatchEngine
from latentrt.serve.limits import ServerLimits
from latentrt.serve.messages import Finished, FromWorker, Submit
from latentrt.serve.scheduler import PATIENCE

PROMPTS = ("a red circle", "a green star", "a blue square", "a yellow triangle")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and when it comes, in seconds from the start."""

    seconds: float
    steps: int
    settings: dict[str, Any]
    prompt: str


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to schedule: pictures in a batch, and the scheduler's patience."""

    name: str
    most: int
    patience: float


def arrivals(count: int, rate: float, steps: Sequence[int], sizes: Sequence[int], seed: int) -> list[Arrival]:
    """A Poisson process of `rate` requests per second, each of a random step count and size."""
    draw = random.Random(seed)
    now, made = 0.0, []
    for number in range(count):
        now += draw.expovariate(rate)
        size = draw.choice(sizes)
        chosen = draw.choice(steps)
        settings = {"steps": chosen, "width": size, "height": size, "seed": number, "guidance": 5.0}
        made.append(Arrival(now, chosen, settings, draw.choice(PROMPTS)))
    return made


def serve(pipeline: Pipeline, contender: Contender, coming: Sequence[Arrival]) -> tuple[float, list[float]]:
    """Serve the requests as they come: seconds until the last is done, and the seconds of each."""
    ended: dict[str, float] = {}

    def receive(message: FromWorker) -> None:
        if isinstance(message, Finished):
            ended[message.id] = time.monotonic() - started

    engine = BatchEngine({"m": pipeline}, ServerLimits(), contender.most, receive, patience=contender.patience)
    pending = list(enumerate(coming))
    started = time.monotonic()
    while pending or not engine.is_idle:
        while pending and pending[0][1].seconds <= time.monotonic() - started:
            number, one = pending.pop(0)
            engine.submit(Submit(str(number), "m", (one.prompt,), one.settings))
        if engine.is_idle and pending:
            time.sleep(max(0.0, pending[0][1].seconds - (time.monotonic() - started)))
        engine.work()
    return max(ended.values()), [ended[str(number)] - one.seconds for number, one in enumerate(coming)]


def seconds_alone(pipeline: Pipeline, steps: Sequence[int], sizes: Sequence[int]) -> float:
    """Mean seconds of a request of the mix, drawn alone."""
    times = []
    for chosen in steps:
        for size in sizes:
            settings: Any = {"steps": chosen, "width": size, "height": size, "seed": 0, "guidance": 5.0}
            pipeline.generate(PROMPTS[0], **settings)
            draw = partial(pipeline.generate, PROMPTS[0], **settings)
            times.append(statistics.median(timed(draw) for _ in range(5)))
    return statistics.mean(times)


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99)]
    return {"p50_ms": round(1000 * at[0], 1), "p99_ms": round(1000 * at[1], 1)}


def change_costs(pipeline: Pipeline, size: int, company: int, repeats: int = 15) -> dict[str, float]:
    """Milliseconds that a join and a leave add to a step of a batch of `company` pictures, and the step's own."""

    def begun() -> Iterator[Drawing]:
        settings: Any = {"steps": 100, "width": size, "height": size, "guidance": 5.0}
        while True:
            yield pipeline.begin(pipeline.request(PROMPTS[0], **settings))

    source = begun()
    few = [next(source) for _ in range(company)]
    many = [*few, next(source)]
    pipeline.advance(few, 3)
    pipeline.advance(many, 3)
    found = defaultdict(list)
    for _ in range(repeats):
        found["leave"].append(timed(lambda: pipeline.advance(few)))
        found["few"].append(timed(lambda: pipeline.advance(few)))
        found["join"].append(timed(lambda: pipeline.advance(many)))
        found["many"].append(timed(lambda: pipeline.advance(many)))
        if many[0].steps_left < 8:
            break
    median = {name: 1000 * statistics.median(values) for name, values in found.items()}
    return {
        "join_ms": round(median["join"] - median["many"], 2),
        "leave_ms": round(median["leave"] - median["few"], 2),
        "step_ms": round(median["many"], 2),
    }


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--sizes", default="64,96")
    parser.add_argument("--steps", default="4,50")
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-batch", type=int, default=4)
    given = parser.parse_args()
    sizes, steps = ([int(part) for part in text.split(",")] for text in (given.sizes, given.steps))
    contenders = (
        Contender("first come, first served", 1, 0.0),
        Contender("latentrt serve", given.max_batch, PATIENCE),
        Contender("latentrt serve, batches of 1", 1, PATIENCE),
    )
    with Pipeline.load(given.bundle) as pipeline:
        result: dict[str, Any] = {"change": change_costs(pipeline, sizes[-1], given.max_batch - 1)}
        latencies: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        throughput: dict[str, list[float]] = defaultdict(list)
        for one in contenders:
            serve(pipeline, one, arrivals(8, 1e3, steps, sizes, 99))
        for number in range(given.rounds):
            alone = seconds_alone(pipeline, steps, sizes)
            coming = arrivals(given.requests, given.load / alone, steps, sizes, number)
            for one in contenders:
                total, seconds = serve(pipeline, one, coming)
                throughput[one.name].append(len(coming) / total)
                for arrival, value in zip(coming, seconds, strict=True):
                    latencies[one.name][arrival.steps].append(value)
    for name, by_steps in latencies.items():
        found = {f"{chosen} steps": quantiles(by_steps[chosen]) for chosen in steps}
        result[name] = {"per_second": round(statistics.mean(throughput[name]), 2), **found}
        print(name, result[name])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
