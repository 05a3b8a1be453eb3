"""Tasks and prompt weights on the checkpoint that ships, judged by its scorer; the figures are in docs/parity.md."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from latentrt.demo.captions import plain_caption
from latentrt.demo.evaluate import held_out_scenes
from latentrt.demo.scenes import COLOURS, PLACES, Item, Scene, render
from latentrt.demo.score import mark, read
from latentrt.demo.shapes import SHAPES
from latentrt.runtime import Pipeline
from latentrt.runtime.drawing.noise import TorchGenerator
from latentrt.runtime.request.images import read_pictures

SIDES = [place for place in PLACES if place != "centre"]
SAME = {"steps": 12, "guidance": 5.0, "width": 96, "height": 96, "sampler": "euler"}
PALETTE = np.array(list(COLOURS.values()), np.float32)


def another(*taken: str) -> str:
    """The colour that is least like the ones that are taken."""

    def distance(colour: str) -> float:
        return min(float(np.square(np.subtract(COLOURS[colour], COLOURS[one])).sum()) for one in taken)

    return max(COLOURS, key=distance)


def at_side(scene: Scene, place: str) -> Scene:
    return Scene((replace(scene.items[0], place=place, size="small"),), scene.background)


def area(pixels: np.ndarray, colour: str) -> float:
    """The share of the picture whose nearest colour name is this one."""
    distances = np.square(pixels.astype(np.float32)[:, :, None] - PALETTE).sum(-1)
    return float((distances.argmin(-1) == list(COLOURS).index(colour)).mean())


def outline(pixels: np.ndarray) -> np.ndarray:
    """Where a picture is not its background, (height, width)."""
    background = np.median(pixels[:2].reshape(-1, 3), 0)
    return np.abs(pixels - background).max(-1) > 60


# Image to image


def recoloured(pipeline: Pipeline, strength: float, count: int = 12) -> dict[str, float]:
    """Shapes redrawn in another colour by a prompt that names no place: what is right, and how much they overlap."""
    right: list[tuple[bool, bool, bool, float]] = []
    for number, scene in enumerate(held_out_scenes(count)):
        source = at_side(scene, SIDES[number % 4])
        item = replace(source.items[0], colour=another(source.items[0].colour, source.background))
        prompt = f"a {item.colour} {item.shape} on a {scene.background} background"
        pixels = render(source)
        drawn = pipeline.generate(prompt, image=pixels, strength=strength, seed=number, **SAME)
        found = np.asarray(drawn.images[0]).astype(float)
        marks = mark(found.astype(np.uint8), Scene((item,), source.background))
        ours, theirs = outline(found), outline(pixels.astype(float))
        right.append((marks.colour, marks.place, marks.shape, (ours & theirs).sum() / (ours | theirs).sum()))
    return dict(zip(("colour", "place", "shape", "overlap"), np.mean(right, 0).round(2).tolist(), strict=True))


def test_image_to_image_keeps_the_layout_until_the_strength_forgets_it(
    demo_pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, full = recoloured(demo_pipeline, 0.4), recoloured(demo_pipeline, 1.0)
    with capsys.disabled():
        print(f" strength 0.4: {weak}; 1.0: {full}")
    assert weak["place"] >= 0.75
    assert weak["overlap"] >= 0.5
    assert full["place"] <= 0.5, "a quarter is chance"
    assert full["overlap"] <= 0.35
    assert min(full["colour"], full["shape"]) >= 0.75


# Inpainting

MASK = np.zeros((96, 96), np.uint8)
MASK[:, 48:] = 255
LATENT_BORDER = 8
"""Pixels beside the mask that share the decoder's view with it."""


def second_shapes(count: int) -> Iterator[tuple[Scene, Scene]]:
    """A scene with one shape on the left, and the same with another one on the right."""
    for number, scene in enumerate(held_out_scenes(count)):
        source = at_side(scene, "left")
        first, shape = source.items[0], list(SHAPES)[number % len(SHAPES)]
        other = Item(shape, another(first.colour, source.background), "right", "small")
        yield source, Scene((first, other), source.background)


def encoded(pipeline: Pipeline, pixels: np.ndarray, seed: int) -> np.ndarray:
    """A picture's latents, with the first draw of this seed, as a request's are."""
    mean, deviation = pipeline._work.vae.encode(read_pictures(pixels, None, None, lambda width, height: None))
    return pipeline.bundle.manifest.model.from_vae(mean + deviation * TorchGenerator(seed).randn(mean.shape))


