"""Six shapes as signed distances, so that one line draws any of them with smooth edges at any size."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]


def circle(x: Field, y: Field, radius: float) -> Field:
    """A disc."""
    field: Field = np.hypot(x, y) - radius
    return field


def square(x: Field, y: Field, radius: float) -> Field:
    """An axis-aligned square with 0.86 of the radius as half its side."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.86 * radius


def triangle(x: Field, y: Field, radius: float) -> Field:
    """An equilateral triangle, tip up, whose bounding box is centred on the origin."""
    circumradius = 1.2 * radius
    y = y - 0.25 * circumradius
    flanks: Field = 0.75**0.5 * np.abs(x) - 0.5 * y
    return np.maximum(flanks, y) - 0.5 * circumradius


def star(x: Field, y: Field, radius: float) -> Field:
    """A five-pointed star, one tip up: the half-plane of one flank, folded ten times around the centre."""
    tip, notch = 1.15 * radius, 0.50 * radius
    sector = np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    distance = np.hypot(x, y)
    normal = np.array([notch * np.sin(sector), tip - notch * np.cos(sector)])
    normal /= np.linalg.norm(normal)
    field: Field = normal[0] * (distance * np.cos(angle) - tip) + normal[1] * distance * np.sin(angle)
    return field


def ring(x: Field, y: Field, radius: float) -> Field:
    """A disc with a hole of half its radius."""
    return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius


def cross(x: Field, y: Field, radius: float) -> Field:
    """A plus sign, a third as thick as it is wide."""
    wide, thin = radius, 0.34 * radius
    return np.maximum(np.minimum(np.abs(x), np.abs(y)) - thin, np.maximum(np.abs(x), np.abs(y)) - wide)


SHAPES: dict[str, Callable[[Field, Field, float], Field]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
}
"""Signed distance in pixels, negative inside; y grows downwards."""


def coverage(shape: str, x: Field, y: Field, radius: float) -> Field:
    """Share of each pixel that the shape covers, from 0 to 1, pixel centres given by `x` and `y`."""
    share: Field = np.clip(0.5 - SHAPES[shape](x, y, radius), 0, 1)
    return share
