"""Scenes, views and captions: what the model is taught is what it will be asked for."""

from random import Random

import numpy as np
import pytest

from latentrt.demo.captions import PLACE_PHRASES, plain_caption, random_caption
from latentrt.demo.scenes import (
    BUCKETS,
    COLOURS,
    HELD_OUT_PERCENT,
    PLACES,
    Item,
    Scene,
    View,
    all_single_scenes,
    held_out,
    random_scene,
    random_view,
    render,
)
from latentrt.demo.shapes import SHAPES

RED_STAR = Scene((Item("star", "red", "left", "large"),), "white")


def centroid(pixels: np.ndarray) -> tuple[float, float]:
    """Where the red is, (x, y) in pixels."""
    red = (pixels[..., 0] > 128) & (pixels[..., 1] < 128)
    y, x = np.nonzero(red)
    return float(x.mean()), float(y.mean())


def test_training_never_sees_a_held_out_combination() -> None:
    rng = Random(0)
    for _ in range(3000):
        scene = random_scene(rng)
        for item in scene.items:
            assert not held_out(item.shape, item.colour, scene.background)


def test_a_tenth_is_held_out_and_every_name_occurs_on_both_sides() -> None:
    scenes = list(all_single_scenes())
    kept = [scene for scene in scenes if scene.held_out]
    assert 0.5 < len(kept) / len(scenes) * 100 / HELD_OUT_PERCENT < 1.5
    for part in (kept, [scene for scene in scenes if not scene.held_out]):
        assert {scene.items[0].shape for scene in part} == set(SHAPES)
        assert {scene.items[0].colour for scene in part} == set(COLOURS)
        assert {scene.background for scene in part} == set(COLOURS)


def test_the_split_is_the_one_that_the_checkpoint_was_trained_with() -> None:
    first = next(scene for scene in all_single_scenes() if scene.held_out)
    assert (first.items[0], first.background) == (Item("square", "red", "left", "small"), "yellow")


def test_colours_of_a_scene_differ() -> None:
    rng = Random(1)
    for _ in range(1000):
        scene = random_scene(rng)
        used = [scene.background, *(item.colour for item in scene.items)]
        assert len(set(used)) == len(used)


@pytest.mark.parametrize("size", BUCKETS, ids=str)
def test_renders_have_their_size_and_background(size: tuple[int, int]) -> None:
    assert all(side % 8 == 0 for side in size)
    pixels = render(RED_STAR, View(size, (0, 0), size))
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    assert tuple(pixels[0, -1]) == COLOURS["white"]


@pytest.mark.parametrize("place", PLACES)
def test_a_shape_stands_at_its_place(place: str) -> None:
    x, y = centroid(render(Scene((Item("circle", "red", place, "small"),), "white")))
    assert (2 * x / 96 - 1, 2 * y / 96 - 1) == pytest.approx(PLACES[place], abs=0.03)


def test_a_crop_moves_the_content_up_and_left() -> None:
    scene = Scene((Item("circle", "red", "centre", "small"),), "white")
    plain, cropped = centroid(render(scene)), centroid(render(scene, View(crop=(8, 20))))
    assert (plain[0] - cropped[0], plain[1] - cropped[1]) == pytest.approx((20, 8), abs=0.3)


def test_a_smaller_original_is_blurred() -> None:
    sharp, blurred = render(RED_STAR), render(RED_STAR, View(original=(24, 24)))
    steepest = [np.abs(np.diff(pixels.astype(int), axis=1)).max() for pixels in (sharp, blurred)]
    assert steepest[1] < 0.6 * steepest[0]


def test_time_ids_are_original_crop_target() -> None:
    assert View((80, 112), (5, 7), (40, 56)).time_ids == (40, 56, 5, 7, 80, 112)


def test_views_vary_but_most_are_plain() -> None:
    rng = Random(2)
    views = [random_view(rng, (96, 96)) for _ in range(2000)]
    assert 0.5 < np.mean([view == View() for view in views]) < 0.8
    assert np.mean([view.crop != (0, 0) for view in views]) > 0.1
    assert np.mean([view.original != view.size for view in views]) > 0.1


def test_plain_caption_names_everything() -> None:
    assert plain_caption(RED_STAR) == "a large red star on the left, on a white background"


def test_captions_vary_and_say_nothing_wrong() -> None:
    rng = Random(3)
    scene = Scene((Item("ring", "orange", "bottom", "small"),), "cyan")
    captions = {random_caption(scene, rng) for _ in range(500)}
    assert len(captions) > 100
    wrong = [*(set(COLOURS) - {"orange", "cyan"}), *(set(SHAPES) - {"ring"}), "large", "big"]
    wrong += [phrase for place, phrases in PLACE_PHRASES.items() if place != "bottom" for phrase in phrases]
    for caption in captions:
        assert "orange ring" in caption
        assert " a orange" not in caption
        assert not [words for words in wrong if words in caption]


def test_the_same_seed_gives_the_same_picture() -> None:
    pictures = [render(random_scene(Random(4)), View(), Random(5)) for _ in range(2)]
    assert np.array_equal(*pictures)
