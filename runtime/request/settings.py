"""Everything that a request can say beside its prompt: one declaration per setting.

The signatures and docstrings of `Pipeline.generate` and its kin, the options of `latentrt generate`, the table in
docs/runtime.md, the checks and the metadata in PNGs all follow from `Settings`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.request.images import ImageLike, MaskLike
from latentrt.runtime.request.kinds import (
    FIELDS,
    FLAG,
    INTERVAL,
    LATENTS,
    MASK,
    OPTIONAL_TEXT,
    PICTURE,
    number,
    one_of,
    pair,
    share,
    whole,
)
from latentrt.runtime.request.micro_conditioning import CONDITIONING, SCORE, MicroConditioning, Size
from latentrt.runtime.request.setting import Group, Setting
from latentrt.runtime.samplers import SAMPLERS

MAX_SEED = 2**64 - 1

STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0

_AESTHETICS = "SDXL's refiner: "


class Settings(TypedDict, total=False):
    """The settings of a request by name. A setting that is None or left out has its default."""

    # Prompts
    negative: Annotated[
        str | Sequence[str | None] | None,
        Setting(
            "Text to keep away from; counts only with guidance.",
            OPTIONAL_TEXT,
            Group.PROMPTS,
            per="prompt",
            default_text="what the checkpoint was trained with: zeros, or an empty text",
            also=("negative_prompt",),
        ),
    ]
    prompt_2: Annotated[
        str | Sequence[str | None] | None,
        Setting(
            "Prompt for the second of two text encoders.",
            OPTIONAL_TEXT,
            Group.PROMPTS,
            per="prompt",
            default_text="the prompt",
        ),
    ]
    negative_2: Annotated[
        str | Sequence[str | None] | None,
        Setting(
            "Negative text for the second of two text encoders.",
            OPTIONAL_TEXT,
            Group.PROMPTS,
            per="prompt",
            default_text="the negative text",
            also=("negative_prompt_2",),
        ),
    ]
    clip_skip: Annotated[
        int,
        Setting(
            "Layers at the end of the text encoders that prompts skip beyond those that the model skips; negatives "
            "skip none.",
            whole(0),
            Group.PROMPTS,
            default=0,
        ),
    ]
    # Steps
    steps: Annotated[
        int | None,
        Setting(
            "Steps of the whole schedule.",
            whole(1),
            Group.STEPS,
            default_text="the bundle's",
            also=("num_inference_steps", "num_steps", "inference_steps"),
        ),
    ]
    sampler: Annotated[
        str | None,
        Setting(
            f"Sampler, one of {', '.join(sorted(SAMPLERS))} (docs/samplers.md).",
            one_of(SAMPLERS),
            Group.STEPS,
            default_text="the checkpoint's",
            also=("sampler_name", "sampler_index"),
        ),
    ]
    schedule: Annotated[
        Mapping[str, Any] | None,
        Setting(
            "Fields of the scheduler config to override, such as use_karras_sigmas (docs/samplers.md).",
            FIELDS,
            Group.STEPS,
            also=("scheduler_config",),
        ),
    ]
    guidance: Annotated[
        float | Sequence[float] | None,
        Setting(
            "Classifier-free guidance scale; 1 and below draw without guidance, at half the cost.",
            number("a number of 0 or more; 1 and below turn guidance off, 5 is usual", 0),
            Group.STEPS,
            per="prompt",
            default_text="the bundle's",
            also=("guidance_scale", "cfg_scale", "cfg"),
        ),
    ]
    guidance_rescale: Annotated[
        float,
        Setting(
            "How far guided outputs get back the spread of unguided ones, 0 to 1; 0.7 is usual (Lin et al. 2024, "
            "arXiv:2305.08891, section 3.4).",
            share(),
            Group.STEPS,
            default=0.0,
        ),
    ]
    guidance_interval: Annotated[
        tuple[float, float],
        Setting(
            "Shares of the steps between which guidance acts; the other steps cost half (Kynkäänniemi et al. 2024, "
            "arXiv:2404.07724).",
            INTERVAL,
            Group.STEPS,
            default=(0.0, 1.0),
            default_text="all steps",
        ),
    ]
    # Pictures
    seed: Annotated[
        int | Sequence[int] | None,
        Setting(
            "Seed of the noise: the same seed gives the same picture, and diffusers' picture.",
            whole(0, MAX_SEED),
            Group.PICTURES,
            per="picture",
            default_text="a fresh one",
            also=("seeds",),
        ),
    ]
    images: Annotated[
        int,
        Setting(
            "Pictures per prompt, drawn as one batch.",
            whole(1),
            Group.PICTURES,
            default=1,
            also=("num_images_per_prompt", "num_images", "batch_size", "n"),
        ),
    ]
    width: Annotated[
        int | None,
        Setting("Width in pixels, a multiple of 8.", whole(1), Group.PICTURES, default_text="the image's, or native"),
    ]
    height: Annotated[
        int | None,
        Setting("Height in pixels, a multiple of 8.", whole(1), Group.PICTURES, default_text="the image's, or native"),
    ]
    # Starting from a picture
    image: Annotated[
        ImageLike | Sequence[ImageLike] | None,
        Setting(
            "Picture to start from, resized to width and height where these are given.",
            PICTURE,
            Group.SOURCE,
            per="picture",
            also=("init_image", "init_images"),
        ),
    ]
    latents: Annotated[
        Float32s | None,
        Setting(
            "Latents to start from in place of an image, such as a result's.",
            LATENTS,
            Group.SOURCE,
            option=False,
        ),
    ]
    mask: Annotated[
        MaskLike | Sequence[MaskLike] | None,
        Setting(
            "Mask as large as the image, light where it is drawn anew.",
            MASK,
            Group.SOURCE,
            per="picture",
            also=("mask_image", "inpainting_mask"),
            needs=("image",),
        ),
    ]
    strength: Annotated[
        float | None,
        Setting(
            "How much of the image is forgotten: 0 keeps it, 1 draws from noise.",
            number("a number from 0 (keep) to 1 (draw anew)", 0, 1),
            Group.SOURCE,
            default_text=f"{STRENGTH}, with a mask {STRENGTH_WITH_MASK:.0f}",
            also=("denoising_strength", "denoise"),
            needs=("image", "latents"),
        ),
    ]
    paste_back: Annotated[
        bool,
        Setting(
            "Give the result the image's own pixels outside the mask, untouched by the VAE.",
            FLAG,
            Group.SOURCE,
            default=False,
            needs=("mask",),
        ),
    ]
    # Handing over to another model
    denoising_start: Annotated[
        float | None,
        Setting(
            "Go on with latents that another model left at this share of the denoising.",
            share(", a share of the denoising"),
            Group.HAND_OVER,
            needs=("latents",),
            option=False,
        ),
    ]
    denoising_end: Annotated[
        float | None,
        Setting(
            "Stop at this share of the denoising, for another model to go on with the result's latents.",
            share(", a share of the denoising"),
            Group.HAND_OVER,
            option=False,
        ),
    ]
    decode: Annotated[
        bool,
        Setting("False draws the latents alone, without pictures.", FLAG, Group.HAND_OVER, default=True, option=False),
    ]
    # SDXL's micro-conditioning
    original_size: Annotated[
        Size | None,
        Setting(
            "Size that the picture is said to have had.",
            pair(),
            Group.MICRO_CONDITIONING,
            default_text="the request's size",
        ),
    ]
    crop: Annotated[
        Size,
        Setting(
            "Corner at which the picture is said to have been cropped.",
            pair("(top, left)", "LEFTxTOP"),
            Group.MICRO_CONDITIONING,
            default=(0, 0),
            default_text="the upper left one",
            also=("crops_coords_top_left",),
        ),
    ]
    target_size: Annotated[
        Size | None,
        Setting(
            "Size that the picture is said to be for.",
            pair(),
            Group.MICRO_CONDITIONING,
            default_text="the request's size",
        ),
    ]
    aesthetic_score: Annotated[
        float | None,
        Setting(f"{_AESTHETICS}beauty asked for.", SCORE, Group.MICRO_CONDITIONING, default_text="6"),
    ]
    negative_aesthetic_score: Annotated[
        float | None,
        Setting(f"{_AESTHETICS}beauty to keep away from.", SCORE, Group.MICRO_CONDITIONING, default_text="2.5"),
    ]
    negative_conditioning: Annotated[
        MicroConditioning | None,
        Setting(
            "Time ids of the negative rows, as a MicroConditioning.",
            CONDITIONING,
            Group.MICRO_CONDITIONING,
            default_text="those of the prompts",
            also=("negative_original_size", "negative_target_size", "negative_crops_coords_top_left"),
            option=False,
        ),
    ]


_HINTS = get_type_hints(Settings, include_extras=True)

SETTINGS: Mapping[str, Setting] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
"""Every setting's declaration by its name."""

TYPES: Mapping[str, Any] = {name: get_args(hint)[0] for name, hint in _HINTS.items()}
"""Every setting's type by its name."""
