"""A server's scheduling without an engine: the real scheduler, and a device on which a step costs so much per picture.

    python -m latentrt.benchmarks.serving_simulation [--load 0.8] [--gain 0] [--requests 4000]

Requests of 4 and 50 steps and of 64² and 96² pixels, half of each, arrive as a Poisson process. The unit is a step of
one small picture; a large one costs 2.25, and what comes before and after the steps as much as one step. `--gain`: the
share that each further picture of a batch saves. Times are those from a request's arrival to its picture.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence

from latentrt.serve.scheduler import PATIENCE, Job, Lane, Scheduler

LANES = {Lane("m", 64, 64, 77): 1.0, Lane("m", 96, 96, 77): 2.25}
STEPS = (4, 50)
AROUND = 1.0
"""Cost of what comes before and after a request's steps, in steps."""


def arrivals(count: int, load: float, seed: int) -> list[Job]:
    """Requests that come at this share of what the device can draw one by one."""
    draw = random.Random(seed)
    alone = sum((steps + AROUND) * cost for steps in STEPS for cost in LANES.values()) / (len(STEPS) * len(LANES))
    now, jobs = 0.0, []
    for number in range(count):
        now += draw.expovariate(load / alone)
        jobs.append(Job(str(number), draw.choice(list(LANES)), 1, draw.choice(STEPS), now))
    return jobs


def simulate(jobs: Sequence[Job], most: int, patience: float, gain: float) -> dict[int, list[float]]:
    """The time that each request takes, by its steps."""
    scheduler = Scheduler({"m": most}, patience)
    taken: dict[int, list[float]] = defaultdict(list)
    now, coming = 0.0, list(reversed(jobs))
    while coming or len(scheduler):
        while coming and coming[-1].came <= now:
            scheduler.add(coming.pop())
        turn = scheduler.next_turn()
        if turn is None:
            now = coming[-1].came
            continue
        cost = LANES[turn.lane]
        step = cost * (1 + (turn.pictures - 1) * (1 - gain))
        scheduler.stepped(turn, step)
        now += step
        for job in turn.jobs:
            now += cost * AROUND / 2 * ((not job.begun) + (job.steps_left == 1))
            job.begun = True
            job.steps_left -= 1
            if not job.steps_left:
                scheduler.remove(job.id)
                taken[job.steps].append(now - job.came)
    return taken


def main() -> None:
    """Print median and 99th percentile of short and long requests, for each way to schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--gain", type=float, default=0.0)
    parser.add_argument("--requests", type=int, default=4000)
    given = parser.parse_args()
    for name, most, patience in (
        ("first come, first served", 1, 0.0),
        ("latentrt serve, batches of 1", 1, PATIENCE),
        ("latentrt serve, batches of 4", 4, PATIENCE),
    ):
        taken = simulate(arrivals(given.requests, given.load, 1), most, patience, given.gain)
        figures = []
        for steps, values in sorted(taken.items()):
            ordered = sorted(values)
            p50, p99 = (ordered[int(share * len(ordered))] for share in (0.5, 0.99))
            figures.append(f"{steps} steps: p50 {p50:.0f}, p99 {p99:.0f}")
        print(f"{name}: {'; '.join(figures)}")


if __name__ == "__main__":
    main()
