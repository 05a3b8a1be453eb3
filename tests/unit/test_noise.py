"""TorchGenerator against torch.randn, draw by draw; the order in which diffusers and others draw; variations."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from latentrt.runtime.drawing.noise import Randomness, TorchGenerator, slerp
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.reading import make_request
from latentrt.runtime.request.request import Request

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


SHAPE = (4, 6, 10)


def randomness(bundle, **settings) -> tuple[Randomness, Request]:
    request = make_request("a cat", settings, bundle.manifest, lambda width, height: None)
    return Randomness(request), request


def torch_draws(seeds: list[int], count: int = 1) -> Iterator[np.ndarray]:
    """What generators of these seeds draw one after the other: one for `count` pictures, or one per picture."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        yield torch.cat([torch.randn((count, *SHAPE), generator=generator) for generator in generators]).numpy()


def test_the_noise_of_diffusers(bundle) -> None:
    ours, _ = randomness(bundle, seed=5, images=3)
    theirs = torch_draws([5], 3)
    for draw in (lambda: ours.posterior(SHAPE, 3), lambda: ours.first(SHAPE), lambda: ours.step(SHAPE)):
        np.testing.assert_allclose(draw(), next(theirs), atol=TOLERANCE)


def test_the_noise_of_a1111_counts_the_seed_up(bundle) -> None:
    """One generator per picture at seed + i, first noise and steps; a source's posterior takes nothing from it."""
    ours, request = randomness(bundle, seed=5, images=3, noise="a1111")
    assert request.seeds == (5, 6, 7)
    theirs = torch_draws([5, 6, 7])
    assert not ours.posterior(SHAPE, 3).any()
    for draw in (ours.first, ours.step, ours.step):
        np.testing.assert_allclose(draw(SHAPE), next(theirs), atol=TOLERANCE)


def test_the_noise_of_comfyui(bundle) -> None:
    """One generator for the batch; that of the next seed for the steps."""
    ours, request = randomness(bundle, seed=2**64 - 1, images=2, noise="comfyui")
    assert request.seeds == (2**64 - 1,)
    first, steps = torch_draws([2**64 - 1], 2), torch_draws([0], 2)
    assert not ours.posterior(SHAPE, 2).any()
    np.testing.assert_allclose(ours.first(SHAPE), next(first), atol=TOLERANCE)
    for _ in range(2):
        np.testing.assert_allclose(ours.step(SHAPE), next(steps), atol=TOLERANCE)


def torch_slerp(share: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """AUTOMATIC1111's, by its formula (modules/rng.py): axis 1 of (channels, height, width) is the height."""
    angle = torch.arccos((low / low.norm(dim=1, keepdim=True) * high / high.norm(dim=1, keepdim=True)).sum(1))
    shares = [torch.sin(part * angle) / torch.sin(angle) for part in (1 - share, share)]
    return shares[0].unsqueeze(1) * low + shares[1].unsqueeze(1) * high


@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
def test_a_variation_is_that_of_a1111(bundle, strength: float) -> None:
    """The seed stays and the variation's counts up; the noise of the steps is the seed's own."""
    ours, request = randomness(bundle, seed=5, images=2, noise="a1111", variation_seed=90, variation_strength=strength)
    assert (request.seeds, request.variation_seeds) == ((5, 5), (90, 91))
    low, steps = torch_draws([5, 5]), torch_draws([5, 5])
    high = torch_draws([90, 91])
    pairs = zip(torch.from_numpy(next(low)), torch.from_numpy(next(high)), strict=True)
    expected = np.stack([torch_slerp(strength, *pair) for pair in pairs])
    np.testing.assert_allclose(ours.first(SHAPE), expected, atol=1e-5)
    next(steps)
    np.testing.assert_allclose(ours.step(SHAPE), next(steps), atol=TOLERANCE)


def test_a_variation_of_the_batchs_noise(bundle) -> None:
    ours, request = randomness(bundle, seed=5, images=2, variation_seed=90, variation_strength=1)
    assert (request.seeds, request.variation_seeds) == ((5,), (90,))
    np.testing.assert_allclose(ours.first(SHAPE), next(torch_draws([90], 2)), atol=1e-5)


def test_slerp_of_equal_and_opposite_noise() -> None:
    """Parallel columns, which have no arc between them, are mixed linearly."""
    noise = TorchGenerator(1).randn(SHAPE)
    np.testing.assert_allclose(slerp(0.3, noise, noise), noise, atol=1e-5)
    np.testing.assert_allclose(slerp(0.25, noise, -noise), noise / 2, atol=1e-3)


def test_slerp_keeps_the_spread() -> None:
    noise, other = TorchGenerator(1).randn((2, 4, 64, 64))
    assert slerp(0.5, noise, other).std() == pytest.approx(1, abs=0.02)


def test_a_fresh_seed_is_drawn_and_told(bundle) -> None:
    seeds = [randomness(bundle, seed=-1)[1].seeds for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**32 for (seed,) in seeds)
    (kept, fresh) = randomness(bundle, seed=[7, -1], images=2)[1].seeds
    assert kept == 7
    assert fresh >= 0
    assert randomness(bundle, variation_strength=0.1)[1].variation_seeds[0] >= 0


def test_no_variation_has_no_seed(bundle) -> None:
    assert randomness(bundle, seed=3)[1].variation_seeds == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variation_seed": 4}, "variation_seed: it needs variation_strength="),
        ({"variation_strength": 1.5}, "variation_strength 1.5: must be a number from 0 to 1"),
        (
            {"variation_strength": 1, "variation_seed": [1, 2]},
            "variation_seed: 2 given for 3 pictures; give one, or one per picture",
        ),
        ({"noise": "gpu"}, "noise 'gpu': must be one of a1111, comfyui, diffusers"),
        ({"noise": "a1111", "seed": 2**64 - 2}, "with 3 pictures, the last one's would be above 18446744073709551615"),
    ],
)
def test_impossible_noise(bundle, settings, message) -> None:
    with pytest.raises(RequestError, match=message):
        randomness(bundle, images=3, **settings)
