"""Every family from checkpoint to picture, against diffusers' pipeline of that family; and their U-Nets as engines."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from checkpoints import write_checkpoint
from command_line import run_main
from families import FAMILIES
from json_files import edit_json

from latentrt.engine.base import Job
from latentrt.engine.tensorrt import TensorRTBuilder
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.checks.bundle_verification import diffusers_pictures, diffusers_pipeline
from latentrt.export.component import ComponentExporter
from latentrt.export.modules import MODULES
from latentrt.runtime import Pipeline
from latentrt.runtime.backends.targets import RTX_DEFAULT
from latentrt.runtime.bundle.atomic_files import MANIFEST
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import ComponentSpec, Precision

TOLERANCE = 2
"""Of 255, as in test_pipeline_parity.py."""

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "unipc": "UniPCMultistepScheduler",
}

DEFAULT_RUN = ("sd2-v", "sdxl-refiner")
DRAWN = [
    name if name in DEFAULT_RUN else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
    if not name.endswith("inpaint") and name != "sdxl"  # test_pipeline_parity.py draws sdxl
]

PROMPT = "a photo of an astronaut riding a horse"
REQUESTS: tuple[dict[str, Any], ...] = (
    {},
    {"sampler": "euler", "steps": 7, "guidance": 3.0, "negative": "blurry, low quality"},
    {"sampler": "ddim", "steps": 10, "guidance": 1.0, "width": 72, "height": 88},
    {"sampler": "dpmpp_2m", "steps": 6, "guidance": 7.5, "images": 3},
    {"sampler": "lcm", "steps": 4, "negative": ""},
)
"""What is not named is the bundle's default."""

COMPONENTS = ("unet", "vae_decoder", "vae_encoder", "sampler")

Both = tuple[Pipeline, Any]


@pytest.fixture(scope="module", params=DRAWN)
def both(request: pytest.FixtureRequest, family: Callable[[str], tuple[Path, Path]]) -> Iterator[Both]:
    """Our pipeline and diffusers' for one family."""
    checkpoint, bundle = family(request.param)
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        yield pipeline, diffusers_pipeline(Checkpoint.open(checkpoint))


