"""Reads a picture back by plain image processing, without a network: background, colours, shapes, places and sizes.

Each pixel gets the nearest of the ten colour names. The commonest name along the border is the background. Every other
solid area, together with those that touch it, is an item, which takes the commonest name in it. Its outline is compared
with the six shapes, drawn with the same centroid and area.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentrt.demo.scenes import COLOURS, PLACES, SIZES, Item, Scene
from latentrt.demo.shapes import SHAPES, coverage

__all__ = ["Found", "Marks", "Reading", "mark", "read"]

Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

REACH = 4
"""Solid areas within this distance in pixels are one shape: drawn edges may be tinted."""

MIN_CORE = 0.002
"""Smallest share of the picture that an item fills with pixels whose eight neighbours have the same colour name."""

MIN_OVERLAP = 0.6
"""Smallest intersection over union with the best shape; below it, the item has no shape."""

PALETTE = np.array(list(COLOURS.values()), np.float32)
NAMES = list(COLOURS)


@dataclass(frozen=True, slots=True)
class Found:
    """An item that was found; `overlap`: intersection over union with the best shape."""

    shape: str | None
    colour: str
    place: str
    size: str
    overlap: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The content of a picture, with items from the largest solid area to the smallest."""

    background: str
    items: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class Marks:
    """Which properties of a picture of a scene with one shape are correct."""

    background: bool
    colour: bool
    shape: bool
    place: bool
    size: bool
    alone: bool


def mark(pixels: npt.NDArray[np.uint8], scene: Scene) -> Marks:
    """Compare the largest item with the scene's first; `alone`: as many items were found as the scene has."""
    reading = read(pixels)
    wanted = scene.items[0]
    found = reading.items[0] if reading.items else Found(None, "", "", "", 0.0)
    return Marks(
        background=reading.background == scene.background,
        colour=found.colour == wanted.colour,
        shape=found.shape == wanted.shape,
        place=found.place == wanted.place,
        size=found.size == wanted.size,
        alone=len(reading.items) == len(scene.items),
    )


def read(pixels: npt.NDArray[np.uint8]) -> Reading:
    """Read an RGB picture, (height, width, 3)."""
    colours = pixels.astype(np.float32)
    names = np.square(colours[:, :, None] - PALETTE).sum(-1).argmin(-1)
    border = np.concatenate([names[:2].ravel(), names[-2:].ravel(), names[:, :2].ravel(), names[:, -2:].ravel()])
    background = int(np.bincount(border).argmax())
    solid = interior(names)
    counts = Counter(names[solid & (names != background)].tolist())
    chosen = [name for name, count in counts.most_common(5) if count >= MIN_CORE * names.size]
    groups = touching([solid & (names == name) for name in chosen])
    if not groups:
        return Reading(NAMES[background], ())
    ground = colours[solid & (names == background)].mean(0) if (solid & (names == background)).any() else None
    if ground is None:
        return Reading(NAMES[background], ())
    centres = [np.argwhere(np.any(group, axis=0)).mean(0) for group in groups]
    items = []
    for index, group in enumerate(groups):
        shares = [item_share(colours, ground, colours[core].mean(0)) for core in group]
        share = np.max(shares, axis=0) * nearest(centres, index, names)
        items.append(describe(share, NAMES[int(names[group[0]][0])]))
    return Reading(NAMES[background], tuple(items))


def touching(cores: list[Mask]) -> list[list[Mask]]:
    """Group solid areas: one within `REACH` pixels of a larger one is part of the same shape."""
    groups: list[list[Mask]] = []
    for core in cores:
        for group in groups:
            if (grown(group[0]) & core).any():
                group.append(core)
                break
        else:
            groups.append([core])
    return groups


def grown(mask: Mask) -> Mask:
    """The mask extended by `REACH` pixels along rows and columns."""
    height, width = mask.shape
    padded = np.pad(mask, REACH)
    result = np.zeros(mask.shape, np.bool_)
    for down in range(2 * REACH + 1):
        for across in range(2 * REACH + 1):
            result |= padded[down : down + height, across : across + width]
    return result


def interior(names: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Pixels whose eight neighbours, if inside the picture, have the same name."""
    padded = np.pad(names, 1, mode="edge")
    height, width = names.shape
    same = np.ones(names.shape, np.bool_)
    for down in range(3):
        for across in range(3):
            same &= padded[down : down + height, across : across + width] == names
    return same


def item_share(colours: Plane, ground: Plane, colour: Plane) -> Plane:
    """How much of each pixel is `colour` rather than `ground`, 0 to 1, by projection on the line between them.

    A contrast curve keeps faint noise in the background out of centroid and area.
    """
    line = colour - ground
    share = ((colours - ground) @ line) / float(line @ line)
    return np.clip((share - 0.25) / 0.5, 0, 1).astype(np.float32)


def nearest(centres: list[npt.NDArray[np.floating]], index: int, names: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Pixels nearer to this item's centre than to any other's."""
    y, x = np.indices(names.shape)
    distances = np.stack([np.hypot(y - centre[0], x - centre[1]) for centre in centres])
    return np.asarray(distances.argmin(0) == index)


def describe(share: Plane, colour: str) -> Found:
    """Shape, place and size of one item from its share of each pixel."""
    height, width = share.shape
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    area = max(float(share.sum()), 1.0)
    at = (float((share * x).sum()) / area, float((share * y).sum()) / area)
    fits = {shape: fit(shape, share, x - at[0], y - at[1], area) for shape in SHAPES}
    shape, (overlap, radius, centre_y) = max(fits.items(), key=lambda entry: entry[1][0])
    across, down = 2 * at[0] / width - 1, 2 * (at[1] + centre_y) / height - 1
    place = min(PLACES, key=lambda name: np.hypot(across - PLACES[name][0], down - PLACES[name][1]))
    size = min(SIZES, key=lambda name: abs(SIZES[name] - radius / min(height, width)))
    return Found(shape if overlap >= MIN_OVERLAP else None, colour, place, size, round(overlap, 4))


def fit(shape: str, share: Plane, x: Plane, y: Plane, area: float) -> tuple[float, float, float]:
    """The best overlap with a shape over a few radii, that radius, and how far the centre is below the centroid.

    `x` and `y` are relative to the item's centroid.
    """
    unit_area, unit_offset = UNITS[shape]
    best = (0.0, 0.0, 0.0)
    for scale in (0.96, 1.0, 1.04):
        radius = scale * (area / unit_area) ** 0.5
        drawn = coverage(shape, x, y + unit_offset * radius, radius)
        overlap = float(np.minimum(drawn, share).sum() / np.maximum(drawn, share).sum())
        best = max(best, (overlap, radius, -unit_offset * radius))
    return best


def units(shape: str, radius: float = 100.0) -> tuple[float, float]:
    """Area of a shape with radius 1, and how far its centroid is below its centre."""
    y, x = np.mgrid[-150:150, -150:150].astype(np.float32) + 0.5
    drawn = coverage(shape, x, y, radius)
    return float(drawn.sum()) / radius**2, float((drawn * y).sum() / drawn.sum()) / radius


UNITS = {shape: units(shape) for shape in SHAPES}


def matches(found: Found, item: Item) -> bool:
    """Whether shape, colour and place agree with `item`."""
    return (found.shape, found.colour, found.place) == (item.shape, item.colour, item.place)
