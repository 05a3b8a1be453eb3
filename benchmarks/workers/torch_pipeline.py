"""diffusers as a contender: eager, compiled by torch, or compiled by stable-fast."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.benchmarks.workers.measure import (
    Clock,
    HostStamp,
    Memory,
    TorchStamp,
    peak_memory,
    reset_peak_memory,
    restrict_threads,
)

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
"""diffusers' scheduler for each of latentrt's samplers; latentrt itself may not be installed here."""

FLOAT32_INPUTS = ("timestep", "time_ids")
"""Inputs that are float32 in every precision."""


def watch(pipeline: Any, clock: Clock) -> None:
    """Let the clock note the end of text encoding: the pipeline has a callback only for steps."""
    encode = pipeline.encode_prompt

    def encode_prompt(*arguments: Any, **options: Any) -> Any:
        result = encode(*arguments, **options)
        clock.mark("text")
        return result

    pipeline.encode_prompt = encode_prompt


def draw(pipeline: Any, clock: Clock, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Draw one request with a diffusers pipeline. Returns the clock's timing and the pictures."""
    import torch

    def stepped(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        clock.step()
        return values

    generator = torch.Generator("cpu").manual_seed(request["seed"])
    clock.start()
    pictures = pipeline(
        prompt=request["prompt"],
        negative_prompt=request["negative"],
        num_inference_steps=request["steps"],
        guidance_scale=request["guidance"],
        width=request["width"],
        height=request["height"],
        num_images_per_prompt=request["images"],
        generator=generator,
        callback_on_step_end=stepped,
    ).images
    return clock.stop("decode"), pictures


class Diffusers:
    """A diffusers pipeline, or one of its networks."""

    def __init__(self) -> None:
        self.pipeline: Any = None
        self.module: Any = None
        self.clock = Clock(HostStamp, lambda: None)
        self.memory = Memory()
        self.device = "cpu"
        self.notes: list[str] = []

    def load(
        self,
        *,
        checkpoint: str,
        precision: str,
        device: str,
        threads: int,
        sampler: str,
        component: str = "",
        compile: bool = False,  # named as in the table of contenders
        stable_fast: bool = False,
        **_others: Any,
    ) -> dict[str, Any]:
        """Load the checkpoint in the scenario's precision, and compile it if asked."""
        restrict_threads(threads)
        import diffusers
        import torch

        if device == "cpu":
            torch.set_num_threads(threads or torch.get_num_threads())
        elif precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # the reference is exact float32
        self.device = device
        self.memory = Memory(self._free)
        self.clock = self._clock()
        pipeline = load_pipeline(checkpoint, precision, sampler).to(device)
        pipeline.set_progress_bar_config(disable=True)
        if compile:
            self.notes.append(compile_networks(pipeline, device))
        if stable_fast:
            pipeline = stable_fast_pipeline(pipeline)
        if component:
            self.module = component_module(pipeline, component)
        watch(pipeline, self.clock)
        self.pipeline = pipeline
        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        return {"versions": versions, "memory": peak_memory(), "notes": self.notes}

    def begin(self) -> None:
        """Note that the warm-up is over."""
        reset_peak_memory()

    def sample(self, *, request: dict[str, Any], picture: str | None = None) -> dict[str, Any]:
        """Time one request; its first picture is saved to `picture`."""
        timing, pictures = draw(self.pipeline, self.clock, request)
        if picture:
            pictures[0].save(picture)
        return timing | self.memory.used()

    def run_component(
        self, *, inputs: str, sizes: dict[str, int], output: str, result: str | None = None
    ) -> dict[str, Any]:
        """Time one run of the component on the arrays of an `.npz` file; its first output is saved to `result`."""
        import torch

        dtype = next(self.module.parameters()).dtype
        with np.load(inputs, allow_pickle=False) as arrays, torch.no_grad():
            values = {}
            for name in arrays:
                tensor = torch.from_numpy(arrays[name]).to(self.device)
                keeps = name in FLOAT32_INPUTS or not tensor.is_floating_point()
                values[name] = tensor if keeps else tensor.to(dtype)
            self.clock.start()
            found = self.module(**values)
            timing = self.clock.stop("component")
        if result:
            first = found[0] if isinstance(found, tuple) else found
            np.save(result, first.cpu().numpy())
        return timing | self.memory.used()

    def _clock(self) -> Clock:
        if self.device == "cpu":
            return Clock(HostStamp, lambda: None)
        import torch

        return Clock(TorchStamp, torch.cuda.synchronize)

    def _free(self) -> int | None:
        if self.device == "cpu":
            return None
        import torch

        return int(torch.cuda.mem_get_info()[0])


def load_pipeline(checkpoint: str, precision: str, sampler: str) -> Any:
    """The checkpoint's own pipeline with the sampler's scheduler."""
    import diffusers
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    kinds = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(Path(checkpoint), **kinds)
    scheduler = getattr(diffusers, SCHEDULERS[sampler])
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    return pipeline


def compile_networks(pipeline: Any, device: str) -> str:
    """Compile with settings that no other beat in benchmarks/compile_settings.py. Returns them in words."""
    import torch

    decode = pipeline.vae.decode
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    if device == "cpu":
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.freezing = True
        pipeline.unet = torch.compile(pipeline.unet, fullgraph=True)
        pipeline.vae.decode = torch.compile(decode, fullgraph=True)
        return "torch.compile(fullgraph=True), channels-last, freezing"
    pipeline.unet.fuse_qkv_projections()
    pipeline.unet = torch.compile(pipeline.unet, mode="max-autotune", fullgraph=True)
    pipeline.vae.decode = torch.compile(decode, mode="max-autotune", fullgraph=True)
    return 'torch.compile(mode="max-autotune", fullgraph=True), channels-last, fused q, k and v'


def stable_fast_pipeline(pipeline: Any) -> Any:
    """The pipeline compiled by stable-fast with its recommended settings."""
    compiler: Any = importlib.import_module("sfast.compilers.diffusion_pipeline_compiler")
    config = compiler.CompilationConfig.Default()
    config.enable_cuda_graph = True
    return compiler.compile(pipeline, config)


def component_module(pipeline: Any, component: str) -> Any:
    """One network of the pipeline with the ports that latentrt gives it; a VAE in float32 if its config says so."""
    from latentrt.export.modules import MODULES

    folder, wrapper = MODULES[component]
    network = getattr(pipeline, folder)
    if folder == "vae" and network.config.force_upcast:
        network.float()
    return wrapper(network).eval()
