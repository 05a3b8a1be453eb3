"""Every task of every family against diffusers, and what requests may say on tiny checkpoints.

The cases are those of the table in docs/parity.md.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from parity_table import PAGE, between_markers, table
from PIL import Image
from task_cases import DIFFERENT, PROMPT, ROWS, TOLERANCE, Case, Drawn, Models, cases, difference, stack
from task_cases import mask as a_mask
from task_cases import picture as a_picture

from latentrt.runtime import Ensemble, Pipeline, RequestError, generate_large
from latentrt.runtime.drawing.captured_step import CapturedStep
from latentrt.runtime.drawing.noise import TorchGenerator
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler

SIZE = {"width": 64, "height": 64}


def in_default_run(case: Case) -> bool:
    """One sampler that draws on every step, for the families that are exported anyway."""
    exported = ROWS[case.row].family in ("sdxl", "sdxl-refiner", "sd2-v")
    return exported and case.sampler == "euler_a" and case.strength in (None, 0.5)


ALIKE = [case for case in cases() if case not in DIFFERENT]
CASES = [case if in_default_run(case) else pytest.param(case, marks=pytest.mark.slow) for case in ALIKE]


@pytest.fixture(scope="module")
def models(family: Callable[[str], tuple[Path, Path]]) -> Iterator[Models]:
    models = Models(family)
    yield models
    models.close()


@pytest.fixture(scope="module")
def sdxl(models: Models) -> Pipeline:
    return models.ours("sdxl")


# Against diffusers


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers hands torch tensors to numpy
def test_pictures_equal_diffusers(models: Models, case: Case) -> None:
    assert difference(models, case) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(DIFFERENT, key=str), ids=str)
def test_what_differs_is_the_encoder_alone(
    models: Models, case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given what latentrt's encoder says, diffusers draws the same picture."""
    ours = models.ours(ROWS[case.row].family)

    def encode(pixels: torch.Tensor) -> Any:
        mean, deviation = (torch.from_numpy(values) for values in ours._work.vae.encode(pixels.numpy()))
        distribution = DiagonalGaussianDistribution(torch.cat([mean, 2 * deviation.log()], 1))
        return type("Encoded", (), {"latent_dist": distribution})

    apart = difference(models, case)
    monkeypatch.setattr(models.theirs(ROWS[case.row].family).vae, "encode", encode)
    given = difference(models, case)
    with capsys.disabled():
        print(f" {case}: {apart}/255, with latentrt's encoder in diffusers {given}/255")
    assert given <= max(TOLERANCE, apart // 3)


def test_the_table_has_every_family_and_task() -> None:
    wanted = table(lambda alike: f"n/255 ({len(alike)})")
    found = between_markers(PAGE.read_text(encoding="utf-8"))
    assert re.sub(r"\d+/255", "n/255", found) == wanted
    assert max(map(int, re.findall(r"(\d+)/255", found))) <= TOLERANCE


@pytest.mark.parametrize(("row", "rescale"), [("SDXL base", 0.7), ("SD 2, v", 1.0)])
def test_guidance_rescale_equals_diffusers(models: Models, row: str, rescale: float) -> None:
    drawn = Drawn(models, Case(row, "text to image", "ddim"))
    size = dict(zip(("width", "height"), drawn.size, strict=True))
    found = models.ours(ROWS[row].family).generate(PROMPT, guidance_rescale=rescale, **size, **drawn.our_settings())
    wanted = drawn.peer("")(guidance_rescale=rescale, **size, **drawn.their_settings()).images
    assert np.abs(stack(found.images) - stack(wanted)).max() <= TOLERANCE
    assert np.abs(stack(found.images) - stack(drawn.ours())).max() > 10 * TOLERANCE


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_several_pictures_from_several_starts_equal_diffusers(models: Models, kind: str) -> None:
    drawn = Drawn(models, Case("SDXL base", "image to image", "euler_a", 0.5))
    starts = [a_picture(*drawn.size), a_picture(*drawn.size).rotate(180)]
    masks = [a_mask(*drawn.size), a_mask(*drawn.size).rotate(180)]
    prompts = [PROMPT, "a red circle"]
    settings = {**drawn.our_settings(), "strength": 0.5, "image": starts}
    theirs = {**drawn.their_settings(), "strength": 0.5, "image": starts}
    theirs |= {"prompt": prompts, "negative_prompt": [theirs["negative_prompt"]] * 2}
    if kind == "Inpaint":
        settings |= {"mask": masks}
        theirs |= {"mask_image": masks, "width": drawn.size[0], "height": drawn.size[1]}
    found = models.ours("sdxl").generate(prompts, **settings).images
    assert np.abs(stack(found) - stack(drawn.peer(kind)(**theirs).images)).max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_two_pictures_from_one_start_equal_diffusers(models: Models, kind: str) -> None:
    drawn = Drawn(models, Case("SDXL base", "image to image", "euler_a", 0.5))
    start, mask = a_picture(*drawn.size), a_mask(*drawn.size)
    masks = {"mask": mask} if kind == "Inpaint" else {}
    found = models.ours("sdxl").generate(PROMPT, images=2, image=start, strength=0.5, **masks, **drawn.our_settings())
    theirs = {"image": start, "strength": 0.5, "num_images_per_prompt": 2, **drawn.their_settings()}
    if kind == "Inpaint":
        theirs |= {"mask_image": mask, "width": drawn.size[0], "height": drawn.size[1]}
    assert np.abs(stack(found.images) - stack(drawn.peer(kind)(**theirs).images)).max() <= TOLERANCE


# Batches


def test_a_batch_is_as_if_its_pictures_were_drawn_alone(sdxl: Pipeline) -> None:
    each: dict[str, list[Any]] = {
        "negative": ["blurry", None, "rain"],
        "guidance": [3.0, 1.0, 7.5],
        "seed": [3, 4, 2**40],
        "image": [a_picture(64, 64), a_picture(64, 64).rotate(90), Image.new("RGB", (64, 64), "red")],
        "mask": [a_mask(64, 64), a_mask(64, 64).rotate(180), Image.new("L", (64, 64), 255)],
    }
    prompts = ["a red circle", "a small house beside a lake", ""]
    same = {"steps": 5, "sampler": "euler_a", "strength": 0.7}
    together = sdxl.generate(prompts, **same, **each)
    for number, prompt in enumerate(prompts):
        alone = sdxl.generate(prompt, **same, **{name: values[number] for name, values in each.items()})
        np.testing.assert_allclose(together.latents[number], alone.latents[0], atol=1e-4 * np.abs(alone.latents).max())


def test_one_image_and_mask_serve_all_pictures(sdxl: Pipeline) -> None:
    shared = {"image": a_picture(64, 64), "mask": a_mask(64, 64)}
    same = {"images": 2, "seed": [1, 2], "steps": 3, "strength": 0.7, "sampler": "euler"}
    found = sdxl.generate(PROMPT, **same, **shared)
    wanted = sdxl.generate(PROMPT, **same, **{name: [value, value] for name, value in shared.items()})
    np.testing.assert_array_equal(found.latents, wanted.latents)
    assert np.abs(found.latents[0] - found.latents[1]).max() > 0.1


def test_other_tasks_join_a_batch_at_any_step(sdxl: Pipeline) -> None:
    """Inpainting, image to image, intervals and rescaled guidance at steps of their own, as if each were alone."""
    each: list[dict[str, Any]] = [
        {"image": a_picture(64, 64), "mask": a_mask(64, 64), "guidance_interval": (0.25, 0.7), "steps": 9},
        {"guidance": 1.0, "steps": 7, "sampler": "euler_a", **SIZE},
        {"image": a_picture(64, 64), "strength": 0.6, "guidance_rescale": 0.5, "steps": 10, "sampler": "heun"},
        {"guidance_interval": (0.0, 0.5), "steps": 6, "sampler": "unipc", **SIZE},
    ]
    requests = [sdxl.request(f"number {number}", seed=number, **one) for number, one in enumerate(each)]
    alone = [sdxl.run(request) for request in requests]
    drawings = []
    for request in requests:
        drawings.append(sdxl.begin(request))
        sdxl.advance([drawing for drawing in drawings if drawing.steps_left])
    while running := [drawing for drawing in drawings if drawing.steps_left]:
        sdxl.advance(running, min(drawing.steps_left for drawing in running))
    for drawing, wanted in zip(drawings, alone, strict=True):
        found = sdxl.finish(drawing).latents
        np.testing.assert_allclose(found, wanted.latents, atol=1e-4 * np.abs(wanted.latents).max())


# Guidance on some of the steps


def rows_of_steps(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[list[int], np.ndarray]:
    """How many rows the U-Net computed on each step, and the latents."""
    rows: list[int] = []
    init = CapturedStep.__init__

    def counting(self: CapturedStep, *arguments: Any) -> None:
        init(self, *arguments)
        step, count = self.run, self.buffers["noise_pred"].shape[0]
        self.run = lambda: (rows.append(count), step())[1]

    with monkeypatch.context() as patch:
        patch.setattr(CapturedStep, "__init__", counting)
        pipe._work.loop.close()
        drawn = pipe.generate(PROMPT, seed=1, sampler="dpmpp_2m", **SIZE, **settings)
    pipe._work.loop.close()
    return rows, drawn.latents


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"guidance_interval": (0.2, 0.6)}, [1, 1, 2, 2, 2, 2, 1, 1, 1, 1]),
        ({"guidance_interval": (0, 0.5)}, [2] * 5 + [1] * 5),
        ({"guidance_interval": (0.5, 0.5)}, [1] * 10),
        ({"guidance_interval": (0, 1)}, [2] * 10),
        ({"guidance_interval": (0.2, 0.6), "images": 2}, [2, 2, 4, 4, 4, 4, 2, 2, 2, 2]),
        ({"guidance_interval": (0.8, 1), "strength": 0.4, "latents": np.ones((1, 4, 8, 8))}, [1, 1, 2, 2]),
        ({"guidance_interval": (0.2, 0.6), "denoising_end": 0.5}, [1, 1, 2, 2, 2]),
        ({"guidance": 1.0}, [1] * 10),
    ],
    ids=str,
)
def test_rows_outside_the_interval_are_not_computed(
    sdxl: Pipeline, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], expected: list[int]
) -> None:
    assert rows_of_steps(sdxl, monkeypatch, steps=10, **settings)[0] == expected


