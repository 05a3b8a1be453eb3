"""Measures the host's own work per step: the real pipelines with networks that take no time.

A request with few steps and one with many are timed. The difference in time divided by the difference in steps is the
host's cost per step, independent of what happens before and after the loop and of how the loop is built.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.benchmarks.context import Context
from latentrt.benchmarks.harness import NEGATIVE, PROMPT, SEED
from latentrt.benchmarks.models import write_checkpoint
from latentrt.benchmarks.results import HostRow
from latentrt.benchmarks.scenarios import Point, Scenario
from latentrt.benchmarks.workers.measure import restrict_threads
from latentrt.runtime import Pipeline
from latentrt.runtime.backends import Buffer
from latentrt.runtime.backends.host import HostBuffer
from latentrt.runtime.build_selection import select
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import ComponentSpec, Port
from latentrt.runtime.errors import BenchmarkError

REPEATS = 5
"""Requests per figure."""

NOT_FAILED = -1
"""Value of the sampler's `next_failed` for a picture without NaN or infinity."""


class IdleEngine:
    """An engine of any component whose runs do nothing."""

    def __init__(self, spec: ComponentSpec):
        self.spec = spec

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> "IdleBinding":
        """Buffers of zeros in host memory; `next_failed` says that no picture failed."""
        buffers = {port.name: shared.get(port.name) or _zeros(port, sizes) for port in self.spec.ports}
        if failed := buffers.get("next_failed"):
            failed.write(np.full(failed.shape, NOT_FAILED, failed.dtype))
        return IdleBinding(buffers)

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


@dataclass(frozen=True, slots=True)
class IdleBinding:
    """Buffers, and a run that does nothing."""

    buffers: Mapping[str, Buffer]

    def run(self) -> None:
        """Do nothing."""


def _zeros(port: Port, sizes: Mapping[str, int]) -> Buffer:
    return HostBuffer(port.shape(sizes), port.numpy_dtype)


def idle_pipeline(bundle: Path) -> Pipeline:
    """The runtime's pipeline with engines that do nothing."""
    opened = Bundle.open(bundle)
    selection = select(opened, "onnxruntime", "cpu")
    specs = opened.manifest.specs(selection.limits)
    return Pipeline(opened, selection, selection.open(), {name: IdleEngine(spec) for name, spec in specs.items()})


def idle_diffusers(checkpoint: Path) -> Any:
    """The pipeline of diffusers with a U-Net that does nothing; no other network of it is run in the timed requests."""
    import torch

    from latentrt.benchmarks.workers.torch_pipeline import load_pipeline

    pipeline = load_pipeline(str(checkpoint), "fp32", "euler")
    pipeline.set_progress_bar_config(disable=True)
    answers: dict[torch.Size, torch.Tensor] = {}

    def forward(sample: torch.Tensor, *_arguments: Any, **_options: Any) -> tuple[torch.Tensor]:
        if sample.shape not in answers:
            answers[sample.shape] = torch.zeros_like(sample)
        return (answers[sample.shape],)

    pipeline.unet.forward = forward
    return pipeline


class HostWork:
    """The worker for both pipelines: `load` one, then time requests."""

    def __init__(self) -> None:
        self.run: Any = None

    def load(self, *, contender: str, model: str, bundle: str, threads: int) -> dict[str, Any]:
        """Load the pipeline of `latentrt` or `diffusers`, with networks that do nothing."""
        restrict_threads(threads)
        if contender == "latentrt":
            ours = idle_pipeline(Path(bundle))
            self.run = lambda request: ours.generate(PROMPT, negative=NEGATIVE, seed=SEED, **request)
        else:
            self.run = self._diffusers(write_checkpoint(model))
        return {}

    def _diffusers(self, checkpoint: Path) -> Any:
        import torch

        pipeline = idle_diffusers(checkpoint)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        with torch.no_grad():
            prompts = dict(zip(names, pipeline.encode_prompt(PROMPT, negative_prompt=NEGATIVE), strict=True))

        def run(request: dict[str, Any]) -> Any:
            return pipeline(
                **prompts,
                output_type="latent",
                num_inference_steps=request["steps"],
                guidance_scale=request["guidance"],
                width=request["width"],
                height=request["height"],
                generator=torch.Generator("cpu").manual_seed(SEED),
            )

        return run

    def seconds(self, *, request: dict[str, Any]) -> float:
        """The least seconds of several requests: other load on the machine only ever adds time."""
        found = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            self.run(request)
            found.append(time.perf_counter() - started)
        return min(found)


def run(scenario: Scenario, context: Context) -> None:
    """Time short and long requests of both pipelines in turns; the slope is the host's time per step."""
    short, long = scenario.points
    names = [contender.name for contender in context.entrants(scenario)]
    with ExitStack() as stack:
        prepare = stack.enter_context(context.worker(scenario.name, "prepare", "workers.prepare:Prepare"))
        bundle = context.bundle(prepare, scenario)["path"]
        prepare.close()
        workers = {}
        for name in names:
            worker = stack.enter_context(context.worker(scenario.name, name, "host_work:HostWork"))
            try:
                inputs = {"model": scenario.model, "bundle": bundle, "threads": context.options.threads}
                worker.call("load", contender=name, **inputs)
                for point in (short, long):
                    worker.call("seconds", request=_request(point))
            except BenchmarkError as error:
                context.fail(scenario, name, error, worker.log.name)
            else:
                workers[name] = worker
        figures: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(scenario.rounds):
            for name, worker in workers.items():
                few, many = (worker.call("seconds", request=_request(point)) for point in (short, long))
                figures[name].append((many - few) / (long.steps - short.steps))
    for name, per_step in figures.items():
        context.write(HostRow(scenario.name, name, tuple(per_step), (short.steps, long.steps)))


def _request(point: Point) -> dict[str, Any]:
    return {name: getattr(point, name) for name in ("steps", "guidance", "width", "height")}
