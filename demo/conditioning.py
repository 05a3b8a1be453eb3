"""The U-Net's conditioning in training: captions through both text encoders, and time ids."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from torch import nn
from transformers import CLIPTokenizer

from latentrt.demo.captions import random_caption
from latentrt.demo.scenes import Scene, View

__all__ = ["Conditioner", "draw_captions", "time_ids"]

EMPTY_SHARE = 0.1
"""Share of empty captions."""


def draw_captions(scenes: Sequence[Scene], rng: Random) -> tuple[list[str], list[bool]]:
    """A caption for each scene, and whether its embeddings are replaced by zeros.

    A tenth of the captions is empty. Half of those are zeroed, as SDXL's pipeline does with an empty negative prompt;
    the others are the encoded "".
    """
    captions, zeroed = [], []
    for scene in scenes:
        empty = rng.random() < EMPTY_SHARE
        captions.append("" if empty else random_caption(scene, rng))
        zeroed.append(empty and rng.random() < 0.5)
    return captions, zeroed


class Conditioner:
    """Both tokenizers and text encoders.

    Attributes:
        encoders: CLIPTextModel and CLIPTextModelWithProjection.
    """

    def __init__(self, folder: Path, encoders: Sequence[nn.Module]) -> None:
        """Read the tokenizers from `folder/tokenizer` and `folder/tokenizer_2`."""
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]
        self.encoders = list(encoders)

    def __call__(self, captions: list[str], zeroed: list[bool], tokens: int = 77) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeds (N, tokens, 160), both penultimate states joined, and pooled embeds (N, 96), the projection."""
        keep = torch.tensor([not zero for zero in zeroed], dtype=torch.float32)
        hidden = []
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            ids = tokenizer(
                captions, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
            ).input_ids
            output = encoder(ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        return torch.cat(hidden, -1) * keep[:, None, None], output.text_embeds * keep[:, None]


def time_ids(views: Sequence[View]) -> torch.Tensor:
    """SDXL's six numbers per picture, (N, 6)."""
    return torch.tensor([view.time_ids for view in views], dtype=torch.float32)
