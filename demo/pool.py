"""The training pool: numbered scenes, and their VAE latents, which are computed once."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track

from latentrt.demo.scenes import BUCKETS, Scene, View, random_scene, random_view, render

__all__ = ["Pool", "bucket_counts", "encode_pool", "load_pool", "numbered_scene", "random_size"]

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pool:
    """Scaled latents by picture size, (count, 4, height / 8, width / 8), float16; row n: `numbered_scene(n, size)`."""

    latents: dict[Size, torch.Tensor]

    def batch(self, rng: Random, count: int, size: Size) -> tuple[torch.Tensor, list[tuple[Scene, View]]]:
        """Latents in float32, and their scenes and views, drawn with replacement."""
        stored = self.latents[size]
        numbers = [rng.randrange(len(stored)) for _ in range(count)]
        return stored[numbers].float(), [numbered_scene(number, size) for number in numbers]


def random_size(rng: Random) -> Size:
    """A random size for training, (height, width), with the frequencies in `BUCKETS`."""
    return rng.choices(list(BUCKETS), list(BUCKETS.values()))[0]


def numbered_scene(number: int, size: Size) -> tuple[Scene, View]:
    """Scene and view of a picture in the pool, determined by its number and size."""
    rng = Random(f"pool {size} {number}")
    return random_scene(rng), random_view(rng, size)


def bucket_counts(total: int) -> dict[Size, int]:
    """The number of scenes of each size in a pool of `total`."""
    return {size: round(share * total) for size, share in BUCKETS.items()}


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, total: int, folder: Path, part: int = 0, parts: int = 1) -> None:
    """Write `folder/pool_HxW_PART.pt` for each size; several processes may encode one part each."""
    for size, count in bucket_counts(total).items():
        path = folder / f"pool_{size[0]}x{size[1]}_{part}.pt"
        if path.is_file():
            continue
        numbers = range(part * count // parts, (part + 1) * count // parts)
        chunks = [numbers[start : start + 32] for start in range(0, len(numbers), 32)]
        latents = [encode(vae, size, chunk) for chunk in track(chunks, description=f"latents {size}")]
        torch.save(torch.cat(latents).half(), path)


def encode(vae: AutoencoderKL, size: Size, numbers: range) -> torch.Tensor:
    """Scaled latent means of the pictures with these numbers."""
    views = [(*numbered_scene(number, size), Random(f"jitter {size} {number}")) for number in numbers]
    pixels = torch.from_numpy(np.stack([render(*view) for view in views])).permute(0, 3, 1, 2).float()
    mean: torch.Tensor = vae.encode(pixels / 127.5 - 1).latent_dist.mean
    scaled: torch.Tensor = mean * vae.config.scaling_factor
    return scaled


def load_pool(folder: Path, parts: int = 1) -> Pool:
    """The pool that `encode_pool` wrote."""
    return Pool({size: torch.cat([read(folder, size, part) for part in range(parts)]) for size in BUCKETS})


def read(folder: Path, size: Size, part: int) -> torch.Tensor:
    """The latents of one part of one size."""
    latents: torch.Tensor = torch.load(folder / f"pool_{size[0]}x{size[1]}_{part}.pt", weights_only=True)
    return latents
