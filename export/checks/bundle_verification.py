"""Comparison of a bundle with its checkpoint: facts, tokenizers, every component's numbers, and one picture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTokenizer

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks import parity
from latentrt.export.modules import component_vocabulary, reference_module
from latentrt.export.sample_inputs import sample_inputs
from latentrt.export.sampler_graph import sampler_reference
from latentrt.export.session import rounded
from latentrt.export.tolerance import TOLERANCE, relative_error
from latentrt.runtime.backends import Backend
from latentrt.runtime.bundle.specs import ComponentSpec, Precision
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.samplers import SAMPLERS
from latentrt.runtime.text.tokenizer import Tokenizer

TEXTS = (
    "",
    "a photo of an astronaut riding a horse on the moon, dramatic lighting",
    "Großmutters Käse: 12.5 €, isn't it?! 🧀 日本語",
    "green star, left " * 40,
)

PICTURE_PSNR: Mapping[Precision, float] = {
    "fp32": 50.0,  # rounding to bytes alone gives 59 dB where every pixel is off by 0.29 levels
    "fp16": 25.0,  # errors of the single steps add up, more in networks that amplify them
    "bf16": 15.0,
}
"""Smallest allowed peak signal-to-noise ratio of the whole picture against diffusers in fp32, in decibels."""

SAMPLER_TOLERANCE = 1e-3
"""The sampler computes in fp32 in every bundle; only the U-Net's next input is rounded, to 5e-4 in fp16."""

NEGATIVE = "blurry, low quality"
PICTURE_STEPS = 8
PICTURE_SEED = 17


@dataclass(frozen=True, slots=True)
class Figure:
    """One comparison. `relative`: the `relative_error`; `psnr`: in decibels, of images alone."""

    component: str
    case: str
    output: str
    max_abs: float
    relative: float
    cosine: float
    psnr: float | None
    allowed: str
    passed: bool


def verify_facts(pipeline: Pipeline, checkpoint: Checkpoint) -> list[str]:
    """List where the manifest or a tokenizer differs from the checkpoint; empty if all agree."""
    facts, expected = pipeline.bundle.manifest.model.model_dump(), checkpoint.model.model_dump()
    differences = [
        f"{name} is {facts[name]} in the bundle, {expected[name]} in the checkpoint"
        for name in expected
        if facts[name] != expected[name]
    ]
    for encoder in checkpoint.model.text_encoders:
        ours = Tokenizer.load(pipeline.bundle.path / encoder.tokenizer)
        theirs = checkpoint.tokenizer(encoder.tokenizer)
        for text in TEXTS:
            if not np.array_equal(ours.chunks(text), theirs.chunks(text)):
                differences.append(
                    f"{encoder.tokenizer} gives other tokens than the checkpoint's, first for {text[:30]!r}"
                )
                break
    return differences


def verify_components(pipeline: Pipeline, checkpoint: Checkpoint, backend: Backend) -> Iterator[Figure]:
    """Run every component of the pipeline's build at the quick cases and compare with torch in fp32."""
    manifest = pipeline.bundle.manifest
    for name, spec in manifest.specs(pipeline.limits).items():
        tolerance = SAMPLER_TOLERANCE if name == "sampler" else TOLERANCE[manifest.components[name].precision]
        cases = list(_reference(checkpoint, spec))
        engine = pipeline.selection.load_component(backend, spec)
        try:
            for case, inputs in cases:
                binding = engine.bind(case.sizes)
                for port in spec.inputs:
                    binding.buffers[port.name].write(inputs[port.name])
                binding.run()
                for port, reference in zip(spec.outputs, case.outputs, strict=True):
                    values = binding.buffers[port.name].numpy()
                    yield measure(name, case.name, port.name, values, reference, tolerance)
        finally:
            engine.close()


def _reference(checkpoint: Checkpoint, spec: ComponentSpec) -> Iterator[tuple[parity.Case, dict[str, NDArray[Any]]]]:
    """Yield every quick case with its inputs and torch's fp32 outputs; for the sampler, those of its equations."""
    if spec.name == "sampler":
        for name, sizes in parity.case_sizes(spec, "quick"):
            inputs = sampler_inputs(spec, sizes)
            yield parity.Case(name, sizes, sampler_reference(inputs)), inputs
        return
    vocabulary, module = component_vocabulary(checkpoint, spec.name), reference_module(checkpoint, spec.name)
    for case in parity.reference_cases(module, spec, vocabulary, "quick"):
        tensors = sample_inputs(spec, case.sizes, vocabulary)
        yield case, {name: tensor.numpy() for name, tensor in tensors.items()}


