"""The settings of a request: one declaration for each.

The signatures and docstrings of `Pipeline.generate` and its kin, the options of `latentrt generate`, the table in
docs/runtime.md, the checks and the metadata in PNGs are all derived from `Settings`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypedDict, get_args, get_type_hints

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.request.images import ImageLike, MaskLike
from latentrt.runtime.request.kinds import (
    FLAG,
    INTERVAL,
    LATENTS,
    LORAS,
    MASK,
    OPTIONAL_TEXT,
    PICTURE,
    number,
    one_of,
    pair,
    share,
    whole,
)
from latentrt.runtime.request.micro_conditioning import (
    AESTHETIC_SCORE,
    CONDITIONING,
    NEGATIVE_AESTHETIC_SCORE,
    SCORE,
    MicroConditioning,
    Size,
)
from latentrt.runtime.request.schedule_kinds import FIELDS, SAMPLER, falling
from latentrt.runtime.request.setting import Group, Setting, Use
from latentrt.runtime.samplers import SAMPLERS

SYNTAXES = ("a1111", "latentrt")
"""Syntaxes of prompts; see `latentrt.runtime.text`."""

MAX_SEED = 2**64 - 1

SEED = replace(
    whole(-1, MAX_SEED), expects=f"a whole number from 0 to {MAX_SEED}, or -1 for a fresh one", metavar="NUMBER"
)

NOISES = ("a1111", "comfyui", "diffusers")
"""Programs whose noise is drawn; `latentrt.runtime.drawing.noise.Randomness` says how they differ."""

STRENGTH, STRENGTH_WITH_MASK = 0.8, 1.0
"""Default strengths of image to image and of inpainting."""


EMBEDDED = {"embeddings": "embeddings hold the encoded texts, so that it would be dropped. Give it to Pipeline.embed"}

GUIDED = Use(
    lambda request: request.guided,
    "no negative prompts are run: guidance is 1 or below, or the model takes none",
)
SCALED = Use(lambda request: max(request.guidance) > 1, "guidance is 1 or below")
FROM_STRENGTH = Use(lambda request: request.settings["denoising_start"] is None, "denoising_start decides")
DECODED = Use(lambda request: request.settings["decode"], "decode=False gives no pictures")


class Settings(TypedDict, total=False):
    """The settings of a request by name. A setting that is None or left out has its default."""

    # Prompts
    negative: Annotated[
        str | Sequence[str | None] | None,
        Setting(
            "What to avoid in the picture; used only with guidance.",
            OPTIONAL_TEXT,
            Group.PROMPTS,
            per="prompt",
            default_text="zeros or an empty text, as the checkpoint was trained",
            aliases=("negative_prompt",),
            not_with=EMBEDDED,
            use=GUIDED,
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
            not_with=EMBEDDED,
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
            aliases=("negative_prompt_2",),
            not_with=EMBEDDED,
            use=GUIDED,
        ),
    ]
    prompt_syntax: Annotated[
        str,
        Setting(
            "How prompts are read: latentrt knows (word:1.3) alone, a1111 all that AUTOMATIC1111 does.",
            one_of(SYNTAXES),
            Group.PROMPTS,
            default="latentrt",
            not_with=EMBEDDED,
        ),
    ]
    clip_skip: Annotated[
        int,
        Setting(
            "Layers to skip at the end of the text encoders, beyond those that the model itself skips; negatives skip "
            "none.",
            whole(0),
            Group.PROMPTS,
            default=0,
            not_with=EMBEDDED,
        ),
    ]
    loras: Annotated[
        Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        Setting(
            "Loaded LoRAs by name, each with its strength, or one for each network (docs/lora.md).",
            LORAS,
            Group.PROMPTS,
            per="prompt",
            default_text="none",
            aliases=("lora", "adapters", "adapter_weights"),
            option=False,
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
            aliases=("num_inference_steps", "num_steps", "inference_steps"),
        ),
    ]
    sampler: Annotated[
        str | None,
        Setting(
            f"Sampler, one of {', '.join(sorted(SAMPLERS))}, or its name in AUTOMATIC1111, ComfyUI or diffusers "
            "(docs/samplers.md).",
            SAMPLER,
            Group.STEPS,
            default_text="the checkpoint's",
            aliases=("sampler_name", "sampler_index"),
        ),
    ]
    schedule: Annotated[
        str | Mapping[str, Any] | None,
        Setting(
            "Noise schedule: a name, such as karras, or scheduler config fields to override (docs/samplers.md).",
            FIELDS,
            Group.STEPS,
            aliases=("scheduler_config", "scheduler_name"),
        ),
    ]
    timesteps: Annotated[
        Sequence[float] | None,
        Setting(
            "Training timesteps of the steps, in place of a schedule; they say how many steps there are.",
            falling("[999, 749, 499, 249]"),
            Group.STEPS,
            not_with={"sigmas": "the schedule is given as one of them"},
        ),
    ]
    sigmas: Annotated[
        Sequence[float] | None,
        Setting(
            "Noise levels of the steps, in place of a schedule; a 0 at the end may be there or not.",
            falling("[14.6, 6.3, 2.2, 0.6, 0.1, 0]"),
            Group.STEPS,
        ),
    ]
    guidance: Annotated[
        float | Sequence[float] | None,
        Setting(
            "Classifier-free guidance scale; 1 and below draw without guidance, at half the cost.",
            number("a number from 0 to 1000; 1 and below turn guidance off, 5 is usual", 0, 1000),
            Group.STEPS,
            per="prompt",
            default_text="the bundle's",
            aliases=("guidance_scale", "cfg_scale", "cfg"),
        ),
    ]
    guidance_rescale: Annotated[
        float,
        Setting(
            "How far to bring the spread of guided outputs back to that of unguided ones, from 0 to 1; 0.7 is usual "
            "(Lin et al. 2024, arXiv:2305.08891, section 3.4).",
            share(),
            Group.STEPS,
            default=0.0,
            use=GUIDED,
        ),
    ]
    guidance_interval: Annotated[
        tuple[float, float],
        Setting(
            "Interval of the steps in which guidance acts; the other steps cost half (Kynkäänniemi et al. 2024, "
            "arXiv:2404.07724).",
            INTERVAL,
            Group.STEPS,
            default=(0.0, 1.0),
            default_text="all steps",
            use=SCALED,
        ),
    ]
    # Pictures
    seed: Annotated[
        int | Sequence[int] | None,
        Setting(
            "Seed of the noise; the same seed and settings give the same picture, which is also diffusers'. -1 draws a "
            "fresh one.",
            SEED,
            Group.PICTURES,
            per="picture",
            default_text="a fresh one",
            aliases=("seeds",),
        ),
    ]
    variation_seed: Annotated[
        int | Sequence[int] | None,
        Setting(
            "Seed of other noise, towards which the first noise is turned by variation_strength.",
            SEED,
            Group.PICTURES,
            per="picture",
            default_text="a fresh one",
            aliases=("subseed",),
            needs=("variation_strength",),
        ),
    ]
    variation_strength: Annotated[
        float,
        Setting(
            "How far the first noise is turned towards that of variation_seed: 0 keeps it, 1 replaces it.",
            share(),
            Group.PICTURES,
            default=0.0,
            aliases=("subseed_strength",),
        ),
    ]
    noise: Annotated[
        str,
        Setting(
            "Whose noise a seed gives: diffusers', that of AUTOMATIC1111 with its CPU generator, or ComfyUI's.",
            one_of(NOISES),
            Group.PICTURES,
            default="diffusers",
            aliases=("rng", "randn_source"),
        ),
    ]
    images: Annotated[
        int,
        Setting(
            "Pictures per prompt, drawn as one batch.",
            whole(1),
            Group.PICTURES,
            default=1,
            aliases=("num_images_per_prompt", "num_images", "batch_size", "n"),
        ),
    ]
    width: Annotated[
        int | None,
        Setting(
            "Width in pixels, a multiple of 8.",
            whole(1),
            Group.PICTURES,
            default_text="the image's width, or the model's native one",
        ),
    ]
    height: Annotated[
        int | None,
        Setting(
            "Height in pixels, a multiple of 8.",
            whole(1),
            Group.PICTURES,
            default_text="the image's height, or the model's native one",
        ),
    ]
    # Starting from a picture
    image: Annotated[
        ImageLike | Sequence[ImageLike] | None,
        Setting(
            "Picture to start from, resized to width and height if these are given.",
            PICTURE,
            Group.SOURCE,
            per="picture",
            aliases=("init_image", "init_images"),
            not_with={"latents": "a request starts from one of them"},
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
            "Mask of the same size as the image; light areas are redrawn.",
            MASK,
            Group.SOURCE,
            per="picture",
            aliases=("mask_image", "inpainting_mask"),
            needs=("image",),
        ),
    ]
    strength: Annotated[
        float | None,
        Setting(
            "How much of the image to replace: 0 keeps it, 1 starts from pure noise.",
            number("a number from 0 (keep) to 1 (draw anew)", 0, 1),
            Group.SOURCE,
            default_text=f"{STRENGTH}, or {STRENGTH_WITH_MASK:.0f} with a mask",
            aliases=("denoising_strength", "denoise"),
            needs=("image", "latents"),
            not_with={"denoising_start": "the request goes on where the other model stopped; leave strength out"},
            use=FROM_STRENGTH,
        ),
    ]
    paste_back: Annotated[
        bool,
        Setting(
            "Copy the image's own pixels, untouched by the VAE, back into the result outside the mask.",
            FLAG,
            Group.SOURCE,
            default=False,
            needs=("mask",),
            use=DECODED,
        ),
    ]
    # Handing over to another model
    denoising_start: Annotated[
        float | None,
        Setting(
            "Continue from latents that another model left at this share of the denoising.",
            share(", a share of the denoising"),
            Group.HAND_OVER,
            needs=("latents",),
            option=False,
        ),
    ]
    denoising_end: Annotated[
        float | None,
        Setting(
            "Stop at this share of the denoising, so that another model can continue from the result's latents.",
            share(", a share of the denoising"),
            Group.HAND_OVER,
            option=False,
        ),
    ]
    decode: Annotated[
        bool,
        Setting(
            "Whether to decode pictures; False gives the latents alone.",
            FLAG,
            Group.HAND_OVER,
            default=True,
            option=False,
        ),
    ]
    # SDXL's micro-conditioning
    original_size: Annotated[
        Size | None,
        Setting(
            "Original size to tell the model.",
            pair(),
            Group.MICRO_CONDITIONING,
            default_text="the request's size",
        ),
    ]
    crop: Annotated[
        Size,
        Setting(
            "Corner of the crop to tell the model.",
            pair("(top, left)", "LEFTxTOP"),
            Group.MICRO_CONDITIONING,
            default=(0, 0),
            default_text="the upper left one",
            aliases=("crops_coords_top_left",),
        ),
    ]
    target_size: Annotated[
        Size | None,
        Setting(
            "Target size to tell the model.",
            pair(),
            Group.MICRO_CONDITIONING,
            default_text="the request's size",
        ),
    ]
    aesthetic_score: Annotated[
        float | None,
        Setting(
            "SDXL's refiner: aesthetic score to aim for.",
            SCORE,
            Group.MICRO_CONDITIONING,
            default_text=f"{AESTHETIC_SCORE:g}",
        ),
    ]
    negative_aesthetic_score: Annotated[
        float | None,
        Setting(
            "SDXL's refiner: aesthetic score to avoid.",
            SCORE,
            Group.MICRO_CONDITIONING,
            default_text=f"{NEGATIVE_AESTHETIC_SCORE:g}",
            use=GUIDED,
        ),
    ]
    negative_conditioning: Annotated[
        MicroConditioning | None,
        Setting(
            "Micro-conditioning of the negative prompts, as a MicroConditioning.",
            CONDITIONING,
            Group.MICRO_CONDITIONING,
            default_text="those of the prompts",
            use=GUIDED,
            option=False,
        ),
    ]


_HINTS = get_type_hints(Settings, include_extras=True)

SETTINGS: Mapping[str, Setting] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
"""Every setting's declaration, by name."""

TYPES: Mapping[str, Any] = {name: get_args(hint)[0] for name, hint in _HINTS.items()}
"""Every setting's type, by name."""
