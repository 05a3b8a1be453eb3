"""What files in the original layouts call the tensors of each network: one table, with who writes them so."""

from collections.abc import Mapping
from dataclasses import dataclass

from latentrt.export.sources.places import Place


@dataclass(frozen=True, slots=True)
class Alias:
    """A part of a place's key, what some files write in its stead, and who writes them.

    `transposed`: whether the usual tensor, and the other one, is transposed.
    """

    usual: str
    other: str
    source: str
    transposed: tuple[bool, bool] = (False, False)

    def applied(self, place: Place) -> Place | None:
        """The place under its other name; None where the alias is for other tensors."""
        key = place.key
        if place.transposed != self.transposed[0] or not (key.startswith(self.usual) or f".{self.usual}" in key):
            return None
        if not key.startswith(self.usual):
            return Place(key.replace(f".{self.usual}", f".{self.other}", 1), place.third, self.transposed[1])
        return Place(self.other + key.removeprefix(self.usual), place.third, self.transposed[1])


@dataclass(frozen=True, slots=True)
class Names:
    """`prefixes`: what a network's keys may begin with -> where; `aliases`: other names of tensors below it."""

    prefixes: Mapping[str, str]
    aliases: tuple[Alias, ...] = ()


_TRANSFORMERS = Alias(
    "text_model.",
    "",
    "NovelAI's model and merges of it (AUTOMATIC1111, checkpoint_dict_replacements_sd1); diffusers' "
    "convert_diffusers_to_original scripts, of folders that transformers 5 saved",
)
_VAE_ATTENTION = "diffusers' convert_diffusers_to_original scripts before they knew these names of diffusers'"

NAMES: Mapping[str, Names] = {
    "unet": Names({"model.diffusion_model.": "CompVis/stable-diffusion, and everyone after it"}),
    "vae": Names(
        {"first_stage_model.": "CompVis/stable-diffusion, and everyone after it"},
        tuple(
            Alias(f"attn_1.{usual}.", f"attn_1.{other}.", _VAE_ATTENTION)
            for usual, others in {
                "q": ("to_q", "query"),
                "k": ("to_k", "key"),
                "v": ("to_v", "value"),
                "proj_out": ("to_out.0", "proj_attn"),
                "norm": ("group_norm",),
            }.items()
            for other in others
        ),
    ),
    "text_encoder": Names(
        {
            "cond_stage_model.transformer.": "SD 1.x, CLIP as transformers has it",
            "cond_stage_model.model.": "SD 2.x, OpenCLIP",
            "conditioner.embedders.0.transformer.": "SDXL's first text encoder",
            "conditioner.embedders.0.model.": "sd_turbo.safetensors (AUTOMATIC1111, ..._replacements_sd2_turbo)",
        },
        (_TRANSFORMERS,),
    ),
    "text_encoder_2": Names(
        {
            "conditioner.embedders.1.model.": "SDXL's second text encoder, OpenCLIP",
            "conditioner.embedders.0.model.": "the only one of SDXL's refiner",
        },
        (
            Alias(
                "text_projection",
                "text_projection.weight",
                "convert_diffusers_to_original_sdxl.py keeps transformers' projection, a linear layer's weight",
                transposed=(True, False),
            ),
        ),
    ),
}
"""Folder of each network -> its names. CLIP lies under `transformer.`, OpenCLIP under `model.`."""


def places_of(folder: str, place: Place) -> list[Place]:
    """The place itself, then the others where files keep the same tensor of this network."""
    return [place, *(other for alias in NAMES[folder].aliases if (other := alias.applied(place)) is not None)]