def sampler_inputs(spec: ComponentSpec, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Make random tables and states with valid steps and rows, rounded to the dtypes of the ports."""
    random = np.random.default_rng(0)
    inputs = {port.name: rounded(random.standard_normal(port.shape(sizes)), port) for port in spec.inputs}
    inputs["step"] = random.integers(0, sizes["steps"], sizes["images"])
    inputs["failed"] = np.full(sizes["images"], -1)
    inputs["row_image"] = np.arange(sizes["rows"]) % sizes["images"]
    inputs["text_row"] = sizes["rows"] - 1 - np.arange(sizes["images"])
    inputs["draws"] = random.integers(0, sizes["noises"], (sizes["images"], sizes["steps"] + 1))
    inputs["mask"] = random.uniform(0, 1, inputs["mask"].shape).astype(np.float32)
    return inputs


def measure(
    component: str, case: str, output: str, values: NDArray[Any], reference: NDArray[Any], tolerance: float
) -> Figure:
    """Compare one output with its reference."""
    values, reference = values.astype(np.float64), reference.astype(np.float64)
    difference = values - reference
    relative = relative_error(values, reference)
    norms = float(np.linalg.norm(values) * np.linalg.norm(reference)) or 1.0
    return Figure(
        component=component,
        case=case,
        output=output,
        max_abs=float(np.abs(difference).max()),
        relative=relative,
        cosine=float(np.vdot(values, reference)) / norms,
        psnr=_psnr(difference) if output == "image" else None,
        allowed=f"relative {tolerance:.0e}",
        passed=relative <= tolerance,
    )


def _psnr(difference: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio of bytes, in decibels; infinite if nothing differs."""
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def verify_picture(pipeline: Pipeline, checkpoint: Checkpoint) -> Figure:
    """Compare one whole request with the diffusers pipeline in fp32: same prompt, seed, schedule and steps."""
    precision = pipeline.bundle.manifest.precision
    ours = pipeline.generate(TEXTS[1], negative=NEGATIVE, seed=PICTURE_SEED, steps=PICTURE_STEPS)
    request = ours.request
    theirs = diffusers_pictures(
        diffusers_pipeline(checkpoint),
        width=request.width,
        height=request.height,
        steps=request.steps,
        seed=PICTURE_SEED,
        prompt=TEXTS[1],
        negative_prompt=NEGATIVE,
        guidance_scale=request.guidance[0],
        eta=SAMPLERS[request.sampler].defaults.get("eta", 0.0),  # the pipeline passes 0 on to every class that has it
    )
    figure = measure(
        "picture", f"{request.width}x{request.height}", "image", _pixels(ours.images), _pixels(theirs), 1.0
    )
    least = PICTURE_PSNR[precision]
    passed = figure.psnr is not None and figure.psnr >= least
    return replace(figure, allowed=f"{least:.0f} dB", passed=passed)


def _pixels(images: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(image) for image in images])


def diffusers_pipeline(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint as a pipeline of diffusers, in fp32; random weights are the same as in the export."""
    model = checkpoint.model
    schedule = dict(model.scheduler)
    parts: dict[str, Any] = {"scheduler": getattr(diffusers, schedule["_class_name"]).from_config(schedule)}
    parts |= {folder: checkpoint.network(folder, torch.float32) for folder in checkpoint.folders}
    with TemporaryDirectory() as folder:
        for name in (encoder.tokenizer for encoder in model.text_encoders):
            checkpoint.write_tokenizer(name, Path(folder) / name)
            parts[name] = CLIPTokenizer.from_pretrained(Path(folder) / name, local_files_only=True)
    if model.time_ids:
        absent = dict.fromkeys(("text_encoder", "tokenizer"))
        parts = absent | parts | {"force_zeros_for_empty_prompt": model.zero_negative, "add_watermarker": False}
        if "aesthetic_score" in model.time_ids:
            pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
        else:
            pipe = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = diffusers.StableDiffusionPipeline(**parts, **unchecked)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_pictures(pipe: Any, *, width: int, height: int, steps: int, seed: int, **request: Any) -> Any:
    """Draw from text alone with a pipeline of `diffusers_pipeline`; returns PIL images.

    diffusers has the refiner as image to image only: at full strength and with given first latents it reads no image.
    """
    request |= {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": steps}
    if not isinstance(pipe, diffusers.StableDiffusionXLImg2ImgPipeline):
        return pipe(width=width, height=height, **request).images
    count = request.get("num_images_per_prompt", 1)
    shape = (count, pipe.vae.config.latent_channels, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
    pipe.scheduler.set_timesteps(steps)
    latents = torch.randn(shape, generator=request["generator"]) * pipe.scheduler.init_noise_sigma
    return pipe(image=Image.new("RGB", (width, height)), strength=1.0, latents=latents, **request).images