def test_an_interval_of_all_steps_is_none(sdxl: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = rows_of_steps(sdxl, monkeypatch, steps=4)
    _, whole = rows_of_steps(sdxl, monkeypatch, steps=4, guidance_interval=(0.0, 1.0))
    np.testing.assert_array_equal(whole, plain)


def test_outside_the_interval_is_without_guidance(sdxl: Pipeline) -> None:
    """Half of the steps without, then half with: as a request without that hands its latents over to one with."""
    same = {"steps": 10, "seed": 1, "sampler": "euler"}
    found = sdxl.generate(PROMPT, guidance=5.0, guidance_interval=(0.5, 1.0), **SIZE, **same)
    half = 5 / 10
    begun = sdxl.generate(PROMPT, guidance=1.0, denoising_end=half, decode=False, **SIZE, **same)
    wanted = sdxl.generate(PROMPT, guidance=5.0, denoising_start=half, latents=begun.latents, **same)
    np.testing.assert_allclose(found.latents, wanted.latents, atol=1e-4 * np.abs(wanted.latents).max())


# Starts and ends


@pytest.mark.parametrize("sampler", ["euler", "ddim", "heun"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_two_parts_of_the_denoising_are_the_whole(sdxl: Pipeline, sampler: str, share: float) -> None:
    same = {"steps": 7, "seed": 1, "sampler": sampler, "guidance": 3.0}
    whole = sdxl.generate(PROMPT, **SIZE, **same)
    first = sdxl.generate(PROMPT, denoising_end=share, decode=False, **SIZE, **same)
    assert first.images == []
    second = sdxl.generate(PROMPT, denoising_start=share, latents=first.latents, **same)
    both = Ensemble(sdxl, sdxl).generate(PROMPT, handover=share, **SIZE, **same)
    np.testing.assert_array_equal(both.latents, second.latents)
    if sampler != "heun":  # which leaves off in the middle of a step, as in diffusers
        np.testing.assert_allclose(second.latents, whole.latents, atol=1e-5 * np.abs(whole.latents).max())


def test_latents_that_are_noise_and_a_start_of_0_are_text_to_image(sdxl: Pipeline) -> None:
    wanted = sdxl.generate(PROMPT, seed=9, steps=3, sampler="euler", **SIZE)
    table = compile_sampler("euler", ScheduleConfig.from_diffusers(sdxl.bundle.manifest.model.scheduler), 3)
    noise = np.float32(table.initial_scale) * TorchGenerator(9).randn((1, 4, 8, 8))
    found = sdxl.generate(PROMPT, seed=9, steps=3, sampler="euler", latents=noise, denoising_start=0)
    np.testing.assert_array_equal(found.latents, wanted.latents)


def test_strength_0_is_refused(sdxl: Pipeline) -> None:
    with pytest.raises(RequestError, match=r"strength 0: none of 8 steps is left .* The least is 0.125, one step"):
        sdxl.generate(PROMPT, image=a_picture(64, 64), strength=0, steps=8)
    assert sdxl.generate(PROMPT, image=a_picture(64, 64), strength=0.125, steps=8).images


def test_paste_back_leaves_what_is_outside_the_mask(sdxl: Pipeline) -> None:
    start, mask = a_picture(64, 72), a_mask(64, 72)
    same = {"image": start, "mask": mask, "steps": 3, "seed": 1}
    plain, pasted = (stack(sdxl.generate(PROMPT, paste_back=one, **same).images)[0] for one in (False, True))
    inside = np.asarray(mask) > 0
    np.testing.assert_array_equal(pasted[inside], plain[inside])
    np.testing.assert_array_equal(pasted[~inside], np.asarray(start)[~inside])
    assert np.abs(plain - np.asarray(start))[~inside].max() > 0


def test_arrays_are_pictures(sdxl: Pipeline) -> None:
    start, mask = np.asarray(a_picture(64, 64)), np.asarray(a_mask(64, 64))
    same = {"steps": 2, "seed": 1}
    wanted = sdxl.generate(PROMPT, image=a_picture(64, 64), mask=a_mask(64, 64), **same)
    for one, its_mask in ((start, mask), (start / 255, mask / 255.0), (start.astype(np.float32) / 255, mask > 0)):
        found = sdxl.generate(PROMPT, image=one, mask=its_mask, **same)
        np.testing.assert_array_equal(found.latents, wanted.latents)


# The high-resolution fix


def test_latents_may_be_enlarged_in_place_of_pictures(sdxl: Pipeline) -> None:
    same = {"seed": 1, "steps": 4, "sampler": "euler"}
    found = generate_large(sdxl, PROMPT, scale=2, enlarge="latents", resample="nearest", strength=0.5, **SIZE, **same)
    small = sdxl.generate(PROMPT, **SIZE, **same)
    large = small.latents.repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_array_equal(found.latents, sdxl.generate(PROMPT, latents=large, strength=0.5, **same).latents)
    assert found.images[0].size == (128, 128)
    assert "small decode" not in found.timings


# Embeddings and weights


@pytest.mark.parametrize("weighted", ["a (red:1.3) circle", "a red circle"])
def test_embeddings_given_back_draw_the_same_picture(sdxl: Pipeline, weighted: str) -> None:
    texts = {"negative": "blurry", "prompt_2": "a star"}
    same = {"seed": 1, "steps": 3, **SIZE}
    embeddings = sdxl.embed(["a cat", weighted], **texts)
    found = sdxl.generate(embeddings, **same)
    np.testing.assert_array_equal(found.latents, sdxl.generate(["a cat", weighted], **texts, **same).latents)


def test_a_weight_of_1_is_the_identity(sdxl: Pipeline) -> None:
    same = {"seed": 1, "steps": 3, **SIZE}
    plain = sdxl.generate("a red circle", **same).latents
    np.testing.assert_array_equal(sdxl.generate("a (red:1.0) circle", **same).latents, plain)
    assert np.abs(sdxl.generate("a (red:1.5) circle", **same).latents - plain).max() > 0.01


@pytest.mark.parametrize(("before", "chunks"), [("a ", 1), ("green star, left " * 12, 2)])
def test_a_weight_moves_its_own_tokens_away_from_the_empty_text(sdxl: Pipeline, before: str, chunks: int) -> None:
    plain, weighted = sdxl.embed(f"{before}red circle"), sdxl.embed(f"{before}(red:1.5) circle")
    assert plain.tokens == 77 * chunks
    empty = np.concatenate([sdxl.embed("").hidden] * chunks, axis=1)
    tokenizer = sdxl._work.prompts.tokenizers["tokenizer"]
    first, count = len(tokenizer.encode(before)), len(tokenizer.encode("red"))
    # The first of a chunk's 77 tokens is the begin token.
    places = [(number // 75) * 77 + 1 + number % 75 for number in range(first, first + count)]
    column = np.ones((77 * chunks, 1), np.float32)
    column[places] = 1.5
    np.testing.assert_allclose(weighted.hidden, empty + column * (plain.hidden - empty), atol=1e-5)
    assert np.abs(weighted.hidden - plain.hidden)[:, places].max() > 0.01
    np.testing.assert_array_equal(weighted.pooled, plain.pooled)


# Two models


def test_both_models_need_one_seed_and_the_same_steps(models: Models) -> None:
    both = Ensemble(models.ours("sdxl"), models.ours("sdxl-refiner"))
    result = both.generate(PROMPT, steps=5, **SIZE)
    assert result.request.steps == 5
    again = both.generate(PROMPT, steps=5, seed=result.request.seeds, **SIZE)
    np.testing.assert_array_equal(again.latents, result.latents)
    assert {"base denoise", "denoise", "decode"} <= set(result.timings)
    assert "base decode" not in result.timings


def test_what_the_refiner_does_not_serve_is_refused_before_the_base_runs(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Ensemble(models.ours("sdxl"), models.ours("sdxl-refiner"))
    monkeypatch.setattr(Pipeline, "run", lambda *_: pytest.fail("a model ran"))
    with pytest.raises(RequestError, match=r"handover 1.0: must be a number between 0 and 1"):
        both.generate(PROMPT, handover=1.0, **SIZE)
    with pytest.raises(RequestError, match=r"strength 1.2: must be a number from 0 \(keep\) to 1"):
        both.refine(PROMPT, strength=1.2, **SIZE)
    with pytest.raises(RequestError, match="none of 1 steps"):
        both.generate(PROMPT, handover=0.99, steps=1, **SIZE)
