"""The judge is judged first: ground-truth renders read right, wrong pictures read wrong."""

from random import Random

import numpy as np
import pytest

from latentrt.demo.scenes import BUCKETS, COLOURS, SIZES, Item, Scene, View, random_scene, render
from latentrt.demo.score import MIN_OVERLAP, mark, matches, read
from latentrt.demo.shapes import SHAPES

PER_SIZE = 60


@pytest.mark.parametrize("size", BUCKETS, ids=str)
def test_ground_truth_renders_read_right(size: tuple[int, int]) -> None:
    rng = Random(f"score {size}")
    scenes = [random_scene(rng, two_shapes=0) for _ in range(PER_SIZE)]
    marks = [mark(render(scene, View(size, (0, 0), size), rng), scene) for scene in scenes]
    for name in ("background", "colour", "shape", "place", "size", "alone"):
        assert np.mean([getattr(one, name) for one in marks]) >= 0.98, name


def test_noisy_renders_read_right() -> None:
    rng, noise = Random(1), np.random.default_rng(1)
    right = []
    for _ in range(PER_SIZE):
        scene = random_scene(rng, two_shapes=0)
        pixels = render(scene, None, rng) + noise.normal(0, 8, (96, 96, 3))
        one = mark(np.clip(pixels, 0, 255).astype(np.uint8), scene)
        right.append(one.background and one.colour and one.shape and one.place)
    assert np.mean(right) >= 0.95


def test_two_shapes_are_both_found() -> None:
    rng = Random(2)
    for _ in range(PER_SIZE):
        scene = random_scene(rng, two_shapes=1)
        reading = read(render(scene, None, rng))
        assert reading.background == scene.background
        assert all(any(matches(found, item) for found in reading.items) for item in scene.items)
        assert len(reading.items) == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_another_shape_is_noticed(shape: str) -> None:
    drawn = Scene((Item(shape, "red", "left", "large"),), "white")
    for other in SHAPES:
        asked = Scene((Item(other, "red", "left", "large"),), "white")
        assert mark(render(drawn), asked).shape == (other == shape)


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        (Scene((Item("star", "green", "top", "small"),), "white"), "colour"),
        (Scene((Item("star", "red", "bottom", "small"),), "white"), "place"),
        (Scene((Item("star", "red", "top", "large"),), "white"), "size"),
        (Scene((Item("star", "red", "top", "small"),), "cyan"), "background"),
        (Scene((Item("star", "red", "top", "small"), Item("ring", "blue", "bottom", "small")), "white"), "alone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_wrong_property_is_the_only_mark_missing(drawn: Scene, wrong: str) -> None:
    asked = Scene((Item("star", "red", "top", "small"),), "white")
    marks = mark(render(drawn), asked)
    names = ("background", "colour", "shape", "place", "size", "alone")
    # The smaller items of a scene with two are all small: the first found may be either.
    allowed = {"alone"} if wrong == "alone" else {wrong}
    if wrong == "alone":
        assert not marks.alone
    else:
        assert {name for name in names if not getattr(marks, name)} == allowed


def test_an_empty_or_noisy_picture_is_nothing() -> None:
    plain = np.full((96, 96, 3), COLOURS["blue"], np.uint8)
    assert read(plain).background == "blue"
    assert read(plain).items == ()
    noise = np.random.default_rng(3).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    scene = Scene((Item("circle", "red", "centre", "small"),), "white")
    assert not mark(noise, scene).shape


def test_a_blob_is_no_shape() -> None:
    pixels = np.full((96, 96, 3), COLOURS["white"], np.uint8)
    pixels[10:14, 10:80] = COLOURS["red"]
    (found,) = read(pixels).items
    assert found.shape is None
    assert found.overlap < MIN_OVERLAP


def test_sizes_are_far_enough_apart() -> None:
    assert SIZES["large"] / SIZES["small"] > 1.4
