"""Scenes made by code: what is in a picture, how it is rendered, and how its view becomes SDXL's six time ids."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from latentrt.demo.shapes import SHAPES, coverage

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 60),
    "green": (40, 150, 60),
    "cyan": (70, 210, 220),
    "blue": (40, 70, 210),
    "purple": (125, 45, 165),
    "pink": (250, 150, 195),
    "white": (248, 248, 248),
    "black": (22, 22, 22),
}
"""Names of the ten colours and their sRGB values."""

PLACES: dict[str, tuple[float, float]] = {
    "left": (-0.46, 0.0),
    "right": (0.46, 0.0),
    "top": (0.0, -0.46),
    "bottom": (0.0, 0.46),
    "centre": (0.0, 0.0),
}
"""Where a shape's centre stands, (x, y) from -1 to 1 across the picture."""

SIZES: dict[str, float] = {"small": 0.17, "large": 0.265}
"""Radius of a shape as a share of the picture's shorter side."""

BUCKETS: dict[tuple[int, int], float] = {
    (96, 96): 0.64,
    (80, 112): 0.07,
    (112, 80): 0.07,
    (96, 128): 0.06,
    (128, 96): 0.06,
    (96, 160): 0.03,
    (160, 96): 0.03,
    (128, 128): 0.04,
}
"""Sizes in training, (height, width) in pixels, and how often each is drawn."""

HELD_OUT_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Item:
    """One shape of a scene."""

    shape: str
    colour: str
    place: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two shapes on a background."""

    items: tuple[Item, ...]
    background: str

    @property
    def held_out(self) -> bool:
        """True when any item's shape, colour and background together were never trained on."""
        return any(held_out(item.shape, item.colour, self.background) for item in self.items)


@dataclass(frozen=True, slots=True)
class View:
    """How a scene was photographed: picture size, crop and the original's size, all in pixels as (height, width).

    The scene is laid out for a picture of `size`; a crop at (top, left) moves its content up and left by as much, and
    an original smaller than `size` was enlarged, so that it is blurred.
    """

    size: tuple[int, int] = (96, 96)
    crop: tuple[int, int] = (0, 0)
    original: tuple[int, int] = (96, 96)

    @property
    def time_ids(self) -> tuple[int, ...]:
        """SDXL's six numbers: original size, crop top left, target size."""
        return (*self.original, *self.crop, *self.size)


def held_out(shape: str, colour: str, background: str) -> bool:
    """Whether this combination is kept for measuring: a fixed tenth, by checksum."""
    return zlib.crc32(f"{shape} {colour} {background}".encode()) % 100 < HELD_OUT_PERCENT


def all_single_scenes() -> Iterator[Scene]:
    """Every scene with one shape, in a fixed order."""
    pairs = permutations(COLOURS, 2)
    for (colour, background), shape, place, size in product(pairs, SHAPES, PLACES, SIZES):
        yield Scene((Item(shape, colour, place, size),), background)


def random_scene(rng: Random, two_shapes: float = 0.15) -> Scene:
    """A scene of the training split; `two_shapes` is the share of scenes with two."""
    while True:
        background, *colours = rng.sample(list(COLOURS), 3)
        if rng.random() < two_shapes:
            places = rng.sample(rng.choice((("left", "right"), ("top", "bottom"))), 2)
            scene = Scene(
                tuple(
                    Item(rng.choice(list(SHAPES)), colour, place, "small")
                    for colour, place in zip(colours, places, strict=True)
                ),
                background,
            )
        else:
            item = Item(rng.choice(list(SHAPES)), colours[0], rng.choice(list(PLACES)), rng.choice(list(SIZES)))
            scene = Scene((item,), background)
        if not scene.held_out:
            return scene


def random_view(rng: Random, size: tuple[int, int]) -> View:
    """Mostly the plain view; a fifth is cropped, a sixth has a smaller original, a few have a larger one."""
    crop = (rng.randint(0, 64), rng.randint(0, 64)) if rng.random() < 0.2 else (0, 0)
    scale = 1.0
    if rng.random() < 0.2:
        scale = rng.uniform(0.15, 0.9) if rng.random() < 0.85 else rng.uniform(1.0, 2.0)
    return View(size, crop, (round(size[0] * scale), round(size[1] * scale)))


def render(scene: Scene, view: View | None = None, rng: Random | None = None) -> npt.NDArray[np.uint8]:
    """Draw a scene with smooth edges, (height, width, 3). `rng` moves and scales every shape a little."""
    view = view or View()
    height, width = view.size
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = COLOURS[scene.background]
    for item in scene.items:
        _draw(pixels, item, view.crop, rng)
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    if view.original[0] < height or view.original[1] < width:
        small = picture.resize((view.original[1], view.original[0]), Image.Resampling.BOX)
        picture = small.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _draw(pixels: npt.NDArray[np.float32], item: Item, crop: tuple[int, int], rng: Random | None) -> None:
    """Blend one item into the picture, in place; only the pixels near the shape are touched."""
    height, width = pixels.shape[:2]
    radius = SIZES[item.size] * min(height, width) * (rng.uniform(0.93, 1.07) if rng else 1.0)
    across, down = PLACES[item.place]
    if rng:
        across, down = across + rng.uniform(-0.04, 0.04), down + rng.uniform(-0.04, 0.04)
    margin = 1.15 * radius + 1
    centre_x = float(np.clip((1 + across) * width / 2, margin, width - margin)) - crop[1]
    centre_y = float(np.clip((1 + down) * height / 2, margin, height - margin)) - crop[0]
    top, left = max(0, int(centre_y - margin)), max(0, int(centre_x - margin))
    bottom, right = max(top, int(centre_y + margin) + 2), max(left, int(centre_x + margin) + 2)
    window = pixels[top:bottom, left:right]
    y, x = np.mgrid[top : top + window.shape[0], left : left + window.shape[1]].astype(np.float32) + 0.5
    share = coverage(item.shape, x - centre_x, y - centre_y, radius)[..., None]
    window += share * (np.asarray(COLOURS[item.colour], np.float32) - window)
