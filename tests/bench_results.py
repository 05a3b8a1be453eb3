"""Results of a benchmark as a run leaves them: every kind of record, figures that are easy to check by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from latentrt.benchmarks.context import PICTURES
from latentrt.benchmarks.results import (
    RESULTS,
    BuildRow,
    Difference,
    Environment,
    Failure,
    Finished,
    HostRow,
    NotRun,
    Peaks,
    Record,
    Results,
    Row,
    Sample,
    StageWork,
)
from latentrt.benchmarks.scenarios import Point

POINT = Point(96, 96, steps=10)
GROWING = (Point(96, 96, steps=1), Point(96, 96, steps=10))
WALLS = {"latentrt": (1.0, 2.0, 3.0), "diffusers": (2.0, 6.0, 12.0)}
"""Ratios round by round: 2, 3, 4."""

ENVIRONMENT = Environment(
    started="2026-11-22T07:00:00+00:00",
    command="latentrt bench --quick",
    commit="0123456789ab",
    machine={"processor": "A <fast> processor", "cores": 2, "memory_gb": 24.0},
    gpus=({"name": "Some GPU", "driver_version": "580.1"},),
    versions={"torch": "2.13.0"},
    threads=2,
)


def row(contender: str, scenario: str = "race", point: Point = POINT) -> Row:
    """One contender's row."""
    walls = WALLS[contender]
    stages = [{"text": 0.1 * wall, "denoise": 0.8 * wall, "decode": 0.1 * wall} for wall in walls]
    return Row(
        scenario=scenario,
        contender=contender,
        point=point,
        samples=tuple(Sample(wall, parts, 0.01) for wall, parts in zip(walls, stages, strict=True)),
        first=9.0,
        load=4.0,
        memory_load=2 * 10**9,
        memory_run=10**9,
        memory_device=None,
        picture=f"race-{contender}.png",
        difference=Difference(1.0, 0.01, 70.0),
        versions={"torch": "2.13.0"},
        notes=("channels-last",),
    )


def finished(scenario: str, kind: str = "pictures", axis: str = "") -> Finished:
    """A scenario's last line."""
    command = f"latentrt bench --scenario {scenario}"
    return Finished(scenario, "Who is faster?", "demo", "fp32", "cpu", kind, axis, "euler", 12.5, command)


def records() -> tuple[Record, ...]:
    """A whole run: a comparison, a curve, a component, builds, host work, and one scenario that failed."""
    work = [StageWork("race", POINT, stage, 1, 10**9, 10**6, 10**7, 0.05) for stage in ("text", "denoise", "decode")]
    part = replace(row("latentrt", "part"), samples=(Sample(0.5, {"component": 0.5}),), picture="part.npy")
    return (
        ENVIRONMENT,
        Peaks("cpu", {"fp32": 0.3}, 30.0, "by hand"),
        *work,
        row("latentrt"),
        row("diffusers"),
        NotRun("race", "optimum", "not asked for"),
        finished("race"),
        *(row(name, "curve", point) for point in GROWING for name in WALLS),
        finished("curve", axis="steps"),
        part,
        finished("part", "component"),
        BuildRow(
            "forms",
            "latentrt",
            {"width": "96", "height": "96", "images": "1"},
            3.0,
            10**7,
            None,
            {"unet": (3.0, 10**7)},
            {"unet": {"Conv float16": 4, "Add float16": 9}},
        ),
        finished("forms", "build"),
        HostRow("host", "latentrt", (50e-6, 60e-6, 70e-6), (20, 120)),
        HostRow("host", "diffusers", (2e-3, 3e-3, 4e-3), (20, 120)),
        finished("host", "host"),
        Failure("broken", "diffusers", "diffusers: load: <out of memory>", "broken.log"),
        finished("broken"),
    )


GPU_ENVIRONMENT = replace(
    ENVIRONMENT,
    command="latentrt bench --gpu",
    gpus=(
        {
            "name": "NVIDIA GeForce RTX 4090",
            "compute_cap": "8.9",
            "driver_version": "580.95",
            "memory.total": "24564 MiB",
        },
    ),
    machine=ENVIRONMENT.machine | {"system": "Linux-6.8", "python": "3.12.1"},
    versions={"latentrt": "0.1.0", "torch": "2.13.0+cu130", "tensorrt": "11.4.0"},
)


def gpu_records() -> tuple[Record, ...]:
    """A run on a GPU: one comparison whose steps were captured, builds, a failure and a contender that cannot run."""
    where = {"precision": "fp16", "device": "cuda"}
    ours = replace(row("latentrt", "demo-gpu"), memory_device=5 * 10**8, captured=False)
    engines = {"unet_body": (70.0, 3 * 10**9), "vae_decoder": (20.0, 10**9)}
    return (
        GPU_ENVIRONMENT,
        BuildRow("demo-gpu", "latentrt-tensorrt", {"width": "96"}, 90.0, 4 * 10**9, None, engines, {}),
        ours,
        replace(ours, contender="latentrt-tensorrt", captured=True, difference=Difference(2.0, 0.02, 62.0)),
        row("diffusers", "demo-gpu"),
        NotRun("demo-gpu", "optimum", "not asked for; ask with --peers optimum"),
        NotRun("demo-gpu", "latentrt-tensorrt-rtx", "tensorrt-rtx has no engines for this GPU"),
        replace(finished("demo-gpu"), **where, reference="cpu"),
        BuildRow("forms", "latentrt-tensorrt", {"width": "96"}, 120.0, 4 * 10**9, 6 * 10**9, engines, {}),
        replace(finished("forms", "build"), **where),
        Failure("sdxl-base", "stable-fast", "stable-fast: load:\n" + "no such kernel " * 50, "stable-fast.log"),
        NotRun("sdxl-base", "latentrt-tensorrt-rtx", "tensorrt-rtx has no engines for this GPU"),
        replace(finished("sdxl-base"), **where),
    )


def write_run(folder: Path, lines: tuple[Record, ...] | None = None) -> Results:
    """A run's folder with pictures and results."""
    (folder / PICTURES).mkdir(parents=True)
    for name in WALLS:
        pixels = np.full((8, 8, 3), len(name), np.uint8)
        Image.fromarray(pixels).save(folder / PICTURES / f"race-{name}.png")
    chosen = records() if lines is None else lines
    (folder / RESULTS).write_text("".join(record.line() + "\n" for record in chosen), encoding="utf-8")
    return Results(chosen)
