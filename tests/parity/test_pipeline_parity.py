"""Pictures against diffusers: same checkpoint, prompt, seed and sampler, fp32 on the CPU."""

import itertools

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from sampler_cases import PEERED

from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.samplers import SAMPLERS

TOLERANCE = 2
"""Of 255: fp32 rounding differs by summation order, grows over the steps, and flips the rounding to bytes."""

GRID_SAMPLERS = ("ddim", "dpmpp_2m", "euler", "euler_a", "lcm", "unipc")
"""With and without history and noise, in both conventions: these meet every kind of request, the others one each."""

PROMPT = "a photo of an astronaut riding a horse"

CASES = tuple(
    itertools.product(
        GRID_SAMPLERS,
        (4, 10, 25),  # steps
        (1.0, 5.0),  # guidance
        ((128, 128), (144, 96), (168, 120)),  # square, 3:2, 8·odd: width, height
        (1, 3),  # images
        (None, "", "blurry, low quality"),  # negative prompt
    )
)
SAMPLE = CASES[::13]
"""13 shares no factor with any axis, so every value of every axis meets every sampler."""

Case = tuple[str, int, float, tuple[int, int], int, str | None]


def peer_images(peer: StableDiffusionXLPipeline, sampler: str, seed: int | list[int], **request: object) -> np.ndarray:
    known = SAMPLERS[sampler]
    original = peer.scheduler
    algorithm = {"algorithm_type": "sde-dpmsolver++"} if known.sde else {}
    peer.scheduler = getattr(diffusers, known.scheduler).from_config({**original.config, **algorithm})
    seeds = seed if isinstance(seed, list) else [seed]
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    generator = generators if isinstance(seed, list) else generators[0]
    try:
        images = peer(generator=generator, eta=known.defaults.get("eta", 0.0), **request).images
    finally:
        peer.scheduler = original
    return np.stack([np.asarray(image) for image in images])


def largest_difference(pipeline: Pipeline, peer: StableDiffusionXLPipeline, case: Case) -> int:
    sampler, steps, guidance, (width, height), images, negative = case
    ours = pipeline.generate(
        PROMPT,
        negative=negative,
        steps=steps,
        guidance=guidance,
        seed=11,
        width=width,
        height=height,
        images=images,
        sampler=sampler,
    )
    theirs = peer_images(
        peer,
        sampler,
        11,
        prompt=PROMPT,
        negative_prompt=negative,
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        num_images_per_prompt=images,
    )
    found = np.stack([np.asarray(image) for image in ours.images])
    assert found.shape == theirs.shape == (images, height, width, 3)
    assert found.std() > 5, "a flat picture would agree with anything"
    return int(np.abs(found.astype(int) - theirs.astype(int)).max())


def test_the_sample_meets_every_value_of_every_axis() -> None:
    for axis in range(len(CASES[0])):
        for sampler in GRID_SAMPLERS:
            assert {case[axis] for case in SAMPLE if case[0] == sampler} >= (
                {c[axis] for c in CASES} if axis else {sampler}
            )


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_pictures_equal_diffusers(sdxl_pipeline: Pipeline, sdxl_peer: StableDiffusionXLPipeline, case: Case) -> None:
    assert largest_difference(sdxl_pipeline, sdxl_peer, case) <= TOLERANCE


@pytest.mark.parametrize("sampler", [name for name in PEERED if name not in GRID_SAMPLERS])
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers hands torch tensors to numpy
def test_one_picture_of_each_other_sampler(
    sdxl_pipeline: Pipeline, sdxl_peer: StableDiffusionXLPipeline, sampler: str
) -> None:
    if sampler == "lms":
        pytest.importorskip("scipy", reason="diffusers needs scipy here")
    case = (sampler, 4, 5.0, (144, 96), 1, "blurry, low quality")
    assert largest_difference(sdxl_pipeline, sdxl_peer, case) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("sampler", GRID_SAMPLERS)
def test_pictures_equal_diffusers_over_the_whole_grid(
    sdxl_pipeline: Pipeline, sdxl_peer: StableDiffusionXLPipeline, sampler: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {case: largest_difference(sdxl_pipeline, sdxl_peer, case) for case in CASES if case[0] == sampler}
    with capsys.disabled():
        print(f"\n{sampler}: largest difference {max(found.values())}/255 over {len(found)} requests")
    assert {case: value for case, value in found.items() if value > TOLERANCE} == {}


def test_several_prompts_with_a_seed_each(sdxl_pipeline: Pipeline, sdxl_peer: StableDiffusionXLPipeline) -> None:
    prompts, seeds = ["a red circle", "a small house beside a lake"], [3, 5]
    ours = sdxl_pipeline.generate(prompts, negative=["blue", "rain"], seed=seeds, steps=6, sampler="euler_a")
    theirs = peer_images(
        sdxl_peer,
        "euler_a",
        seeds,
        prompt=prompts,
        negative_prompt=["blue", "rain"],
        num_inference_steps=6,
        guidance_scale=5.0,
    )
    found = np.stack([np.asarray(image) for image in ours.images]).astype(int)
    assert np.abs(found - theirs).max() <= TOLERANCE


def test_micro_conditioning(sdxl_pipeline: Pipeline, sdxl_peer: StableDiffusionXLPipeline) -> None:
    ours = sdxl_pipeline.generate(
        PROMPT, seed=2, steps=6, sampler="euler", original_size=(64, 80), crop=(16, 24), target_size=(120, 112)
    )
    theirs = peer_images(
        sdxl_peer,
        "euler",
        2,
        prompt=PROMPT,
        num_inference_steps=6,
        guidance_scale=5.0,
        original_size=(64, 80),
        crops_coords_top_left=(16, 24),
        target_size=(120, 112),
    )
    plain = sdxl_pipeline.generate(PROMPT, seed=2, steps=6, sampler="euler")
    found = np.asarray(ours.images[0]).astype(int)
    assert np.abs(found - theirs[0]).max() <= TOLERANCE
    assert np.abs(found - np.asarray(plain.images[0])).max() > 10 * TOLERANCE


def test_a_prompt_of_two_chunks_equals_its_embeddings_in_diffusers(
    sdxl_pipeline: Pipeline, sdxl_peer: StableDiffusionXLPipeline
) -> None:
    """diffusers cuts long prompts, but takes embeddings: the two chunks side by side, pooled text of the first."""
    long = " ".join(["a red circle on a blue background"] * 11)
    tokens = {"tokenizer": sdxl_peer.text_encoder, "tokenizer_2": sdxl_peer.text_encoder_2}
    hidden, pooled = [], None
    for name, encoder in tokens.items():
        rows = torch.from_numpy(sdxl_pipeline._work.prompts.tokenizers[name].chunks(long))
        assert rows.shape == (2, 77)
        with torch.no_grad():
            output = encoder(rows, output_hidden_states=True)
        hidden.append(output.hidden_states[-2].reshape(1, 154, -1))
        pooled = getattr(output, "text_embeds", None)
    embeds = torch.cat(hidden, -1)
    assert pooled is not None
    theirs = peer_images(
        sdxl_peer,
        "euler",
        4,
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled[:1],
        negative_prompt_embeds=torch.zeros_like(embeds),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled[:1]),
        num_inference_steps=6,
        guidance_scale=5.0,
    )
    ours = sdxl_pipeline.generate(long, seed=4, steps=6, sampler="euler")
    assert np.abs(np.asarray(ours.images[0]).astype(int) - theirs[0]).max() <= TOLERANCE