def inpainted(pipeline: Pipeline, count: int = 8) -> dict[str, float]:
    """Shapes drawn beside a kept one: how often each is there, and the mean change of pixels and latents.

    `vae`: what encoding and decoding alone change outside the mask, in a picture that is the drawn one inside. The
    decoder sees the whole picture, so that what is inside has a part in what it makes of the outside.
    """
    right: list[tuple[bool, bool]] = []
    changes: list[tuple[float, ...]] = []
    far = np.s_[:, : 48 - LATENT_BORDER]
    for number, (source, wanted) in enumerate(second_shapes(count)):
        pixels = render(source)
        drawn = pipeline.generate(plain_caption(wanted), image=pixels, mask=MASK, seed=number, **SAME)
        found = np.asarray(drawn.images[0]).astype(float)
        items = {(item.colour, item.shape, item.place) for item in read(found.astype(np.uint8)).items}
        kept, new = ((item.colour, item.shape, item.place) in items for item in wanted.items)
        right.append((kept, new))
        both = np.where(MASK[..., None] > 0, found, pixels).astype(np.uint8)
        own = np.asarray(pipeline._work.vae.decode(encoded(pipeline, both, number))[0]) - pixels.astype(float)
        change = np.abs(found - pixels)
        latents = np.abs(drawn.latents - encoded(pipeline, pixels, number))[..., :6].max()
        changes.append((change[far].mean(), np.abs(own)[far].mean(), change[MASK > 0].mean(), latents))
    names = ("kept", "new", "outside", "vae", "inside", "latents")
    return dict(zip(names, np.round([*np.mean(right, 0), *np.mean(changes, 0)], 2).tolist(), strict=True))


def test_inpainting_changes_the_mask_and_nothing_else(
    demo_pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inpainted(demo_pipeline)
    with capsys.disabled():
        print(f" {found}")
    assert found["kept"] >= 0.75
    assert found["new"] >= 0.5
    assert found["latents"] == 0
    assert found["outside"] <= 1.5 * found["vae"]
    assert found["inside"] > 4 * found["outside"]


def test_paste_back_changes_nothing_outside_at_all(demo_pipeline: Pipeline) -> None:
    source, wanted = next(second_shapes(1))
    pixels = render(source)
    drawn = demo_pipeline.generate(plain_caption(wanted), image=pixels, mask=MASK, seed=0, paste_back=True, **SAME)
    found = np.asarray(drawn.images[0])
    np.testing.assert_array_equal(found[MASK == 0], pixels[MASK == 0])
    assert area(found, wanted.items[1].colour) > 0.02


# Weights


def competing(pipeline: Pipeline, weight: float) -> tuple[float, float]:
    """Two colours for one circle: the areas of the weighted one and of the other, either one being weighted."""
    areas = []
    for number, (first, second) in enumerate((("red", "blue"), ("green", "yellow"), ("purple", "orange"))):
        prompts = [f"a ({first}:{weight}) {second} circle on a white background"]
        prompts += [f"a {first} ({second}:{weight}) circle on a white background"]
        one, other = pipeline.generate(prompts, seed=[number, number], **SAME).images
        pairs = ((one, first, second), (other, second, first))
        areas += [(area(np.asarray(image), mine), area(np.asarray(image), its)) for image, mine, its in pairs]
    weighted, plain = np.mean(areas, 0).round(3).tolist()
    return weighted, plain


def test_weights_strengthen_and_weaken_a_word(demo_pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    found = {weight: competing(demo_pipeline, weight) for weight in (0.5, 1.0, 1.5)}
    with capsys.disabled():
        print(f" areas of the weighted colour and of the other by weight: {found}")
    assert found[0.5][0] < 0.5 * found[0.5][1]
    assert found[1.0][0] == pytest.approx(found[1.0][1])
    assert found[1.5][0] > 2 * found[1.5][1]
    assert found[0.5][0] < found[1.0][0] < found[1.5][0]


def test_a_mask_as_an_image_and_as_an_array(demo_pipeline: Pipeline) -> None:
    pixels = render(next(second_shapes(1))[0])
    same = SAME | {"steps": 2, "seed": 1}
    one, other = (
        demo_pipeline.generate("a star", image=pixels, mask=mask, **same).latents
        for mask in (MASK, Image.fromarray(MASK))
    )
    np.testing.assert_array_equal(one, other)
