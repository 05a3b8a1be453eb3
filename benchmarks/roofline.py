"""The least time for a request: the work of each stage, counted in the graphs, at the machine's peaks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from latentrt.benchmarks.flops import Work, count
from latentrt.benchmarks.results import Peaks, StageWork
from latentrt.benchmarks.scenarios import Point, Scenario
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler


@dataclass(frozen=True, slots=True)
class StageRun:
    """A component, its sizes, and how many times a request runs it."""

    stage: str
    component: str
    sizes: Mapping[str, int]
    times: int


def stage_runs(bundle: Bundle, scenario: Scenario, point: Point) -> Iterator[StageRun]:
    """The components that a request runs, in order. Each text has one chunk of tokens."""
    model = bundle.manifest.model
    sizes = component_sizes(bundle, point)
    if scenario.kind == "component":
        yield StageRun("component", scenario.component, sizes, 1)
        return
    for encoder in model.text_encoders:
        yield StageRun("text", encoder.component, sizes, 1)
    table = compile_sampler(scenario.sampler, ScheduleConfig.from_diffusers(model.scheduler), point.steps)
    yield StageRun("denoise", "unet", sizes, table.step_count)
    yield StageRun("decode", "vae_decoder", sizes, point.images)


def component_sizes(bundle: Bundle, point: Point) -> dict[str, int]:
    """The size of every dim of any component, at one point."""
    branches = 2 if point.guidance > 1 else 1
    scale = bundle.manifest.model.latent_scale
    return {
        "texts": branches,
        "rows": branches * point.images,
        "tokens": TOKENS_PER_CHUNK,
        "latent_height": point.height // scale,
        "latent_width": point.width // scale,
        "vae_images": 1,
    }


def stage_work(bundle: Path, scenario: Scenario, point: Point, peaks: Peaks) -> list[StageWork]:
    """Work and least time of every stage of one request."""
    opened = Bundle.open(bundle)
    stages: dict[str, list[tuple[StageRun, Work]]] = {}
    for run in stage_runs(opened, scenario, point):
        stages.setdefault(run.stage, []).append((run, count(opened.onnx(run.component), run.sizes)))
    return [
        StageWork(
            scenario=scenario.name,
            point=point,
            stage=stage,
            evaluations=max(run.times for run, _ in parts),
            flops=sum(run.times * work.total_flops for run, work in parts),
            least_bytes=sum(run.times * work.least_bytes for run, work in parts),
            unfused_bytes=sum(run.times * (work.weight_bytes + work.activation_bytes) for run, work in parts),
            floor=sum(run.times * floor_seconds(work, scenario.precision, peaks) for run, work in parts),
        )
        for stage, parts in stages.items()
    ]


def floor_seconds(work: Work, precision: str, peaks: Peaks) -> float:
    """Least seconds of one run, if arithmetic and memory traffic overlap fully (Williams et al. 2009)."""
    arithmetic = work.total_flops / (peaks.tflops[precision] * 1e12)
    return max(arithmetic, work.least_bytes / (peaks.gigabytes * 1e9))