def pixels(images: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def draw(both: Both, ours: dict[str, Any], theirs: dict[str, Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The same request drawn by latentrt and by diffusers; `theirs` holds what diffusers calls otherwise."""
    pipeline, peer = both
    result = pipeline.generate(PROMPT, seed=11, **ours)
    request = result.request
    peer.scheduler = getattr(diffusers, SCHEDULERS[request.sampler]).from_config(peer.scheduler.config)
    same = {
        "prompt": PROMPT,
        "negative_prompt": request.negatives[0],
        "guidance_scale": request.guidance[0],
        "num_images_per_prompt": request.images,
    }
    size = {"width": request.width, "height": request.height, "steps": request.steps}
    wanted = diffusers_pictures(peer, seed=11, **size, **(same | (theirs or {})))
    return pixels(result.images), pixels(wanted)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_pictures_equal_diffusers(both: Both, request_: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    found, wanted = draw(both, request_)
    assert found.std() > 5, "a flat picture would agree with anything"
    with capsys.disabled():
        print(f" {both[0].bundle.path.parent.name} {request_}: {np.abs(found - wanted).max()}/255")
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip(both: Both, clip_skip: int) -> None:
    allow_clip_skip(both[1])
    found, wanted = draw(both, {"steps": 4, "clip_skip": clip_skip}, {"clip_skip": clip_skip})
    assert np.abs(found - wanted).max() <= TOLERANCE
    assert np.abs(found - draw(both, {"steps": 4})[0]).max() > 10 * TOLERANCE


def allow_clip_skip(peer: Any) -> None:
    """transformers 5 has no inner `text_model` any more, which diffusers' code for SD asks for."""
    for name in ("text_encoder", "text_encoder_2"):
        if encoder := getattr(peer, name, None):
            object.__setattr__(encoder, "text_model", getattr(encoder, "text_model", encoder))


def test_aesthetic_scores(family: Callable[[str], tuple[Path, Path]]) -> None:
    checkpoint, bundle = family("sdxl-refiner")
    scores = {"aesthetic_score": 8.5, "negative_aesthetic_score": 1.0}
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        both = pipeline, diffusers_pipeline(Checkpoint.open(checkpoint))
        found, wanted = draw(both, {"steps": 4} | scores, scores)
        plain, _ = draw(both, {"steps": 4})
    assert np.abs(found - wanted).max() <= TOLERANCE
    assert np.abs(found - plain).max() > 10 * TOLERANCE


# SDXL base, whose bundle the other tests have made already


@pytest.fixture
def sdxl(sdxl_checkpoint: Path, sdxl_copy: Path) -> tuple[Path, Any]:
    """A copy of the bundle and a pipeline of diffusers, both of which may be changed."""
    return sdxl_copy, diffusers_pipeline(Checkpoint.open(sdxl_checkpoint))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"prompt_2": "two children in a field"}, {"prompt_2": "two children in a field"}),
        ({"negative": "rain", "negative_2": "blue"}, {"negative_prompt_2": "blue"}),
        # diffusers draws zeros for both where only the second is given
        ({"negative_2": "blue"}, {"negative_prompt": "", "negative_prompt_2": "blue"}),
        ({"prompt_2": "a cat", "negative": "", "images": 2}, {"prompt_2": "a cat"}),
        ({"clip_skip": 1}, {"clip_skip": 1}),
        ({"clip_skip": 1, "negative": PROMPT, "prompt_2": "a cat"}, {"clip_skip": 1, "prompt_2": "a cat"}),
    ],
    ids=str,
)
def test_second_prompts_and_clip_skip_of_two_encoders(
    sdxl: tuple[Path, Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    bundle, peer = sdxl
    plain = {name: value for name, value in ours.items() if name in ("negative", "images")}
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        found, wanted = draw((pipeline, peer), {"steps": 4} | ours, theirs)
        assert np.abs(found - draw((pipeline, peer), {"steps": 4} | plain)[0]).max() > 10 * TOLERANCE
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize(("sampler", "steps"), [("euler_a", 1), ("euler_a", 4), ("euler", 2), ("euler", 8), ("lcm", 4)])
def test_few_steps_on_a_trailing_schedule(sdxl: tuple[Path, Any], sampler: str, steps: int) -> None:
    """Turbo and Lightning checkpoints are SDXL with this schedule and without guidance."""
    bundle, peer = sdxl
    change_model(bundle, lambda model: model["scheduler"].update(timestep_spacing="trailing"))
    peer.scheduler.register_to_config(timestep_spacing="trailing")
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        found, wanted = draw((pipeline, peer), {"steps": steps, "sampler": sampler, "guidance": 1.0})
    assert np.abs(found - wanted).max() <= TOLERANCE


def test_latents_with_a_mean_and_a_spread(sdxl: tuple[Path, Any]) -> None:
    bundle, peer = sdxl
    moments = {"latents_mean": [0.5, -1.0, 0.25, 1.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
    change_model(bundle, lambda model: model.update(moments))
    peer.vae.register_to_config(**moments)
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        found, wanted = draw((pipeline, peer), {"steps": 4})
    assert np.abs(found - wanted).max() <= TOLERANCE


def change_model(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(bundle / MANIFEST, lambda manifest: change(manifest["model"]))


# The commands


@pytest.mark.parametrize("name", DRAWN)
def test_verify_and_inspect(
    family: Callable[[str], tuple[Path, Path]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = family(name)
    verified = run_main(capsys, "verify", bundle, "--reference", checkpoint, "--backend", "onnxruntime")
    assert (verified.exit, verified.result["differences"]) == (0, [])
    assert {*COMPONENTS, "picture"} <= {figure["component"] for figure in verified.result["figures"]}
    inspected = run_main(capsys, "inspect", bundle)
    assert inspected.result["manifest"]["model"]["family"] == Checkpoint.open(checkpoint).model.family


def test_options_of_the_command_line(
    family: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, bundle = family("sdxl-refiner")
    command = ["generate", bundle, PROMPT, "--steps", "2", "--seed", "1", "--backend", "onnxruntime", "-o"]
    scores = ["--aesthetic-score", "9", "--negative-aesthetic-score", "1", "--clip-skip", "1"]
    for name, options in (("plain.png", []), ("changed.png", scores)):
        assert run_main(capsys, *command, tmp_path / name, *options).exit == 0
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "changed.png").read_bytes()
    refused = run_main(capsys, *command, tmp_path / "none.png", "--prompt-2", "a cat", "--negative-2", "a dog")
    assert refused.exit == 1
    assert "prompt_2, negative_2: this model has one text encoder" in refused.error


@pytest.mark.slow
def test_an_inpainting_bundle_is_verified_but_draws_nothing_from_text(
    family: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, bundle = family("sd15-inpaint")
    verified = run_main(capsys, "verify", bundle, "--reference", checkpoint, "--backend", "onnxruntime")
    assert (verified.exit, verified.result["passed"]) == (0, True)
    assert "no picture is compared: the model is for inpainting" in verified.error
    assert {figure["component"] for figure in verified.result["figures"]} == {*COMPONENTS, "text_encoder"}
    drawn = run_main(capsys, "generate", bundle, PROMPT, "--backend", "onnxruntime")
    assert drawn.exit == 1
    assert "this model is for inpainting: its U-Net takes 9 channels" in drawn.error


# Components on their own


def export_component(checkpoint: Path, folder: Path, name: str, precision: Precision) -> tuple[ComponentSpec, Path]:
    """One component, compared with torch."""
    opened = Checkpoint.open(checkpoint)
    specs = component_specs(opened.model, Limits.around(opened.model.native_size), dict.fromkeys(MODULES, precision))
    record = ComponentExporter(opened, folder, precision, "quick").export(specs[name], precision)
    assert record.parity
    return specs[name], folder / record.files[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "sd15-inpaint" else pytest.mark.slow) for name in FAMILIES]
)
def test_unets_build_with_tensorrt_rtx(name: str, tmp_path: Path) -> None:
    """In fp16, which the builder proves of every convolution, matrix product and attention of the parsed network."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", name)
    spec, file = export_component(checkpoint, tmp_path, "unet", "fp16")
    assert spec.inputs[0].axes[1].offset == (9 if name.endswith("inpaint") else 4)
    built = TensorRTBuilder("tensorrt-rtx", RTX_DEFAULT).build(
        Job(spec, "fp16", file, tmp_path, "unet", lambda phase: None)
    )
    assert built.layers["CONVOLUTION float16"] > 10
    assert (tmp_path / "unet.engine").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("component", "precision"),
    [
        ("vae_decoder", "fp32"),
        pytest.param("vae_encoder", "fp32", marks=pytest.mark.slow),
        pytest.param("vae_decoder", "fp16", marks=pytest.mark.slow),
        pytest.param("vae_encoder", "fp16", marks=pytest.mark.slow),
    ],
)
def test_a_vae_without_quant_convolutions(component: str, precision: Precision, tmp_path: Path) -> None:
    """Two resolutions: two pixels per latent."""
    vae = {"use_quant_conv": False, "use_post_quant_conv": False, "block_out_channels": [16, 32]}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "sd15", vae=vae)
    spec, _ = export_component(checkpoint, tmp_path, component, precision)
    sizes = spec.sizes("min")
    image = next(port for port in spec.ports if port.name == "image").shape(sizes)
    assert 2 * sizes["latent_width"] in image
