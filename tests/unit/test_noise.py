"""TorchGenerator against torch.randn, draw by draw."""

import numpy as np
import pytest
import torch

from latentrt.runtime.drawing.noise import TorchGenerator
from latentrt.runtime.errors import RequestError

TOLERANCE = 1e-6
"""torch's vectorised log, sin and cos differ from numpy's by up to 5e-7; another bit stream differs by more than 1."""

SEEDS = (0, 1, 7, 123456789, 2**31, 2**32 - 1, 2**32, 2**40 + 3, 2**63, 2**64 - 1, -1, -12345, -(2**63))


def assert_same_draws(seed: int, shapes: list[tuple[int, ...]]) -> None:
    theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=theirs).numpy()
        received = ours.randn(shape)
        assert received.dtype == np.float32
        assert received.shape == expected.shape
        np.testing.assert_allclose(received, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", SEEDS)
def test_latents_of_every_seed(seed: int) -> None:
    assert_same_draws(seed, [(1, 4, 16, 16), (2, 4, 8, 12)])


@pytest.mark.parametrize("count", range(41))
def test_every_small_count(count: int) -> None:
    """Counts below 16 take torch's float64 path; others not divisible by 16 redraw their last block."""
    assert_same_draws(11, [(count,), (count,), (count,)])


def test_odd_latents() -> None:
    assert_same_draws(3, [(1, 4, 5, 7), (3, 4, 13, 11), (1, 4, 17, 27)])


def test_kept_sample_survives_a_large_draw() -> None:
    """An odd small draw keeps one normal for the next small draw; a large draw in between must not use or drop it."""
    assert_same_draws(5, [(3,), (16,), (1,), (7,), (4, 33), (2,), (), (0, 3), (5,)])


def test_mixed_draws() -> None:
    choose = np.random.default_rng(0)
    shapes = [tuple(choose.integers(1, 8, size=choose.integers(0, 5)).tolist()) for _ in range(60)]
    assert_same_draws(2024, shapes)


def test_full_size() -> None:
    assert_same_draws(42, [(4, 4, 128, 128)])


def test_seeds_differ() -> None:
    assert not np.array_equal(TorchGenerator(0).randn((32,)), TorchGenerator(1).randn((32,)))


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_outside_the_range(seed: int) -> None:
    with pytest.raises(RequestError, match=rf"seed {seed}: a seed is an integer from 0 to 2\*\*64 - 1"):
        TorchGenerator(seed)


@pytest.mark.parametrize("seed", [1.5, "3", None, True])
def test_seed_of_another_type(seed: object) -> None:
    with pytest.raises(RequestError, match=r"seed .*: a seed is an integer"):
        TorchGenerator(seed)  # type: ignore[arg-type]
